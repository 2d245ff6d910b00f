//! The one task that owns the queue: jobs come in, batches leave into the credit that workers grant.
//!
//! [`scheduler`] returns the handles and the unspawned task. What is decided is decided by plain data: [`Queue`] says who
//! can ride together, [`Policy`] says when, [`Workers`] says to whom. `events` takes in what links report, `dispatch` lets
//! batches leave.
//!
//! Its inbox is bounded. A request reserves its places there at admission, one for its jobs and one for their possible
//! cancellation, so a client that goes away never has to wait to say so.

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

pub use self::handle::{Handle, LinkPort, Stream};
use self::message::Message;
pub use self::message::{LinkCommand, LinkEvent, Serving, WorkerId};
use self::queue::Queue;
use self::workers::Workers;
use crate::admission::Admission;
use crate::domain::{BatchKey, Demand, Failure, Job, JobId, JobRange};
use crate::metrics::Metrics;
use crate::policy::{Policy, backlog};

/// How batches are made.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The most members of a batch, 1 to [`MAX_BATCH_MEMBERS`].
    pub max_batch_size: usize,
    /// The longest that a request may be held for companions.
    pub batch_timeout: Duration,
    /// The longest that a request waits while no worker is connected.
    pub worker_wait: Duration,
    /// How often workers may die with a job before having produced anything of it, at least 1.
    pub max_attempts: u32,
    /// The most requests there can be at once: the inbox is sized by it.
    pub max_requests: usize,
}

/// Messages dealt with before the scheduler looks at the queue again.
const MESSAGES_AT_ONCE: usize = 256;

/// The scheduler's state, and its task in [`run`](Batcher::run).
#[derive(Debug)]
pub struct Scheduler {
    settings: Settings,
    admission: Admission,
    metrics: Arc<Metrics>,
    inbox: mpsc::Receiver<Message>,
    serving: watch::Sender<Serving>,
    queue: Queue,
    workers: Workers,
    /// Since when it has run.
    start: Instant,
    lost_workers: usize,
    policy: Policy,
    /// When the admission was last told how fast texts are served.
    pace_updated: Instant,
}

/// A scheduler with its handles: for requests, and for links.
pub fn scheduler(settings: Settings, admission: Admission, metrics: Arc<Metrics>) -> (Handle, LinkPort, Scheduler) {
    // Two places a request, and some for links, which wait for theirs.
    let (outbox, inbox) = mpsc::channel(settings.max_requests.saturating_mul(2).saturating_add(1024));
    let (serving, seen) = watch::channel(Serving::default());
    let handle = Handle::new(outbox.clone(), admission.clone(), seen);
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
    (handle, LinkPort::new(outbox), scheduler)
}

impl Scheduler {
    /// Runs until it is closed, or every handle is dropped. Whoever still waits then hears of it.
    pub async fn run(mut self) {
        let mut messages = Vec::with_capacity(MESSAGES_AT_ONCE);
        let mut held = None;
        let mut leave = None;
        loop {
            let wake = [self.next_due(), held, leave].into_iter().flatten().min();
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
                self.take(message);
            }
            let now = Instant::now();
            self.expire(now);
            held = self.dispatch(now);
            self.preempt(now);
            self.update_pace(now);
            leave = self.release(now);
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Submit(jobs, answered) => self.submit(jobs, answered),
            Message::Cancel(jobs) => self.cancel(&jobs),
            Message::Left(answered) => self.policy.returns.left(answered),
            Message::Link(worker, event) => self.hear(worker, event),
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

    /// What a text that waits will take of the engines' time, for those who must be told when to come back.
    fn update_pace(&mut self, now: Instant) {
        const OFTEN: Duration = Duration::from_millis(10);
        if self.queue.is_empty() || now < self.pace_updated + OFTEN {
            return;
        }
        self.pace_updated = now;
        let engines = u32::try_from(self.workers.engines()).unwrap_or(u32::MAX);
        if let Some(worker) = self.workers.iter().find(|worker| !worker.released) {
            let time = backlog::time_for(&self.queue.buckets(), self.most(), |demand| worker.forecast.time(demand));
            let texts = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
            self.admission.set_pace(time / texts.max(1) / engines.max(1));
        }
    }

    /// The most members of a batch.
    fn most(&self) -> usize {
        self.settings.max_batch_size.min(MAX_BATCH_MEMBERS)
    }

    /// Why a request whose texts ask for all this is not let in: those before it will take until after its deadline.
    fn too_late(&self, own: &Demand, key: &BatchKey, deadline: Instant, now: Instant) -> Option<Failure> {
        if self.workers.have_credit_for(key) {
            return None;
        }
        // The fastest, and nothing of the batches that run: nobody is refused who might have been in time.
        let fastest = self.workers.serving(key).min_by_key(|worker| worker.forecast.time(own))?;
        let time = |demand: &Demand| fastest.forecast.time(demand);
        let mut buckets = self.queue.buckets();
        buckets.retain(|bucket| bucket.key.may_share_a_worker(key));
        let ahead = backlog::ahead(&buckets, own, time);
        let engines = u32::try_from(self.workers.engines()).unwrap_or(u32::MAX);
        let begins_in = backlog::time_for(ahead.clone(), self.most(), time) / engines.max(1);
        let ahead = ahead.map(|bucket| bucket.demand.members).sum();
        (now + begins_in >= deadline)
            .then(|| Failure::TooLate { ahead, retry_after: self.admission.retry_after(begins_in) })
    }

    fn cancel(&mut self, jobs: &JobRange) {
        let mut elsewhere = false;
        for id in jobs.clone() {
            match self.queue.remove(JobId(id)) {
                Some(_) => self.metrics.cancelled_queued.increment(1),
                None => elsewhere = true,
            }
        }
        if elsewhere {
            for worker in self.workers.iter() {
                // A full inbox means a link that is failing; the member then ends with its deadline.
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
