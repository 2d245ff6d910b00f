//! The jobs that wait. Plain data; the instant is passed in.
//!
//! Every operation is logarithmic in the number waiting. A job that comes back from a worker that died takes its old
//! place; one that gave way to others waits from then on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{BatchKey, Demand, Job, JobId};
use crate::policy::candidates::{Bucket, Size};

/// Jobs that wait, in the order in which they began to among those of their class and size.
#[derive(Debug, Default)]
pub struct Queue {
    /// Every job's place, the oldest job first: also the index by number.
    order: BTreeMap<JobId, (Place, Instant)>,
    buckets: BTreeMap<Place, Line>,
    deadlines: BTreeSet<(Instant, JobId)>,
}

type Place = (BatchKey, Size);

/// Jobs of one class and size. Never empty.
#[derive(Debug, Default)]
struct Line {
    /// By since when they wait.
    jobs: BTreeMap<(Instant, JobId), Box<Job>>,
    /// What they ask for, all together.
    demand: Demand,
}

/// What one batch may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Members.
    pub members: usize,
    /// Estimated tokens of prompts and answers.
    pub tokens: u64,
    /// Bytes of prompts.
    pub bytes: usize,
}

/// What stopped a batch from being larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// Nobody else was waiting who may ride along.
    Everyone,
    /// It has as many members as a batch may have.
    Members,
    /// Another member would not fit the worker's token budget, or the frame.
    Tokens,
}

impl Queue {
    /// Jobs waiting.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Puts a job in its place by age.
    pub fn push(&mut self, job: Box<Job>) {
        let demand = job.demand();
        let place = (job.request.key, Size::of(&demand));
        self.order.insert(job.id, (place, job.waits_since));
        self.deadlines.insert((job.deadline, job.id));
        let line = self.buckets.entry(place).or_default();
        line.demand = line.demand.and(&demand);
        line.jobs.insert((job.waits_since, job.id), job);
    }

    /// Takes a job out, if it waits.
    pub fn remove(&mut self, id: JobId) -> Option<Box<Job>> {
        let (place, since) = self.order.remove(&id)?;
        let line = self.buckets.get_mut(&place)?;
        let job = line.jobs.remove(&(since, id))?;
        line.demand = line.demand.less(&job.demand());
        if line.jobs.is_empty() {
            self.buckets.remove(&place);
        }
        self.deadlines.remove(&(job.deadline, id));
        Some(job)
    }

    /// When the oldest was admitted.
    pub fn oldest(&self) -> Option<Instant> {
        let (&id, &(place, since)) = self.order.first_key_value()?;
        Some(self.buckets.get(&place)?.jobs.get(&(since, id))?.admitted)
    }

    /// The classes of those who wait, some of them more than once.
    pub fn keys(&self) -> impl Iterator<Item = &BatchKey> + Clone {
        self.buckets.keys().map(|(key, _)| key)
    }

    /// What waits, by class and size.
    pub fn buckets(&self) -> Vec<Bucket> {
        let bucket = |(&(key, size), line): (&Place, &Line)| {
            let &(since, _) = line.jobs.first_key_value()?.0;
            Some(Bucket { key, size, since, demand: line.demand })
        };
        self.buckets.iter().filter_map(bucket).collect()
    }

    /// Takes the oldest jobs of these cells, which are of one class, as many as `limits` allow; never an empty batch
    /// while somebody waits there: a job larger than the limits goes alone.
    pub fn take_batch(&mut self, buckets: &[Bucket], limits: &Limits) -> (Vec<Box<Job>>, Filled) {
        let waiting: usize = buckets.iter().map(|bucket| bucket.demand.members).sum();
        let mut batch = Vec::with_capacity(waiting.min(limits.members));
        let (mut tokens, mut bytes) = (0, 0);
        let filled = loop {
            let first = |bucket: &Bucket| self.buckets.get(&(bucket.key, bucket.size))?.jobs.first_key_value();
            let Some((&(_, id), next)) = buckets.iter().filter_map(first).min_by_key(|(place, _)| **place) else {
                break Filled::Everyone;
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

    /// Takes out the jobs whose deadline is not after `now`.
    pub fn take_expired(&mut self, now: Instant) -> Vec<Box<Job>> {
        let mut expired = Vec::new();
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= now
        {
            expired.extend(self.remove(id));
        }
        expired
    }

    /// Takes out the jobs that have waited for a worker as long as they may: for their class none has been connected since
    /// the instant that `unserved` says, and they were admitted at least `wait` ago.
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

    /// Who will be the first to have waited for so long, and when.
    pub fn next_unserved(
        &self,
        unserved: impl Fn(&BatchKey) -> Option<Instant>,
        wait: Duration,
    ) -> Option<(Instant, JobId)> {
        let first = |((key, _), line): (&Place, &Line)| {
            let since = unserved(key)?;
            let (&(_, id), job) = line.jobs.first_key_value()?;
            Some((job.admitted.max(since) + wait, id))
        };
        self.buckets.iter().filter_map(first).min()
    }

    /// The earliest deadline of a job that waits.
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

    /// Takes of everybody who is of the oldest's class.
    fn take(queue: &mut Queue, limits: &Limits) -> (Vec<u64>, Filled) {
        let key = queue.order.first_key_value().unwrap().1.0.0;
        let buckets: Vec<Bucket> = queue.buckets().into_iter().filter(|bucket| bucket.key == key).collect();
        let (jobs, filled) = queue.take_batch(&buckets, limits);
        (ids(&jobs), filled)
    }

    fn job(id: u64, penalty: f32, text: &str, deadline: Instant) -> Box<Job> {
        let options = Options { repetition_penalty: penalty, ..Options::default() };
        let request = GenerationRequest::text(text, BatchKey::new(&options, 0), 10);
        Box::new(Job::new(JobId(id), request, deadline - Duration::from_secs(60), deadline, Reply::unheard()))
    }

    /// The same whenever it is asked for, so that only the number says who is older.
    fn soon() -> Instant {
        static SOON: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *SOON.get_or_init(|| Instant::now() + Duration::from_secs(60))
    }

    fn ids(jobs: &[Box<Job>]) -> Vec<u64> {
        jobs.iter().map(|job| job.id.0).collect()
    }

    #[test]
    fn a_batch_is_of_one_class_and_starts_with_the_oldest() {
        let mut queue = Queue::default();
        for (id, penalty) in [(3, 1.0), (1, 1.5), (2, 1.0), (4, 1.5)] {
            queue.push(job(id, penalty, "text", soon()));
        }
        assert_eq!(take(&mut queue, &NO_LIMITS), (vec![1, 4], Filled::Everyone));
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
    fn the_oldest_of_several_sizes_go_first_and_what_is_left_is_accounted_for() {
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
    fn a_job_that_gave_way_waits_behind_those_who_came_before_it_did() {
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
    fn waiting_for_a_worker_counts_from_the_later_of_admission_and_its_loss() {
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
    fn who_is_served_does_not_wait_for_a_worker() {
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
