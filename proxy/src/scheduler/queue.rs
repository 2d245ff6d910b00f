//! The jobs that wait. Plain data; the instant is passed in.
//!
//! Adding or removing a job is logarithmic in the number of jobs. A job that comes back from a dead worker takes its
//! old place. A job that gave way to others waits from then on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{BatchKey, Demand, Job, JobId};
use crate::policy::candidates::{Bucket, Size};

/// The jobs that wait, in buckets by batch key and size. Each bucket is ordered by when its jobs began to wait.
#[derive(Debug, Default)]
pub struct Queue {
    /// Each job's bucket and when it began to wait. The oldest job is first.
    index: BTreeMap<JobId, (BucketKey, Instant)>,
    buckets: BTreeMap<BucketKey, BucketJobs>,
    deadlines: BTreeSet<(Instant, JobId)>,
}

type BucketKey = (BatchKey, Size);

/// The jobs of one bucket. Never empty.
#[derive(Debug, Default)]
struct BucketJobs {
    /// The jobs, by when they began to wait.
    jobs: BTreeMap<(Instant, JobId), Box<Job>>,
    /// Their demand, all together.
    demand: Demand,
}

/// The limits of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most members.
    pub members: usize,
    /// The most tokens of prompts and answers, estimated.
    pub tokens: u64,
    /// The most bytes of prompts.
    pub bytes: usize,
}

/// Why a batch is not larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// No other job waits that may share the batch.
    NoMoreJobs,
    /// The batch has as many members as it may have.
    Members,
    /// Another member would not fit the worker's token budget, or the frame.
    Tokens,
}

impl Queue {
    /// The number of jobs.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Adds a job to its bucket, in the order in which the jobs began to wait.
    pub fn push(&mut self, job: Box<Job>) {
        let demand = job.demand();
        let key = (job.request.key, Size::of(&demand));
        self.index.insert(job.id, (key, job.waits_since));
        self.deadlines.insert((job.deadline, job.id));
        let bucket = self.buckets.entry(key).or_default();
        bucket.demand = bucket.demand.and(&demand);
        bucket.jobs.insert((job.waits_since, job.id), job);
    }

    /// Removes a job, if it waits.
    pub fn remove(&mut self, id: JobId) -> Option<Box<Job>> {
        let (key, since) = self.index.remove(&id)?;
        let bucket = self.buckets.get_mut(&key)?;
        let job = bucket.jobs.remove(&(since, id))?;
        bucket.demand = bucket.demand.less(&job.demand());
        if bucket.jobs.is_empty() {
            self.buckets.remove(&key);
        }
        self.deadlines.remove(&(job.deadline, id));
        Some(job)
    }

    /// When the oldest job was admitted.
    pub fn oldest(&self) -> Option<Instant> {
        let (&id, &(key, since)) = self.index.first_key_value()?;
        Some(self.buckets.get(&key)?.jobs.get(&(since, id))?.admitted)
    }

    /// The batch keys of the jobs, some of them more than once.
    pub fn keys(&self) -> impl Iterator<Item = &BatchKey> + Clone {
        self.buckets.keys().map(|(key, _)| key)
    }

    /// The buckets, with the demand of their jobs.
    pub fn buckets(&self) -> Vec<Bucket> {
        let summary = |(&(key, size), bucket): (&BucketKey, &BucketJobs)| {
            let &(since, _) = bucket.jobs.first_key_value()?.0;
            Some(Bucket { key, size, since, demand: bucket.demand })
        };
        self.buckets.iter().filter_map(summary).collect()
    }

    /// Takes the oldest jobs of these buckets, which can share a batch, as many as `limits` allow. A job that is larger
    /// than the limits goes alone, so the batch is empty only if the buckets are.
    pub fn take_batch(&mut self, buckets: &[Bucket], limits: &Limits) -> (Vec<Box<Job>>, Filled) {
        let waiting: usize = buckets.iter().map(|bucket| bucket.demand.members).sum();
        let mut batch = Vec::with_capacity(waiting.min(limits.members));
        let (mut tokens, mut bytes) = (0, 0);
        let filled = loop {
            let first = |bucket: &Bucket| self.buckets.get(&(bucket.key, bucket.size))?.jobs.first_key_value();
            let Some((&(_, id), next)) = buckets.iter().filter_map(first).min_by_key(|(place, _)| **place) else {
                break Filled::NoMoreJobs;
            };
            if batch.len() >= limits.members.max(1) {
                break Filled::Members;
            }
            tokens += next.request.estimated_tokens();
            bytes += next.request.bytes();
            if !batch.is_empty() && (tokens > limits.tokens || bytes > limits.bytes) {
                break Filled::Tokens;
            }
            batch.extend(self.remove(id));
        };
        (batch, filled)
    }

