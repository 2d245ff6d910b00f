//! The jobs that wait. Plain data; the instant is passed in.
//!
//! Adding or removing a job is logarithmic in the number of jobs. Choosing the next batch takes a bounded time, however many
//! batch keys the jobs have: only the oldest buckets are looked at. A job that comes back from a dead worker takes its old
//! place. A job that gave way to others waits from then on.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{BatchKey, Demand, Job, JobId, Target};
use crate::policy::backlog::SameSize;
use crate::policy::candidates::{Bucket, Size};

/// The most buckets of a line that are looked at for the next batch: those whose first job waits longest.
const WINDOW: usize = 64;

/// The jobs that wait, in a line for each target.
#[derive(Debug, Default)]
pub struct Queue {
    lines: BTreeMap<Target, Line>,
    len: usize,
}

/// The jobs with one target, in buckets by batch key and size. Never empty.
#[derive(Debug, Default)]
struct Line {
    /// Each job's bucket and when it began to wait. The oldest job is first.
    index: BTreeMap<JobId, (BucketKey, Instant)>,
    buckets: BTreeMap<BucketKey, BucketJobs>,
    /// The buckets by the places of their first jobs.
    by_age: BTreeMap<Place, BucketKey>,
    /// The jobs of each size, whatever their batch keys.
    sizes: BTreeMap<Size, SameSize>,
    deadlines: BTreeSet<(Instant, JobId)>,
}

type BucketKey = (BatchKey, Size);
/// The order in which the jobs of a bucket leave: when they began to wait, and their numbers.
type Place = (Instant, JobId);

/// The jobs of one bucket. Never empty.
#[derive(Debug, Default)]
struct BucketJobs {
    jobs: BTreeMap<Place, Box<Job>>,
    /// Their demand, all together.
    demand: Demand,
}

/// A bucket from which jobs are being taken. Meanwhile it is not in its line.
struct OpenBucket {
    key: BucketKey,
    /// The place of the job that was the first.
    was_first: Place,
    bucket: BucketJobs,
    /// The demand of the jobs that were taken.
    taken: Demand,
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
        self.len
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a job to its bucket, in the order in which the jobs began to wait.
    pub fn push(&mut self, job: Box<Job>) {
        self.len += 1;
        self.lines.entry(job.request.key.target).or_default().push(job);
    }

    /// Removes a job, if it waits.
    pub fn remove(&mut self, id: JobId) -> Option<Box<Job>> {
        let (&target, _) = self.lines.iter().find(|(_, line)| line.index.contains_key(&id))?;
        self.remove_from(target, id)
    }

    fn remove_from(&mut self, target: Target, id: JobId) -> Option<Box<Job>> {
        let line = self.lines.get_mut(&target)?;
        let job = line.remove(id)?;
        if line.index.is_empty() {
            self.lines.remove(&target);
        }
        self.len -= 1;
        Some(job)
    }

    /// Takes all jobs.
    pub fn take_all(&mut self) -> Vec<Box<Job>> {
        self.len = 0;
        let lines = std::mem::take(&mut self.lines);
        lines
            .into_values()
            .flat_map(|line| line.buckets.into_values())
            .flat_map(|bucket| bucket.jobs.into_values())
            .collect()
    }

    /// When the oldest job was admitted.
    pub fn oldest(&self) -> Option<Instant> {
        self.lines.values().filter_map(Line::oldest).map(|job| job.admitted).min()
    }

    /// The targets of the jobs.
    pub fn targets(&self) -> impl Iterator<Item = &Target> + Clone {
        self.lines.keys()
    }

    /// The buckets from which the next batch is taken, with the demand of their jobs: of each target, the buckets whose first
    /// job waits longest.
    pub fn window(&self) -> Vec<Bucket> {
        self.lines.values().flat_map(Line::window).collect()
    }

    /// The jobs by size. `included` says whether the jobs with a target count.
    pub fn sizes(&self, included: impl Fn(&Target) -> bool) -> Vec<SameSize> {
        let lines = self.lines.iter().filter(|(target, _)| included(target));
        lines.flat_map(|(_, line)| line.sizes.values().copied()).collect()
    }

