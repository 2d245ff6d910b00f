//! The one task that owns the queue: jobs come in, batches leave into the credit that workers grant.
//!
//! [`batcher`] returns the handles and the unspawned task. What is decided is decided by plain data: [`Queue`] says who
//! can ride together, [`Policy`] says when, [`Workers`] says to whom.
//!
//! Its inbox is bounded. A request reserves its places there at admission, one for its jobs and one for their possible
//! cancellation, so a client that goes away never has to wait to say so.

mod handle;
pub mod models;
pub mod workers;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pillion_protocol::BatchId;
use pillion_protocol::codec::{MAX_BATCH_MEMBERS, MAX_BATCH_TEXT};
use pillion_protocol::frame::Hello;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

pub use self::handle::{About, Handle, LinkPort, Past, Stream, Ticket};
use self::models::Models;
use self::workers::{WorkerId, Workers};
use crate::admission::Admission;
use crate::job::{Class, Failure, Job, JobRange, ModelId, Trial};
use crate::link::inflight::{Arrival, Departure};
use crate::metrics::{Metrics, Trigger};
use crate::policy::forecast::Asked;
use crate::policy::{Decision, Policy, View, backlog};
use crate::queue::{Filled, Limits, Queue};

/// How batches are made.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The most members of a batch, 1 to [`MAX_BATCH_MEMBERS`].
    pub max_batch_size: usize,
    /// The longest that a request may be held for companions.
    pub batch_timeout: Duration,
    /// The longest that a request waits while no worker is connected.
    pub worker_wait: Duration,
    /// How often a job is sent to a worker before it fails, at least 1.
    pub max_attempts: u32,
    /// The most requests there can be at once: the inbox is sized by it.
    pub max_requests: usize,
}

/// To the batcher.
#[derive(Debug)]
enum Message {
    /// Jobs of one request, and when its client had its answer to the request before, if there was one.
    Submit(Vec<Box<Job>>, Option<Instant>),
    /// The request's client went away.
    Cancel(JobRange),
    /// A client that had its last answer at this instant has closed its connection.
    Left(Instant),
    /// From a link.
    Link(WorkerId, FromLink),
    /// Log what waits.
    Dump,
    /// End: whoever still waits hears of it.
    Close,
}

/// From a link to the batcher.
#[derive(Debug)]
pub enum FromLink {
    /// A worker is connected; this is its link's inbox.
    Up(Hello, mpsc::Sender<ToLink>),
    /// It will take so many batches more.
    Credit(u32),
    /// So many members of a batch have ended, well or badly.
    Ended(BatchId, usize),
    /// A batch is done.
    Done(Arrival),
    /// So many members of a batch were given back though the worker lives; the jobs among them that clients wait for go
    /// on.
    Yielded(BatchId, usize, Vec<Box<Job>>),
    /// It wants to leave.
    Draining,
    /// The connection has ended; these were in flight, each in this batch, or had not been sent yet.
    Down(Vec<(Option<BatchId>, Box<Job>)>),
}

/// From the batcher to a link.
#[derive(Debug)]
pub enum ToLink {
    /// A batch, paid for with one credit.
    Batch(Vec<Box<Job>>, Departure),
    /// Clients of these jobs went away.
    Cancel(JobRange),
    /// The members of a batch that have not ended are wanted back.
    Yield(BatchId),
    /// The worker may leave.
    Release,
    /// Log what is in flight.
    Dump,
}

/// Who is there to serve.
#[derive(Clone, Debug, Default)]
pub struct Serving {
    /// Workers that are connected and take batches.
    pub workers: usize,
    /// The models that they have, or had.
    pub models: Models,
}

/// Messages dealt with before the batcher looks at the queue again.
const MESSAGES_AT_ONCE: usize = 256;

/// The batcher's state, and its task in [`run`](Batcher::run).
#[derive(Debug)]
pub struct Batcher {
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
    reckoned: Instant,
}

/// A batcher with its handles: for requests, and for links.
pub fn batcher(settings: Settings, admission: Admission, metrics: Arc<Metrics>) -> (Handle, LinkPort, Batcher) {
    // Two places a request, and some for links, which wait for theirs.
    let (outbox, inbox) = mpsc::channel(settings.max_requests.saturating_mul(2).saturating_add(1024));
    let (serving, seen) = watch::channel(Serving::default());
    let handle = Handle::new(outbox.clone(), admission.clone(), seen);
    let batcher = Batcher {
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
        reckoned: Instant::now(),
    };
    (handle, LinkPort::new(outbox), batcher)
}

