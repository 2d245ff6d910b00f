//! The one task that owns the queue: it receives jobs, and sends batches to workers that have granted credit.
//!
//! [`scheduler`] returns the handle and the unspawned task. Plain data makes the decisions: [`Queue`] holds the
//! waiting jobs, [`Policy`] decides when a batch leaves, and [`Workers`] chooses its worker and its jobs. `events`
//! handles what links report, and `dispatch` sends batches.
//!
//! The scheduler's inbox is bounded. A request reserves two places in it at admission, one for its jobs and one for a
//! cancellation, so a cancellation never has to wait for a place.

pub mod batch;
mod dispatch;
mod events;
mod handle;
mod message;
pub mod models;
pub mod queue;
pub mod worker;
pub mod workers;

use std::sync::Arc;
use std::time::Duration;

use pillion_protocol::codec::MAX_BATCH_MEMBERS;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::warn;

pub use self::handle::{Handle, Stream};
use self::message::Message;
pub use self::message::{LinkCommand, LinkEvent, Serving, WorkerId};
use self::queue::Queue;
use self::workers::Workers;
use crate::admission::Admission;
use crate::domain::{BatchKey, Demand, Failure, Job, JobId, JobRange};
use crate::metrics::Metrics;
use crate::policy::{Policy, backlog};

/// The scheduler's settings.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The most members of a batch, 1 to [`MAX_BATCH_MEMBERS`].
    pub max_batch_size: usize,
    /// The longest that a batch is held because more jobs are expected.
    pub batch_timeout: Duration,
    /// The longest that a job waits while no suitable worker is connected.
    pub worker_wait: Duration,
    /// After this many suspicions, a job gets a last attempt, in which it runs alone. At least 1. With 1, the job fails at its
    /// first suspicion, without a last attempt.
    pub max_attempts: u32,
    /// The most requests that there can be at once. The size of the inbox follows from it.
    pub max_requests: usize,
}

/// The most messages that are handled before the scheduler looks at the queue again.
const MESSAGES_AT_ONCE: usize = 256;

/// The scheduler's state. [`run`](Self::run) is its task.
#[derive(Debug)]
pub struct Scheduler {
    settings: Settings,
    admission: Admission,
    metrics: Arc<Metrics>,
    inbox: mpsc::Receiver<Message>,
    serving: watch::Sender<Serving>,
    queue: Queue,
    workers: Workers,
    /// When the scheduler started.
    start: Instant,
    lost_workers: usize,
    policy: Policy,
    /// When admission control last got the pace.
    pace_updated: Instant,
}

/// A scheduler and its handle.
pub fn scheduler(settings: Settings, admission: Admission, metrics: Arc<Metrics>) -> (Handle, Scheduler) {
    // Two places for each request, and some for links, which wait for a place if all are taken.
    let (outbox, inbox) = mpsc::channel(settings.max_requests.saturating_mul(2).saturating_add(1024));
    let serving = watch::Sender::new(Serving::default());
    let handle = Handle::new(outbox, admission.clone(), serving.clone());
    let scheduler = Scheduler {
        settings,
        admission,
        metrics,
        inbox,
        serving,
        queue: Queue::default(),
        workers: Workers::default(),
        start: Instant::now(),
        lost_workers: 0,
        policy: Policy::new(settings.max_batch_size, settings.batch_timeout),
        pace_updated: Instant::now(),
    };
    (handle, scheduler)
}

impl Scheduler {
    /// Runs until it is closed or every handle is dropped. Jobs that still wait then fail.
    pub async fn run(mut self) {
        let mut messages = Vec::with_capacity(MESSAGES_AT_ONCE);
        let mut held_until = None;
        let mut next_release = None;
        loop {
            let wake = [self.next_due(), held_until, next_release].into_iter().flatten().min();
            tokio::select! {
                biased;
                received = self.inbox.recv_many(&mut messages, MESSAGES_AT_ONCE) => {
                    if received == 0 {
                        return;
                    }
                }
                () = sleep_until(wake) => {}
            }
            for message in messages.drain(..) {
                if matches!(message, Message::Close) {
                    return;
                }
                self.on_message(message);
            }
            let now = Instant::now();
            self.expire(now);
            held_until = self.dispatch(now);
            self.preempt(now);
            self.update_pace(now);
            next_release = self.release(now);
        }
    }