    /// Takes the oldest jobs of these buckets, which can share a batch, as many as `limits` allow. A job that is larger
    /// than the limits goes alone, so the batch is empty only if the buckets are.
    pub fn take_batch(&mut self, buckets: &[Bucket], limits: &Limits) -> (Vec<Box<Job>>, Filled) {
        let waiting: usize = buckets.iter().map(|bucket| bucket.demand.members).sum();
        let mut batch: Vec<Box<Job>> = Vec::with_capacity(waiting.min(limits.members));
        let (mut tokens, mut bytes) = (0, 0);
        let opened = buckets.iter().filter_map(|bucket| self.lines.get_mut(&bucket.key.target)?.open(bucket));
        let mut opened: Vec<OpenBucket> = opened.collect();
        let mut firsts: BinaryHeap<_> =
            opened.iter().enumerate().map(|(at, open)| Reverse((open.was_first, at))).collect();
        let filled = loop {
            let Some(Reverse((place, at))) = firsts.pop() else { break Filled::NoMoreJobs };
            let OpenBucket { key, bucket, taken, .. } = &mut opened[at];
            let Some(next) = bucket.jobs.first_entry() else { continue };
            if batch.len() >= limits.members.max(1) {
                break Filled::Members;
            }
            tokens += next.get().request.estimated_tokens();
            bytes += next.get().wire_bytes();
            if !batch.is_empty() && (tokens > limits.tokens || bytes > limits.bytes) {
                break Filled::Tokens;
            }
            let job = next.remove();
            *taken = taken.and(&job.demand());
            if let Some(line) = self.lines.get_mut(&key.0.target) {
                line.index.remove(&place.1);
                line.deadlines.remove(&(job.deadline, job.id));
            }
            batch.push(job);
            firsts.extend(bucket.first().map(|place| Reverse((place, at))));
        };
        self.len -= batch.len();
        for open in opened {
            let target = open.key.0.target;
            if let Some(line) = self.lines.get_mut(&target) {
                line.close(open);
                if line.index.is_empty() {
                    self.lines.remove(&target);
                }
            }
        }
        (batch, filled)
    }

    /// Takes the jobs whose deadline is not after `now`.
    pub fn take_expired(&mut self, now: Instant) -> Vec<Box<Job>> {
        let mut expired = Vec::new();
        while let Some((deadline, id, target)) = self.first_deadline(|_| true)
            && deadline <= now
        {
            expired.extend(self.remove_from(target, id));
        }
        expired
    }

    /// Takes the jobs that have waited for a worker for `wait`, counted from their admission or from `unserved`,
    /// whichever is later. `unserved` says since when no worker serves a target; `None` if one does.
    pub fn take_unserved(
        &mut self,
        unserved: impl Fn(&Target) -> Option<Instant>,
        wait: Duration,
        now: Instant,
    ) -> Vec<Box<Job>> {
        let mut taken = Vec::new();
        while let Some((_, id, target)) = self.first_unserved(&unserved, wait).filter(|(due, ..)| *due <= now) {
            taken.extend(self.remove_from(target, id));
        }
        taken
    }

    /// When the first job will have waited for a worker for `wait`.
    pub fn next_unserved(&self, unserved: impl Fn(&Target) -> Option<Instant>, wait: Duration) -> Option<Instant> {
        self.first_unserved(unserved, wait).map(|(due, ..)| due)
    }

    fn first_unserved(
        &self,
        unserved: impl Fn(&Target) -> Option<Instant>,
        wait: Duration,
    ) -> Option<(Instant, JobId, Target)> {
        let first = |(target, line): (&Target, &Line)| {
            let since = unserved(target)?;
            let oldest = line.oldest()?;
            Some((oldest.admitted.max(since) + wait, oldest.id, *target))
        };
        self.lines.iter().filter_map(first).min()
    }

    /// The earliest deadline of a job. `included` says whether the jobs with a target count.
    pub fn next_deadline(&self, included: impl Fn(&Target) -> bool) -> Option<Instant> {
        self.first_deadline(included).map(|(deadline, ..)| deadline)
    }