impl Batcher {
    /// Runs until it is closed, or every handle is dropped. Whoever still waits then hears of it.
    pub async fn run(mut self) {
        let mut messages = Vec::with_capacity(MESSAGES_AT_ONCE);
        let mut held = None;
        loop {
            let wake = [self.next_due(), held].into_iter().flatten().min();
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
            self.reckon(now);
            self.release();
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Submit(jobs, answered) => self.submit(jobs, answered),
            Message::Cancel(jobs) => self.cancel(&jobs),
            Message::Left(answered) => self.policy.returns.left(answered),
            Message::Link(worker, news) => self.hear(worker, news),
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
        let own = jobs.iter().fold(Asked::default(), |all, job| all.and(&job.asked()));
        let first = jobs.first().map(|job| (job.ask.class, job.deadline));
        let too_late = |(class, deadline)| self.too_late(&own, &class, deadline, Instant::now());
        if let Some(refusal) = first.and_then(too_late) {
            self.metrics.rejected_deadline.increment(1);
            jobs.into_iter().for_each(|job| job.reply.fail(refusal.clone()));
            return;
        }
        jobs.into_iter().for_each(|job| self.queue.push(job));
    }

    fn hear(&mut self, id: WorkerId, news: FromLink) {
        match news {
            FromLink::Up(hello, link) => {
                self.metrics.workers_connected(&hello.model).increment(1.0);
                if self.lost_workers > 0 {
                    self.lost_workers -= 1;
                    self.metrics.worker_reconnects.increment(1);
                }
                let mut model = ModelId::ANY;
                self.serving.send_modify(|serving| model = serving.models.announced(&hello, SystemTime::now()));
                self.workers.add(id, hello, model, link, Instant::now());
            }
            FromLink::Credit(grant) => {
                if let Some(worker) = self.workers.get_mut(id) {
                    worker.credit = worker.credit.saturating_add(grant);
                }
            }
            FromLink::Ended(batch, members) => {
                self.policy.returns.answered(members, Instant::now());
                if let Some(worker) = self.workers.get_mut(id) {
                    worker.ended(batch, members);
                }
            }
            FromLink::Done(Arrival { departure, outcome, .. }) => {
                self.policy.ended(departure.asked.members, Instant::now());
                self.policy.preemption.worked(Duration::from_micros(outcome.cost.engine_us));
                if let Some(worker) = self.workers.get_mut(id) {
                    worker.done(&departure, &outcome, Instant::now());
                }
            }
            FromLink::Yielded(batch, members, jobs) => {
                let gives_way = self.workers.get_mut(id).is_some_and(|worker| {
                    worker.ended(batch, members);
                    worker.gives_way(batch)
                });
                let resumed = if gives_way { &self.metrics.resumed_preempted } else { &self.metrics.resumed_yielded };
                resumed.increment(jobs.len() as u64);
                // Nothing went wrong: it does not count as an attempt.
                for mut job in jobs {
                    job.attempts = job.attempts.saturating_sub(1);
                    if gives_way {
                        job.gave_way += 1;
                        job.waits_since = Instant::now();
                    }
                    self.come_back(job);
                }
            }
            FromLink::Draining => {
                if let Some(worker) = self.workers.get_mut(id) {
                    worker.draining = true;
                }
            }
            FromLink::Down(jobs) => self.lose(id, jobs),
        }
        self.tell_ready();
    }

    /// A worker is gone. What it had goes on elsewhere, except what it may have died of too often.
    fn lose(&mut self, id: WorkerId, jobs: Vec<(Option<BatchId>, Box<Job>)>) {
        let worker = self.workers.remove(id, Instant::now());
        if let Some(worker) = &worker {
            self.metrics.workers_connected(&worker.hello.model).decrement(1.0);
            self.serving.send_modify(|serving| serving.models.left(worker.kind.model));
            self.lost_workers += 1;
        }
        // One that wanted to leave has been told to by somebody: whoever stops it then has not died of its work.
        let died = worker.filter(|worker| !worker.draining);
        for (batch, mut job) in jobs {
            let was_served = batch.is_some_and(|batch| died.as_ref().is_some_and(|worker| worker.runs(batch)));
            match if was_served { job.strike(self.settings.max_attempts) } else { Ok(()) } {
                Ok(()) => {
                    self.metrics.resumed_worker_lost.increment(1);
                    self.come_back(job);
                }
                Err(failure) => {
                    warn!(job = job.id.0, strikes = job.strikes, "workers have died with it: it is not tried again");
                    job.reply.fail(failure);
                }
            }
        }
    }

    /// A job whose attempt ended early goes on waiting: in its old place, or from now on where it gave way.
    fn come_back(&mut self, mut job: Box<Job>) {
        if job.reply.is_abandoned() {
            self.metrics.cancelled_running.increment(1);
        } else if let Err(failure) = job.come_back() {
            job.reply.fail(failure);
        } else {
            job.slot = Some(self.admission.readmit());
            self.queue.push(job);
        }
    }

    fn tell_ready(&mut self) {
        let serving = self.workers.iter().filter(|worker| !worker.released).count();
        self.serving.send_if_modified(|known| std::mem::replace(&mut known.workers, serving) != serving);
    }

    /// What a text that waits will take of the engines' time, for those who must be told when to come back.
    fn reckon(&mut self, now: Instant) {
        const OFTEN: Duration = Duration::from_millis(10);
        if self.queue.is_empty() || now < self.reckoned + OFTEN {
            return;
        }
        self.reckoned = now;
        let engines = u32::try_from(self.workers.engines()).unwrap_or(u32::MAX);
        if let Some(worker) = self.workers.iter().find(|worker| !worker.released) {
            let time = backlog::time_for(&self.queue.cells(), self.most(), |asked| worker.forecast.time(asked));
            let texts = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
            self.admission.set_pace(time / texts.max(1) / engines.max(1));
        }
    }

    /// The most members of a batch.
    fn most(&self) -> usize {
        self.settings.max_batch_size.min(MAX_BATCH_MEMBERS)
    }

    /// Why a request whose texts ask for all this is not let in: those before it will take until after its deadline.
    fn too_late(&self, own: &Asked, class: &Class, deadline: Instant, now: Instant) -> Option<Failure> {
        if self.workers.have_credit_for(class) {
            return None;
        }
        // The fastest, and nothing of the batches that run: nobody is refused who might have been in time.
        let fastest = self.workers.serving(class).min_by_key(|worker| worker.forecast.time(own))?;
        let time = |asked: &Asked| fastest.forecast.time(asked);
        let mut cells = self.queue.cells();
        cells.retain(|cell| cell.class.may_share_a_worker(class));
        let ahead = backlog::ahead(&cells, own, time);
        let engines = u32::try_from(self.workers.engines()).unwrap_or(u32::MAX);
        let retry_after = backlog::time_for(ahead.clone(), self.most(), time) / engines.max(1);
        let ahead = ahead.map(|cell| cell.asked.members).sum();
        (now + retry_after >= deadline).then_some(Failure::TooLate { ahead, retry_after })
    }

    fn cancel(&mut self, jobs: &JobRange) {
        let mut elsewhere = false;
        for id in jobs.clone() {
            match self.queue.remove(crate::job::JobId(id)) {
                Some(_) => self.metrics.cancelled_queued.increment(1),
                None => elsewhere = true,
            }
        }
        if elsewhere {
            for worker in self.workers.iter() {
                // A full inbox means a link that is failing; the member then ends with its deadline.
                let _ = worker.link.try_send(ToLink::Cancel(jobs.clone()));
            }
        }
    }

    fn expire(&mut self, now: Instant) {
        for job in self.queue.take_expired(now) {
            job.reply.fail(Failure::Deadline);
        }
        let unserved = |class: &Class| self.workers.unserved_since(class, self.start);
        for job in self.queue.take_unserved(unserved, self.settings.worker_wait, now) {
            let is_tied = job.ask.class.is_tied();
            job.reply.fail(if is_tied { Failure::ModelGone } else { Failure::NoWorker });
        }
    }

    /// The next instant at which something is due though nothing happens.
    fn next_due(&self) -> Option<Instant> {
        let unserved = |class: &Class| self.workers.unserved_since(class, self.start);
        let unserved = self.queue.next_unserved(unserved, self.settings.worker_wait).map(|(due, _)| due);
        [self.queue.next_deadline(), unserved].into_iter().flatten().min()
    }

    /// Every free credit takes what waits, as far as the policy allows. Until when the policy holds the next batch back,
    /// if it does.
    fn dispatch(&mut self, now: Instant) -> Option<Instant> {
        loop {
            if self.queue.is_empty() {
                self.policy.nobody_waits();
                return None;
            }
            if !self.workers.have_credit() {
                return None;
            }
            let most = self.most();
            let rate = self.policy.texts_per_second(now);
            let (id, company) = self.workers.next(&self.queue.cells(), most, rate, now)?;
            let asked = company.asked;
            let engines = self.workers.engines();
            let (kind, trial) = (self.workers.get_mut(id)?.kind, company.trial());
            let share = self.workers.share(&asked, kind);
            let worker = self.workers.get_mut(id)?;
            let (ending, ends_in) = worker.ending(now);
            let (fixed_cost, member_cost) = worker.forecast.costs(&asked);
            let arriving = self.admission.count_arriving();
            let first = self.queue.next_deadline().map(|deadline| deadline.saturating_duration_since(now));
            let slack = first.map(|left| left.saturating_sub(ends_in + company.time));
            let waiting = company.waiting;
            let (time, is_due, latest) = (company.time, company.is_due(now), worker.latest_costs());
            let view = View {
                waiting,
                arriving,
                fixed_cost,
                member_cost,
                engines,
                ending,
                ends_in,
                time,
                is_due,
                latest,
                slack,
            };
            let was_held = match self.policy.decide(&view, now) {
                Decision::HoldUntil(until) => return Some(until),
                Decision::Go { held } => held,
            };
            let limits = Limits {
                members: most.min(share).min(trial.most()),
                tokens: u64::from(worker.hello.max_batch_tokens),
                bytes: MAX_BATCH_TEXT,
            };
            // A link without room is one that has ended; its last word, which takes the worker out, is on its way.
            let link = worker.link.clone();
            let Ok(room) = link.try_reserve() else {
                worker.credit = 0;
                continue;
            };
            let (mut jobs, filled) = self.queue.take_batch(&company.cells, &limits);
            let members = jobs.len();
            jobs.retain_mut(|job| match job.leave_queue(&worker.fingerprint, members, now) {
                Ok(()) => true,
                Err(failure) => {
                    job.reply.take().fail(failure);
                    false
                }
            });
            if jobs.is_empty() {
                continue;
            }
            let trigger = match filled {
                Filled::Members if jobs.len() == most => Trigger::Full,
                Filled::Tokens => Trigger::Tokens,
                _ if was_held => Trigger::Hold,
                _ => Trigger::Idle,
            };
            self.metrics.batch(trigger, jobs.len());
            let mut asked = Asked::default();
            let may_give_way = !is_due && jobs.iter().all(|job| job.may_give_way());
            let resumable_before = jobs.iter().map(|job| job.deadline).min().filter(|_| may_give_way);
            for job in &jobs {
                asked = asked.and(&job.asked());
                self.metrics.queue_duration.record((now - job.admitted).as_secs_f64());
            }
            let departure = worker.take(asked, resumable_before, now);
            if trial != Trial::None {
                worker.isolate(departure.batch);
                warn!(
                    worker = id.0,
                    batch = departure.batch.0,
                    members = jobs.len(),
                    "workers have died with these: apart"
                );
            }
            room.send(ToLink::Batch(jobs, departure));
        }
    }

    /// A batch of which little is left gives way to those who wait, where that pays.
    fn preempt(&mut self, now: Instant) {
        if self.queue.is_empty() {
            return;
        }
        let told = self.workers.should_give_way(&self.queue.cells(), self.most(), &self.policy, now);
        if let Some((id, batch, remains)) = told
            && let Some(worker) = self.workers.get_mut(id)
            && worker.link.try_send(ToLink::Yield(batch)).is_ok()
        {
            worker.give_way(batch);
            self.policy.preemption.spend(&remains);
        }
    }

    fn release(&mut self) {
        if !self.workers.iter().any(|worker| worker.draining && !worker.released) {
            return;
        }
        for id in self.workers.releasable(&self.queue.classes()) {
            if let Some(worker) = self.workers.get_mut(id)
                && worker.link.try_send(ToLink::Release).is_ok()
            {
                self.workers.release(id, Instant::now());
                info!(worker = id.0, "the worker may leave");
            }
        }
        self.tell_ready();
    }

    fn dump(&self) {
        let oldest = self.queue.oldest().map(|since| since.elapsed());
        warn!(queued = self.queue.len(), ?oldest, "dump: the queue");
        for worker in self.workers.iter() {
            let (id, model, credit, members) = (worker.id.0, &worker.hello.model, worker.credit, worker.members);
            warn!(worker = id, %model, credit, members, draining = worker.draining, "dump: a worker");
            let _ = worker.link.try_send(ToLink::Dump);
        }
    }
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