    /// Takes the jobs whose deadline is not after `now`.
    pub fn take_expired(&mut self, now: Instant) -> Vec<Box<Job>> {
        let mut expired = Vec::new();
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= now
        {
            expired.extend(self.remove(id));
        }
        expired
    }

    /// Takes the jobs that have waited for a worker for `wait`, counted from their admission or from `unserved`,
    /// whichever is later. `unserved` says since when no worker serves a batch key; `None` if one does.
    pub fn take_unserved(
        &mut self,
        unserved: impl Fn(&BatchKey) -> Option<Instant>,
        wait: Duration,
        now: Instant,
    ) -> Vec<Box<Job>> {
        let mut taken = Vec::new();
        while let Some((_, id)) = self.next_unserved(&unserved, wait).filter(|(due, _)| *due <= now) {
            taken.extend(self.remove(id));
        }
        taken
    }

    /// The job that will be the first to have waited for a worker for `wait`, and when.
    pub fn next_unserved(
        &self,
        unserved: impl Fn(&BatchKey) -> Option<Instant>,
        wait: Duration,
    ) -> Option<(Instant, JobId)> {
        let first = |((key, _), bucket): (&BucketKey, &BucketJobs)| {
            let since = unserved(key)?;
            let (&(_, id), job) = bucket.jobs.first_key_value()?;
            Some((job.admitted.max(since) + wait, id))
        };
        self.buckets.iter().filter_map(first).min()
    }

    /// The earliest deadline of a job.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }
}

#[cfg(test)]
mod tests {
    use pillion_protocol::frame::Options;

    use super::*;
    use crate::domain::{GenerationRequest, Reply};

    const NO_LIMITS: Limits = Limits { members: 100, tokens: u64::MAX, bytes: usize::MAX };

    /// Takes a batch from the buckets that have the batch key of the oldest job.
    fn take(queue: &mut Queue, limits: &Limits) -> (Vec<u64>, Filled) {
        let key = queue.index.first_key_value().unwrap().1.0.0;
        let buckets: Vec<Bucket> = queue.buckets().into_iter().filter(|bucket| bucket.key == key).collect();
        let (jobs, filled) = queue.take_batch(&buckets, limits);
        (ids(&jobs), filled)
    }

    fn job(id: u64, penalty: f32, text: &str, deadline: Instant) -> Box<Job> {
        let options = Options { repetition_penalty: penalty, ..Options::default() };
        let request = GenerationRequest::text(text, BatchKey::new(options, 0), 10);
        Box::new(Job::new(JobId(id), request, deadline - Duration::from_secs(60), deadline, Reply::unheard()))
    }

    /// The same instant in every call, so that only the number decides which job is older.
    fn soon() -> Instant {
        static SOON: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *SOON.get_or_init(|| Instant::now() + Duration::from_secs(60))
    }

    fn ids(jobs: &[Box<Job>]) -> Vec<u64> {
        jobs.iter().map(|job| job.id.0).collect()
    }

    #[test]
    fn a_batch_has_one_batch_key_and_starts_with_the_oldest_job() {
        let mut queue = Queue::default();
        for (id, penalty) in [(3, 1.0), (1, 1.5), (2, 1.0), (4, 1.5)] {
            queue.push(job(id, penalty, "text", soon()));
        }
        assert_eq!(take(&mut queue, &NO_LIMITS), (vec![1, 4], Filled::NoMoreJobs));
        assert_eq!(take(&mut queue, &NO_LIMITS).0, [2, 3]);
        assert!(queue.is_empty() && queue.take_batch(&[], &NO_LIMITS).0.is_empty());
    }

