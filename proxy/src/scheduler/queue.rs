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

    /// The jobs with each target, by size.
    pub fn sizes(&self) -> impl Iterator<Item = (&Target, Vec<SameSize>)> {
        self.lines.iter().map(|(target, line)| (target, line.sizes.values().copied().collect()))
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
        let lines: Vec<_> = self.lines.keys().filter_map(|target| Some((*target, unserved(target)?))).collect();
        let mut taken = Vec::new();
        for (target, since) in lines {
            while let Some(oldest) = self.lines.get(&target).and_then(Line::oldest)
                && oldest.admitted.max(since) + wait <= now
            {
                let id = oldest.id;
                taken.extend(self.remove_from(target, id));
            }
        }
        taken
    }

    /// When the first job will have waited for a worker for `wait`.
    pub fn next_unserved(&self, unserved: impl Fn(&Target) -> Option<Instant>, wait: Duration) -> Option<Instant> {
        let first = |(target, line): (&Target, &Line)| Some(line.oldest()?.admitted.max(unserved(target)?) + wait);
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
mod tests;
