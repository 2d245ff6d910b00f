//! The one task that owns the queue: it receives jobs, and sends batches to workers that have granted credit.
//!
//! [`scheduler`] returns the handle and the unspawned task. Plain data makes the decisions: [`Queue`] holds the
//! waiting jobs, the [`Policy`](crate::policy::Policy) of each model decides when a batch leaves, and [`Workers`] chooses its
//! worker and its jobs. `events` handles what links report, and `dispatch` sends batches.
//!
//! The scheduler's inbox is bounded. A request reserves two places in it at admission, one for its jobs and one for a
//! cancellation, so a cancellation never has to wait for a place.

pub mod batch;
mod dispatch;
mod events;
mod handle;
mod message;
pub mod models;
mod policies;
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
use self::policies::Policies;
use self::queue::Queue;
use self::worker::Worker;
use self::workers::Workers;
use crate::admission::Admission;
use crate::domain::{Answered, Demand, Failure, Job, JobId, JobRange, ModelId, Target};
use crate::metrics::Metrics;
use crate::policy::backlog::{self, SameSize};

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
    policies: Policies,
    /// When admission control was last told how long texts wait.
    backlog_told: Instant,
    /// Whether the proxy serves no more.
    is_closed: bool,
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
        policies: Policies::new(settings.max_batch_size, settings.batch_timeout),
        backlog_told: Instant::now(),
        is_closed: false,
    };
    (handle, scheduler)
}