    fn first_deadline(&self, included: impl Fn(&Target) -> bool) -> Option<(Instant, JobId, Target)> {
        let lines = self.lines.iter().filter(|(target, _)| included(target));
        lines.filter_map(|(target, line)| line.deadlines.first().map(|&(deadline, id)| (deadline, id, *target))).min()
    }
}

impl Line {
    fn push(&mut self, job: Box<Job>) {
        let (demand, place) = (job.demand(), (job.waits_since, job.id));
        let key = (job.request.key, Size::of(&demand));
        self.index.insert(job.id, (key, job.waits_since));
        self.deadlines.insert((job.deadline, job.id));
        let bucket = self.buckets.entry(key).or_default();
        let sizes = self.sizes.entry(key.1).or_default();
        match bucket.first() {
            Some(first) if first < place => {}
            first => {
                sizes.buckets += usize::from(first.is_none());
                first.map(|first| self.by_age.remove(&first));
                self.by_age.insert(place, key);
            }
        }
        sizes.demand = sizes.demand.and(&demand);
        bucket.demand = bucket.demand.and(&demand);
        bucket.jobs.insert(place, job);
    }

    fn remove(&mut self, id: JobId) -> Option<Box<Job>> {
        let (key, since) = self.index.remove(&id)?;
        let bucket = self.buckets.get_mut(&key)?;
        let place = (since, id);
        let was_first = bucket.first() == Some(place);
        let job = bucket.jobs.remove(&place)?;
        let demand = job.demand();
        bucket.demand = bucket.demand.less(&demand);
        let next = bucket.first();
        if was_first {
            self.by_age.remove(&place);
            next.map(|next| self.by_age.insert(next, key));
        }
        if next.is_none() {
            self.buckets.remove(&key);
        }
        self.taken(key, &demand, next.is_none());
        self.deadlines.remove(&(job.deadline, id));
        Some(job)
    }

    /// Takes a bucket out, so that jobs can be taken from it.
    fn open(&mut self, bucket: &Bucket) -> Option<OpenBucket> {
        let key = (bucket.key, bucket.size);
        let bucket = self.buckets.remove(&key)?;
        Some(OpenBucket { key, was_first: bucket.first()?, bucket, taken: Demand::default() })
    }

    /// Puts a bucket back, unless all its jobs were taken.
    fn close(&mut self, OpenBucket { key, was_first, mut bucket, taken }: OpenBucket) {
        let first = bucket.first();
        self.taken(key, &taken, first.is_none());
        if first != Some(was_first) {
            self.by_age.remove(&was_first);
            first.map(|first| self.by_age.insert(first, key));
        }
        if first.is_some() {
            bucket.demand = bucket.demand.less(&taken);
            self.buckets.insert(key, bucket);
        }
    }

    /// Records that jobs with this demand were taken from a bucket, all of its jobs if `is_empty`.
    fn taken(&mut self, key: BucketKey, demand: &Demand, is_empty: bool) {
        if let Some(sizes) = self.sizes.get_mut(&key.1) {
            sizes.demand = sizes.demand.less(demand);
            sizes.buckets -= usize::from(is_empty);
            if sizes.buckets == 0 {
                self.sizes.remove(&key.1);
            }
        }
    }

    /// The job that was admitted first.
    fn oldest(&self) -> Option<&Job> {
        let (&id, (key, since)) = self.index.first_key_value()?;
        self.buckets.get(key)?.jobs.get(&(*since, id)).map(|job| &**job)
    }

    fn window(&self) -> impl Iterator<Item = Bucket> {
        self.by_age.iter().take(WINDOW).filter_map(|(&(since, _), &(key, size))| {
            let demand = self.buckets.get(&(key, size))?.demand;
            Some(Bucket { key, size, since, demand })
        })
    }
}

impl BucketJobs {
    fn first(&self) -> Option<Place> {
        self.jobs.first_key_value().map(|(place, _)| *place)
    }
}

#[cfg(test)]
mod tests {
    use pillion_protocol::frame::Options;

    use super::*;
    use crate::domain::{GenerationRequest, ModelId, Reply};

