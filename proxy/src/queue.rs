//! The jobs that wait. Plain data; the instant is passed in.
//!
//! Every operation is logarithmic in the number waiting. A job's number says its age, so a job that comes back from a
//! worker that died takes its old place.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::job::{Class, Job, JobId};
use crate::policy::forecast::Asked;

/// Jobs that wait, in order of age within their class.
#[derive(Debug, Default)]
pub struct Queue {
    /// Every job's class, the oldest job first: also the index by number.
    order: BTreeMap<JobId, Class>,
    classes: HashMap<Class, BTreeMap<JobId, Box<Job>>>,
    deadlines: BTreeSet<(Instant, JobId)>,
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
    /// Nobody else of its class was waiting.
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
        self.order.insert(job.id, job.ask.class);
        self.deadlines.insert((job.deadline, job.id));
        self.classes.entry(job.ask.class).or_default().insert(job.id, job);
    }

    /// Takes a job out, if it waits.
    pub fn remove(&mut self, id: JobId) -> Option<Box<Job>> {
        let class = self.order.remove(&id)?;
        let jobs = self.classes.get_mut(&class)?;
        let job = jobs.remove(&id)?;
        if jobs.is_empty() {
            self.classes.remove(&class);
        }
        self.deadlines.remove(&(job.deadline, id));
        Some(job)
    }

    /// How many wait in the oldest job's class, the oldest's number and since when it waits.
    pub fn head(&self) -> Option<Head> {
        let (&id, class) = self.order.first_key_value()?;
        let jobs = self.classes.get(class)?;
        let oldest = jobs.get(&id)?;
        let mut asked = Asked::default();
        oldest.add_to(&mut asked);
        Some(Head { waiting: jobs.len(), since: oldest.admitted, asked })
    }

    /// Takes the oldest job and the next oldest of its class, as many as `limits` allow; never an empty batch while
    /// somebody waits: a job larger than the limits goes alone.
    pub fn take_batch(&mut self, limits: &Limits) -> Option<(Vec<Box<Job>>, Filled)> {
        let class = *self.order.first_key_value()?.1;
        let mut batch = Vec::with_capacity(self.classes.get(&class)?.len().min(limits.members));
        let (mut tokens, mut bytes) = (0, 0);
        let filled = loop {
            let Some((&id, next)) = self.classes.get(&class).and_then(BTreeMap::first_key_value) else {
                break Filled::Everyone;
            };
            if batch.len() >= limits.members.max(1) {
                break Filled::Members;
            }
            tokens += next.ask.estimated_tokens();
            bytes += next.ask.bytes();
            if !batch.is_empty() && (tokens > limits.tokens || bytes > limits.bytes) {
                break Filled::Tokens;
            }
            batch.extend(self.remove(id));
        };
        Some((batch, filled))
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

    /// Takes out the jobs that have waited for a worker as long as they may: none has been connected since
    /// `no_worker_since`, and they were admitted at least `wait` ago.
    pub fn take_unserved(&mut self, now: Instant, no_worker_since: Instant, wait: Duration) -> Vec<Box<Job>> {
        let mut unserved = Vec::new();
        while let Some(head) = self.head()
            && head.since.max(no_worker_since) + wait <= now
        {
            let oldest = self.order.first_key_value().map(|(&id, _)| id);
            unserved.extend(oldest.and_then(|id| self.remove(id)));
        }
        unserved
    }

    /// The earliest deadline of a job that waits.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }
}

/// What a policy needs to know of the batch that would leave next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Jobs of the oldest job's class.
    pub waiting: usize,
    /// When the oldest was admitted.
    pub since: Instant,
    /// What the oldest asks for.
    pub asked: Asked,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pillion_protocol::frame::{Options, Prompt};

    use super::*;
    use crate::job::{Ask, Progress, Reply};

    const NO_LIMITS: Limits = Limits { members: 100, tokens: u64::MAX, bytes: usize::MAX };

    fn job(id: u64, penalty: f32, text: &str, deadline: Instant) -> Box<Job> {
        let options = Options { repetition_penalty: penalty, ..Options::default() };
        Box::new(Job {
            id: JobId(id),
            ask: Ask {
                prompt: Prompt::Text(text.into()),
                class: Class::new(&options, 0),
                max_new_tokens: 10,
                stop: Arc::new([]),
            },
            admitted: deadline - Duration::from_secs(60),
            deadline,
            progress: Progress::default(),
            attempts: 0,
            slot: None,
            reply: Reply::new().0,
        })
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
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
        let (batch, filled) = queue.take_batch(&NO_LIMITS).unwrap();
        assert_eq!((ids(&batch), filled), (vec![1, 4], Filled::Everyone));
        assert_eq!(ids(&queue.take_batch(&NO_LIMITS).unwrap().0), [2, 3]);
        assert!(queue.take_batch(&NO_LIMITS).is_none());
    }

    #[test]
    fn a_batch_stops_at_its_limits() {
        let mut queue = Queue::default();
        (0..5).for_each(|id| queue.push(job(id, 1.0, "0123456789", soon())));
        let (batch, filled) = queue.take_batch(&Limits { members: 2, ..NO_LIMITS }).unwrap();
        assert_eq!((ids(&batch), filled), (vec![0, 1], Filled::Members));
        let (batch, filled) = queue.take_batch(&Limits { bytes: 25, ..NO_LIMITS }).unwrap();
        assert_eq!((ids(&batch), filled), (vec![2, 3], Filled::Tokens));
    }

    #[test]
    fn a_job_larger_than_the_limits_goes_alone() {
        let mut queue = Queue::default();
        (0..2).for_each(|id| queue.push(job(id, 1.0, "a long text", soon())));
        let (batch, filled) = queue.take_batch(&Limits { members: 9, tokens: 1, bytes: 1 }).unwrap();
        assert_eq!((ids(&batch), filled), (vec![0], Filled::Tokens));
    }

    #[test]
    fn a_job_that_comes_back_takes_its_old_place() {
        let mut queue = Queue::default();
        (5..8).for_each(|id| queue.push(job(id, 1.0, "text", soon())));
        queue.push(job(2, 1.0, "text", soon()));
        assert_eq!(ids(&queue.take_batch(&NO_LIMITS).unwrap().0), [2, 5, 6, 7]);
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
        assert!(queue.take_unserved(admitted + Duration::from_secs(39), lost, wait).is_empty());
        assert_eq!(ids(&queue.take_unserved(admitted + Duration::from_secs(40), lost, wait)), [1]);
    }

    #[test]
    fn a_removed_job_leaves_nothing_behind() {
        let mut queue = Queue::default();
        queue.push(job(1, 1.0, "text", soon()));
        assert!(queue.remove(JobId(1)).is_some());
        assert!(queue.remove(JobId(1)).is_none());
        assert!(queue.is_empty() && queue.next_deadline().is_none() && queue.classes.is_empty());
    }
}
