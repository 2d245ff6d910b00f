//! One worker: the credit that it has granted, and the batches that it holds. Plain data.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use pillion_protocol::BatchId;
use pillion_protocol::frame::Hello;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use super::batch::DispatchedBatch;
use super::message::{LinkCommand, WorkerId};
use crate::admission::BODY_TIMEOUT;
use crate::admission::LINGER;
use crate::domain::{Demand, Job, ModelFingerprint, ModelId, Quarantine, WorkerModel};
use crate::policy::View;
use crate::policy::candidates::{BatchCandidate, LONGEST_PASSING};
use crate::policy::forecast::{BatchOutcome, Forecast};
use crate::policy::preemption::Remains;

/// A connected worker.
#[derive(Debug)]
pub struct Worker {
    /// Its connection.
    pub id: WorkerId,
    /// What it said of itself.
    pub hello: Hello,
    /// Its model, and which one of that name.
    pub model: WorkerModel,
    /// The same as in its HELLO, to be shared with what it produces.
    pub fingerprint: Arc<str>,
    /// When it had loaded its model, which is before it connected.
    pub loaded: Instant,
    /// Its link's inbox.
    pub link: Sender<LinkCommand>,
    /// Batches it will take.
    pub credit: u32,
    /// Members it holds that have not ended.
    pub members: usize,
    /// What its batches cost.
    pub forecast: Forecast,
    /// Batches it holds, in the order in which they went to it.
    batches: VecDeque<HeldBatch>,
    /// The number of the next.
    next_batch: u64,
    /// When it last began or ended one: since then the first of them runs.
    since: Instant,
    /// What the members of its latest batch asked for.
    latest: Demand,
    /// Since when it wants to leave, if it does.
    pub drains_since: Option<Instant>,
    /// It was told that it may; nothing more goes to it.
    pub released: bool,
}

/// A batch that a worker holds.
#[derive(Debug)]
struct HeldBatch {
    dispatched: DispatchedBatch,
    /// Members that have not ended.
    left: usize,
    /// Since when it has an engine, if it has.
    runs_since: Option<Instant>,
    /// It was told to give way.
    gives_way: bool,
    /// Its members may be why workers die: nothing else goes to the worker meanwhile.
    quarantined: bool,
}

/// The most that is believed of a credit that came before its engine was free: workers grant it no earlier.
pub(super) const LONGEST_LEAD: Duration = Duration::from_millis(2);

impl Worker {
    /// One that has just connected.
    pub(super) fn new(id: WorkerId, hello: Hello, model: ModelId, link: Sender<LinkCommand>, now: Instant) -> Self {
        Self {
            id,
            model: WorkerModel { model, fingerprint: ModelFingerprint::of(&hello.fingerprint) },
            fingerprint: Arc::from(hello.fingerprint.as_str()),
            forecast: Forecast::new(&hello.cost, hello.positions),
            loaded: now.checked_sub(Duration::from_millis(hello.age_ms)).unwrap_or(now),
            hello,
            link,
            credit: 0,
            members: 0,
            batches: VecDeque::new(),
            next_batch: 1,
            since: now,
            latest: Demand::default(),
            drains_since: None,
            released: false,
        }
    }

    /// A batch goes to it, into a credit.
    pub fn take(&mut self, demand: Demand, resumable_before: Option<Instant>, now: Instant) -> DispatchedBatch {
        let batch = BatchId(self.next_batch);
        let dispatched = DispatchedBatch { batch, demand, predicted: self.forecast.time(&demand), resumable_before };
        self.next_batch += 1;
        self.credit = self.credit.saturating_sub(1);
        self.members += demand.members;
        if self.batches.is_empty() {
            self.since = now;
        }
        let runs_since = self.has_free_engine().then_some(now);
        self.latest = demand;
        self.batches.push_back(HeldBatch {
            dispatched,
            left: demand.members,
            runs_since,
            gives_way: false,
            quarantined: false,
        });
        dispatched
    }

    /// These jobs go to it, in one batch. One that is due gives way to nobody; one on trial has the worker for itself.
    pub fn dispatch(&mut self, jobs: &[Box<Job>], is_due: bool, now: Instant) -> DispatchedBatch {
        let demand = jobs.iter().fold(Demand::default(), |all, job| all.and(&job.demand()));
        let may_give_way = !is_due && jobs.iter().all(|job| job.may_give_way());
        let resumable_before = jobs.iter().map(|job| job.deadline).min().filter(|_| may_give_way);
        let dispatched = self.take(demand, resumable_before, now);
        if let Some(held) = self.batches.back_mut() {
            held.quarantined = jobs.iter().any(|job| job.request.key.quarantine != Quarantine::None);
        }
        dispatched
    }

    /// Whether it wants to leave.
    pub fn is_draining(&self) -> bool {
        self.drains_since.is_some()
    }