    #[test]
    fn a_batch_stops_at_its_limits() {
        let mut queue = Queue::default();
        (0..5).for_each(|id| queue.push(job(id, 1.0, "0123456789", soon())));
        assert_eq!(take(&mut queue, &Limits { members: 2, ..NO_LIMITS }), (vec![0, 1], Filled::Members));
        assert_eq!(take(&mut queue, &Limits { bytes: 25, ..NO_LIMITS }), (vec![2, 3], Filled::Tokens));
    }

    #[test]
    fn a_job_larger_than_the_limits_goes_alone() {
        let mut queue = Queue::default();
        (0..2).for_each(|id| queue.push(job(id, 1.0, "a long text", soon())));
        assert_eq!(take(&mut queue, &Limits { members: 9, tokens: 1, bytes: 1 }), (vec![0], Filled::Tokens));
    }

    #[test]
    fn the_oldest_jobs_of_several_buckets_go_first_and_the_demand_of_the_rest_stays() {
        let mut queue = Queue::default();
        for (id, text) in [(3, "short"), (1, "a text that is a little longer"), (2, "short"), (4, "short")] {
            queue.push(job(id, 1.0, text, soon()));
        }
        assert_eq!(queue.buckets().len(), 2);
        assert_eq!(take(&mut queue, &Limits { members: 3, ..NO_LIMITS }), (vec![1, 2, 3], Filled::Members));
        let [left] = queue.buckets()[..] else { panic!("{:?}", queue.buckets()) };
        assert_eq!((left.demand.members, left.demand.bytes, left.demand.tokens), (1, 5, 10));
    }

    #[test]
    fn a_job_that_comes_back_takes_its_old_place() {
        let mut queue = Queue::default();
        (5..8).for_each(|id| queue.push(job(id, 1.0, "text", soon())));
        queue.push(job(2, 1.0, "text", soon()));
        assert_eq!(take(&mut queue, &NO_LIMITS).0, [2, 5, 6, 7]);
    }

    #[test]
    fn a_job_that_gave_way_waits_behind_jobs_that_came_before_it_gave_way() {
        let mut queue = Queue::default();
        let now = soon();
        for (id, since) in [(1, now), (2, now - Duration::from_secs(2)), (3, now + Duration::from_secs(1))] {
            let mut job = job(id, 1.0, "text", now);
            job.waits_since = since;
            queue.push(job);
        }
        assert_eq!(queue.buckets()[0].since, now - Duration::from_secs(2));
        assert_eq!(take(&mut queue, &NO_LIMITS).0, [2, 1, 3]);
    }

    #[test]
    fn only_jobs_past_their_deadline_expire() {
        let mut queue = Queue::default();
        let now = soon();
        queue.push(job(1, 1.0, "text", now + Duration::from_millis(1)));
        queue.push(job(2, 1.0, "text", now));
        assert_eq!(ids(&queue.take_expired(now)), [2]);
        assert_eq!(queue.next_deadline(), Some(now + Duration::from_millis(1)));
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn waiting_for_a_worker_counts_from_admission_or_from_the_loss_of_the_last_worker() {
        let mut queue = Queue::default();
        let deadline = soon();
        let admitted = deadline - Duration::from_secs(60);
        let wait = Duration::from_secs(30);
        queue.push(job(1, 1.0, "text", deadline));
        let lost = admitted + Duration::from_secs(10);
        let mut at = |secs| ids(&queue.take_unserved(|_| Some(lost), wait, admitted + Duration::from_secs(secs)));
        assert_eq!((at(39), at(40)), (vec![], vec![1]));
    }

    #[test]
    fn a_job_that_a_worker_serves_does_not_wait_for_one() {
        let mut queue = Queue::default();
        let now = soon();
        queue.push(job(1, 1.0, "text", now));
        queue.push(job(2, 1.1, "text", now));
        let served = job(2, 1.1, "text", now).request.key;
        let unserved = |key: &BatchKey| (*key != served).then_some(now);
        assert_eq!(ids(&queue.take_unserved(unserved, Duration::ZERO, now)), [1]);
    }

    #[test]
    fn a_removed_job_leaves_nothing_behind() {
        let mut queue = Queue::default();
        queue.push(job(1, 1.0, "text", soon()));
        assert!(queue.remove(JobId(1)).is_some());
        assert!(queue.remove(JobId(1)).is_none());
        assert!(queue.is_empty() && queue.next_deadline().is_none() && queue.buckets().is_empty());
    }
}