impl Scheduler {
    /// Runs until every handle is dropped. Jobs that still wait then fail.
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
                self.on_message(message);
            }
            let now = Instant::now();
            self.expire(now);
            held_until = self.dispatch(now);
            self.preempt(now);
            self.tell_backlog(now);
            next_release = self.release(now);
        }
    }

    fn on_message(&mut self, message: Message) {
        match message {
            Message::Submit(jobs, answered) => self.submit(jobs, answered),
            Message::Cancel(jobs) => self.cancel(&jobs),
            Message::ClientLeft(answered) => {
                let model = self.model(answered.model);
                self.policies.of(model).returns.left(answered.at);
            }
            Message::Link(worker, event) => self.on_link_event(worker, event),
            Message::Dump => self.dump(),
            Message::Close => self.close(),
        }
    }

    /// Serves no more: all jobs fail, and the links, whose inboxes close, say goodbye to their workers.
    fn close(&mut self) {
        self.is_closed = true;
        for worker in std::mem::take(&mut self.workers).iter() {
            self.metrics.workers_connected(&worker.hello.model).decrement(1.0);
        }
        self.queue.take_all().into_iter().for_each(|job| job.reply.fail(Failure::ShutDown));
    }

    fn submit(&mut self, jobs: Vec<Box<Job>>, answered: Option<Answered>) {
        let Some(first) = jobs.first() else { return };
        if self.is_closed {
            return jobs.into_iter().for_each(|job| job.reply.fail(Failure::ShutDown));
        }
        let (target, deadline, admitted) = (first.request.key.target, first.deadline, first.admitted);
        self.policies.concerns(target.model);
        self.expect(jobs.len(), self.model(target.model), answered, admitted);
        let own = jobs.iter().fold(Demand::default(), |all, job| all.and(&job.demand()));
        if let Some(refusal) = self.too_late(&own, &target, deadline, Instant::now()) {
            self.metrics.rejected_deadline.increment(1);
            return jobs.into_iter().for_each(|job| job.reply.fail(refusal.clone()));
        }
        jobs.into_iter().for_each(|job| self.queue.push(job));
    }

    /// Tells the policies that texts for a model have come.
    fn expect(&mut self, texts: usize, model: ModelId, answered: Option<Answered>, now: Instant) {
        match answered.map(|answered| (self.model(answered.model), answered.at)) {
            Some((before, at)) if before == model => return self.policies.of(model).returns.returned(texts, at, now),
            // The client asks for another model now, and may come back to this one.
            Some((before, at)) => self.policies.of(before).returns.left(at),
            None => {}
        }
        self.policies.of(model).returns.came(texts, now);
    }

    /// The model whose policy counts requests for `asked`. Those for any model count for the one that came first, although
    /// each model may serve them: it is rare to have several models and not to choose.
    fn model(&self, asked: ModelId) -> ModelId {
        if asked != ModelId::ANY {
            return asked;
        }
        self.workers.iter().map(|worker| worker.model.model).min().unwrap_or(asked)
    }

    /// Tells admission control how long the engines of each model take for the texts that wait. `Retry-After` follows from it.
    fn tell_backlog(&mut self, now: Instant) {
        const INTERVAL: Duration = Duration::from_millis(10);
        if self.queue.is_empty() || now < self.backlog_told + INTERVAL {
            return;
        }
        self.backlog_told = now;
        let of_model = |model: ModelId| {
            let worker = self.workers.iter().find(|worker| !worker.released && worker.model.model == model)?;
            let asked = Target { model, ..Target::ANY };
            let (time, texts) = self.time_before(&asked, worker, |sizes| sizes);
            // Without a measurement the time is zero.
            (texts == 0 || !time.is_zero()).then_some((model, time))
        };
        let by_model = self.workers.models().into_iter().filter_map(of_model).collect();
        self.admission.set_backlog(by_model, self.queue.len());
    }

    /// The most members of a batch.
    fn max_size(&self) -> usize {
        self.settings.max_batch_size.min(MAX_BATCH_MEMBERS)
    }

    /// The refusal of a request that could not start before its deadline, since the jobs ahead of it take too long.
    fn too_late(&self, own: &Demand, target: &Target, deadline: Instant, now: Instant) -> Option<Failure> {
        if self.workers.have_credit_for(target) {
            return None;
        }
        // Assumes the fastest worker and no running batches, so that no request is refused that might be in time.
        let fastest = self.workers.serving(target).min_by_key(|worker| worker.forecast.time(own))?;
        let ahead = |sizes| backlog::ahead(sizes, own, |demand| fastest.forecast.time(demand));
        let (begins_in, ahead) = self.time_before(target, fastest, ahead);
        (now + begins_in >= deadline)
            .then(|| Failure::TooLate { ahead, retry_after: self.admission.retry_after(begins_in) })
    }

    /// How long the engines take for the waiting jobs that go before those with this target, and how many these are. `worker`
    /// has the forecast; `chosen` picks the jobs among those that could take the same engines.
    fn time_before(
        &self,
        target: &Target,
        worker: &Worker,
        chosen: impl Fn(Vec<SameSize>) -> Vec<SameSize>,
    ) -> (Duration, usize) {
        let (mut all, mut texts) = (Duration::ZERO, 0);
        for (other, sizes) in self.queue.sizes().filter(|(other, _)| other.may_share_a_worker(target)) {
            let sizes = chosen(sizes);
            let time = backlog::time_for(&sizes, self.max_size(), |demand| worker.forecast.time(demand));
            let serving = self.workers.serving(other);
            let engines = serving.fold(0, |engines: u32, worker| engines.saturating_add(worker.hello.slots));
            all = all.saturating_add(time / engines.max(1));
            texts += sizes.iter().map(|same| same.demand.members).sum::<usize>();
        }
        (all, texts)
    }

    fn cancel(&mut self, jobs: &JobRange) {
        let mut queued = 0;
        for job in jobs.clone().filter_map(|id| self.queue.remove(JobId(id))) {
            self.policies.concerns(job.request.key.target.model);
            queued += 1;
        }
        self.metrics.cancelled_queued.increment(queued);
        if queued < jobs.end - jobs.start {
            self.workers.cancel(jobs);
        }
    }

    fn dump(&self) {
        let oldest = self.queue.oldest().map(|since| since.elapsed());
        warn!(queued = self.queue.len(), ?oldest, "dump: the queue");
        for worker in self.workers.iter() {
            let (id, model, credit, members) = (worker.id.0, &worker.hello.model, worker.credit, worker.members);
            warn!(worker = id, %model, credit, members, draining = worker.is_draining(), "dump: a worker");
            let _ = worker.link.send(LinkCommand::Dump);
        }
    }
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