    /// Until when it is not to leave though it has nothing to do, if it wants to: until then requests come that were on
    /// their way when clients were told to go elsewhere. `arriving`: there are some whose bodies have not come yet.
    pub(super) fn lingers_until(&self, arriving: bool) -> Option<Instant> {
        self.drains_since.map(|since| since + if arriving { LINGER + BODY_TIMEOUT } else { 2 * LINGER })
    }

    /// Whether it holds no batch.
    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Whether it holds a batch whose members are on trial.
    pub(super) fn is_quarantined(&self) -> bool {
        self.batches.iter().any(|held| held.quarantined)
    }

    /// Whether it holds a batch that was told to give way.
    pub(super) fn has_batch_that_gives_way(&self) -> bool {
        self.batches.iter().any(|held| held.gives_way)
    }

    /// Whether a batch has an engine, as far as that can be known.
    pub fn runs(&self, batch: BatchId) -> bool {
        self.batches.iter().any(|held| held.dispatched.batch == batch && held.runs_since.is_some())
    }

    /// Members of a batch have ended, or were given back.
    pub fn ended(&mut self, batch: BatchId, members: usize) {
        self.members = self.members.saturating_sub(members);
        if let Some(held) = self.batches.iter_mut().find(|held| held.dispatched.batch == batch) {
            held.left = held.left.saturating_sub(members);
        }
    }

    /// A batch is done. What it cost is learned from, unless it was made to give way: then it is not what was asked for.
    pub fn done(&mut self, dispatched: &DispatchedBatch, outcome: &BatchOutcome, now: Instant) {
        let at = self.batches.iter().position(|held| held.dispatched.batch == dispatched.batch);
        let held = at.and_then(|at| self.batches.remove(at));
        if let Some(next) = self.batches.iter_mut().find(|held| held.runs_since.is_none()) {
            next.runs_since = Some(now);
        }
        self.since = now;
        if !held.is_some_and(|held| held.gives_way) {
            self.forecast.learn(&dispatched.demand, outcome);
        }
    }

    /// Whether this batch was told to give way.
    pub fn gives_way(&self, batch: BatchId) -> bool {
        self.batches.iter().any(|held| held.dispatched.batch == batch && held.gives_way)
    }

    /// The batches that run and could give way, as far as they have come: those whose members would still be in time if
    /// others took the engine for so long, as often as they may be passed over.
    pub(super) fn running(&self, now: Instant, others: Duration) -> impl Iterator<Item = (BatchId, Remains)> {
        self.batches.iter().filter_map(move |held| {
            let ran = now.saturating_duration_since(held.runs_since?);
            let remains = self.forecast.remains(&held.dispatched.demand, held.left, ran);
            let needed = (remains.time + remains.again) * (LONGEST_PASSING + 1) + others;
            let in_time = held.dispatched.resumable_before.is_some_and(|deadline| now + needed < deadline);
            in_time.then_some((held.dispatched.batch, remains))
        })
    }

    /// This batch is told to give way.
    pub fn give_way(&mut self, batch: BatchId) {
        if let Some(held) = self.batches.iter_mut().find(|held| held.dispatched.batch == batch) {
            held.gives_way = true;
        }
    }

    /// What is known of it for the decision whether this company leaves now. Who is arriving, and how long the company may
    /// wait, is not known here.
    pub fn view(&self, candidate: &BatchCandidate, engines: usize, now: Instant) -> View {
        let (fixed_cost, member_cost) = self.forecast.costs(&candidate.demand);
        let (ending, ends_in) = self.ending(now);
        View {
            waiting: candidate.waiting,
            arriving: 0,
            fixed_cost,
            member_cost,
            engines,
            ending,
            ends_in,
            time: candidate.time,
            is_due: candidate.is_due(now),
            latest: self.latest_costs(),
            slack: None,
        }
    }

    /// What its latest batch costs however few its members were, and what each of them adds.
    fn latest_costs(&self) -> (Duration, Duration) {
        self.forecast.costs(&self.latest)
    }

    /// How long until an engine is predicted to be free.
    pub(super) fn free_in(&self, now: Instant) -> Duration {
        if self.has_free_engine() {
            return Duration::ZERO;
        }
        let outstanding: Duration = self.batches.iter().map(|held| held.dispatched.predicted).sum();
        (outstanding / self.hello.slots.max(1)).saturating_sub(now.saturating_duration_since(self.since))
    }

    fn has_free_engine(&self) -> bool {
        self.batches.len() < self.hello.slots as usize
    }

    /// The members whose batch still has the engine that the next credit is for, and when it is expected to end.
    pub fn ending(&self, now: Instant) -> (usize, Duration) {
        if self.has_free_engine() {
            return (0, Duration::ZERO);
        }
        (self.members / self.batches.len().max(1), self.free_in(now).min(LONGEST_LEAD))
    }
}