    const NO_LIMITS: Limits = Limits { members: 100, tokens: u64::MAX, bytes: usize::MAX };

    /// Takes a batch from the buckets that have the batch key of the oldest job.
    fn take(queue: &mut Queue, limits: &Limits) -> (Vec<u64>, Filled) {
        let key = queue.lines.values().next().unwrap().oldest().unwrap().request.key;
        let buckets: Vec<Bucket> = queue.window().into_iter().filter(|bucket| bucket.key == key).collect();
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
        assert_eq!(queue.window().len(), 2);
        assert_eq!(take(&mut queue, &Limits { members: 3, ..NO_LIMITS }), (vec![1, 2, 3], Filled::Members));
        let [left] = queue.window()[..] else { panic!("{:?}", queue.window()) };
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
        assert_eq!(queue.window()[0].since, now - Duration::from_secs(2));
        assert_eq!(take(&mut queue, &NO_LIMITS).0, [2, 1, 3]);
    }

    #[test]
    fn only_jobs_past_their_deadline_expire() {
        let mut queue = Queue::default();
        let now = soon();
        queue.push(job(1, 1.0, "text", now + Duration::from_millis(1)));
        queue.push(job(2, 1.0, "text", now));
        assert_eq!(ids(&queue.take_expired(now)), [2]);
        assert_eq!(queue.next_deadline(|_| true), Some(now + Duration::from_millis(1)));
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
        let served = Target { model: ModelId::new(2), ..Target::ANY };
        let mut named = job(2, 1.0, "text", now);
        named.request.key.target = served;
        queue.push(named);
        let unserved = |target: &Target| (*target != served).then_some(now);
        assert_eq!(ids(&queue.take_unserved(unserved, Duration::ZERO, now)), [1]);
    }

    #[test]
    fn a_removed_job_leaves_nothing_behind() {
        let mut queue = Queue::default();
        queue.push(job(1, 1.0, "text", soon()));
        assert!(queue.remove(JobId(1)).is_some());
        assert!(queue.remove(JobId(1)).is_none());
        assert!(queue.is_empty() && queue.next_deadline(|_| true).is_none() && queue.window().is_empty());
    }

    #[test]
    fn however_many_batch_keys_wait_few_buckets_are_looked_at_and_the_oldest_job_is_in_one_of_them() {
        let mut queue = Queue::default();
        let (keys, soon) = (6000, soon());
        (1..=keys).for_each(|id| queue.push(job(id, 1.0 + id as f32 / 1000.0, "text", soon)));
        let mut taken = Vec::new();
        while !queue.is_empty() {
            let window = queue.window();
            assert!(window.len() <= WINDOW);
            let oldest = window.iter().min_by_key(|bucket| bucket.since).unwrap();
            taken.extend(ids(&queue.take_batch(&[*oldest], &NO_LIMITS).0));
        }
        assert!(taken.iter().copied().eq(1..=keys));
    }

    #[test]
    fn sizes_sum_the_jobs_of_all_batch_keys() {
        let mut queue = Queue::default();
        let text = "as long as the others";
        for (id, penalty) in [(1, 1.0), (2, 1.0), (3, 1.1)] {
            queue.push(job(id, penalty, text, soon()));
        }
        let sizes = |queue: &Queue| {
            queue.sizes(|_| true).iter().map(|same| (same.demand.members, same.buckets)).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&queue), [(3, 2)]);
        queue.remove(JobId(3));
        assert_eq!(sizes(&queue), [(2, 1)]);
        assert!(queue.sizes(|_| false).is_empty());
        assert_eq!((queue.take_all().len(), queue.len()), (2, 0));
    }

    #[test]
    fn the_tokens_that_a_job_has_produced_count_as_bytes_of_the_batch() {
        let mut queue = Queue::default();
        for id in 1..=3 {
            let mut job = job(id, 1.0, "0123456789", soon());
            job.progress.produced = vec![7; 100];
            queue.push(job);
        }
        assert_eq!(take(&mut queue, &Limits { bytes: 1700, ..NO_LIMITS }), (vec![1, 2], Filled::Tokens));
    }
}