    fn on_message(&mut self, message: Message) {
        match message {
            Message::Submit(jobs, answered) => self.submit(jobs, answered),
            Message::Cancel(jobs) => self.cancel(&jobs),
            Message::ClientLeft(answered) => self.policy.returns.left(answered),
            Message::Link(worker, event) => self.on_link_event(worker, event),
            Message::Dump => self.dump(),
            Message::Close => {}
        }
    }

    fn submit(&mut self, jobs: Vec<Box<Job>>, answered: Option<Instant>) {
        let returns = &mut self.policy.returns;
        if let Some(job) = jobs.first() {
            match answered {
                Some(answered) => returns.returned(jobs.len(), answered, job.admitted),
                None => returns.came(jobs.len(), job.admitted),
            }
        }
        let own = jobs.iter().fold(Demand::default(), |all, job| all.and(&job.demand()));
        let first = jobs.first().map(|job| (job.request.key, job.deadline));
        let too_late = |(key, deadline)| self.too_late(&own, &key, deadline, Instant::now());
        if let Some(refusal) = first.and_then(too_late) {
            self.metrics.rejected_deadline.increment(1);
            jobs.into_iter().for_each(|job| job.reply.fail(refusal.clone()));
            return;
        }
        jobs.into_iter().for_each(|job| self.queue.push(job));
    }

    /// Passes the engines' time for a waiting text to admission control, which computes `Retry-After` from it.
    fn update_pace(&mut self, now: Instant) {
        const INTERVAL: Duration = Duration::from_millis(10);
        if self.queue.is_empty() || now < self.pace_updated + INTERVAL {
            return;
        }
        self.pace_updated = now;
        let engines = u32::try_from(self.workers.engines()).unwrap_or(u32::MAX);
        if let Some(worker) = self.workers.iter().find(|worker| !worker.released) {
            let time = backlog::time_for(&self.queue.buckets(), self.max_size(), |demand| worker.forecast.time(demand));
            let texts = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
            self.admission.set_pace(time / texts.max(1) / engines.max(1));
        }
    }

    /// The most members of a batch.
    fn max_size(&self) -> usize {
        self.settings.max_batch_size.min(MAX_BATCH_MEMBERS)
    }

    /// The refusal of a request that could not start before its deadline, since the jobs ahead of it take too long.
    fn too_late(&self, own: &Demand, key: &BatchKey, deadline: Instant, now: Instant) -> Option<Failure> {
        if self.workers.have_credit_for(key) {
            return None;
        }
        // Assumes the fastest worker and no running batches, so that no request is refused that might be in time.
        let fastest = self.workers.serving(key).min_by_key(|worker| worker.forecast.time(own))?;
        let time = |demand: &Demand| fastest.forecast.time(demand);
        let mut buckets = self.queue.buckets();
        buckets.retain(|bucket| bucket.key.may_share_a_worker(key));
        let ahead = backlog::ahead(&buckets, own, time);
        let engines = u32::try_from(self.workers.engines()).unwrap_or(u32::MAX);
        let begins_in = backlog::time_for(ahead.clone(), self.max_size(), time) / engines.max(1);
        let ahead = ahead.map(|bucket| bucket.demand.members).sum();
        (now + begins_in >= deadline)
            .then(|| Failure::TooLate { ahead, retry_after: self.admission.retry_after(begins_in) })
    }

    fn cancel(&mut self, jobs: &JobRange) {
        let mut not_queued = false;
        for id in jobs.clone() {
            match self.queue.remove(JobId(id)) {
                Some(_) => self.metrics.cancelled_queued.increment(1),
                None => not_queued = true,
            }
        }
        if not_queued {
            for worker in self.workers.iter() {
                // A full inbox means that the link is failing. The member then ends at its deadline.
                let _ = worker.link.try_send(LinkCommand::Cancel(jobs.clone()));
            }
        }
    }

    fn dump(&self) {
        let oldest = self.queue.oldest().map(|since| since.elapsed());
        warn!(queued = self.queue.len(), ?oldest, "dump: the queue");
        for worker in self.workers.iter() {
            let (id, model, credit, members) = (worker.id.0, &worker.hello.model, worker.credit, worker.members);
            warn!(worker = id, %model, credit, members, draining = worker.is_draining(), "dump: a worker");
            let _ = worker.link.try_send(LinkCommand::Dump);
        }
    }
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
