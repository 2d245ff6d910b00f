//! One worker, with the credit that it has granted and the batches that it holds. Plain data.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use pillion_protocol::BatchId;
use pillion_protocol::frame::Hello;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::batch::DispatchedBatch;
use super::message::{LinkCommand, WorkerId};
use crate::admission::{BODY_TIMEOUT, LINGER};
use crate::domain::{Demand, Job, JobId, JobRange, ModelFingerprint, ModelId, Quarantine, WorkerModel};
use crate::policy::View;
use crate::policy::candidates::{BatchCandidate, LONGEST_PASSING};
use crate::policy::forecast::{BatchOutcome, Forecast};
use crate::policy::preemption::Remains;

/// A connected worker.
#[derive(Debug)]
pub struct Worker {
    /// The number of its connection.
    pub id: WorkerId,
    /// Its HELLO.
    pub hello: Hello,
    /// Its model's name and fingerprint.
    pub model: WorkerModel,
    /// The fingerprint in its HELLO, in a form that jobs can share.
    pub fingerprint: Arc<str>,
    /// When it loaded its model, which was before it connected.
    pub loaded: Instant,
    /// Its link's inbox.
    pub link: UnboundedSender<LinkCommand>,
    /// The number of batches that it will take.
    pub credit: u32,
    /// The number of its members that have not ended.
    pub members: usize,
    /// Predicts how long its batches take.
    pub forecast: Forecast,
    /// The batches that it holds, in the order in which they were sent.
    batches: VecDeque<HeldBatch>,
    /// The number of its next batch.
    next_batch: u64,
    /// When it last completed a batch, or got one while it held none. Since then its first batch runs.
    since: Instant,
    /// When it asked to leave, if it has.
    pub drains_since: Option<Instant>,
    /// Whether it was told that it may leave. Then it gets no more batches.
    pub released: bool,
}

/// A batch that a worker holds.
#[derive(Debug)]
struct HeldBatch {
    dispatched: DispatchedBatch,
    /// The numbers of its jobs, which rise.
    jobs: Vec<JobId>,
    /// The number of members that have not ended.
    unfinished: usize,
    /// When an engine began it, if one has.
    runs_since: Option<Instant>,
    /// Whether it was told to give way.
    gives_way: bool,
    /// Whether its members are quarantined. If so, the worker gets no other batch until it is completed.
    quarantined: bool,
}

/// The longest that a credit is taken to come before its engine is free. Workers grant it no earlier.
pub(super) const LONGEST_LEAD: Duration = Duration::from_millis(2);

impl Worker {
    /// A worker that has connected at `now`.
    pub(super) fn new(
        id: WorkerId,
        hello: Hello,
        model: ModelId,
        link: UnboundedSender<LinkCommand>,
        now: Instant,
    ) -> Self {
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
            drains_since: None,
            released: false,
        }
    }

    /// Adds a batch with this demand, which spends a credit.
    pub fn add_batch(
        &mut self,
        demand: Demand,
        resumable_before: Option<Instant>,
        quarantined: bool,
        now: Instant,
    ) -> DispatchedBatch {
        let batch = BatchId(self.next_batch);
        let dispatched = DispatchedBatch { batch, demand, predicted: self.forecast.time(&demand), resumable_before };
        self.next_batch += 1;
        self.credit = self.credit.saturating_sub(1);
        self.members += demand.members;
        if self.batches.is_empty() {
            self.since = now;
        }
        let runs_since = self.has_free_engine().then_some(now);
        let (jobs, unfinished, gives_way) = (Vec::new(), demand.members, false);
        self.batches.push_back(HeldBatch { dispatched, jobs, unfinished, runs_since, gives_way, quarantined });
        dispatched
    }

    /// Adds a batch of these jobs, whose numbers rise, which spends a credit. A batch that is due does not give way later.
    pub fn dispatch(&mut self, jobs: &[Box<Job>], is_due: bool, now: Instant) -> DispatchedBatch {
        let demand = jobs.iter().fold(Demand::default(), |all, job| all.and(&job.demand()));
        let may_give_way = !is_due && jobs.iter().all(|job| job.may_give_way());
        let resumable_before = jobs.iter().map(|job| job.deadline).min().filter(|_| may_give_way);
        let quarantined = jobs.iter().any(|job| job.request.key.quarantine != Quarantine::None);
        let dispatched = self.add_batch(demand, resumable_before, quarantined, now);
        if let Some(held) = self.batches.back_mut() {
            held.jobs = jobs.iter().map(|job| job.id).collect();
        }
        dispatched
    }

    /// Whether it holds any of these jobs, or held it in a batch that is not completed.
    pub(super) fn holds_any(&self, jobs: &JobRange) -> bool {
        self.batches.iter().any(|held| {
            let at = held.jobs.partition_point(|id| id.0 < jobs.start);
            held.jobs.get(at).is_some_and(|id| id.0 < jobs.end)
        })
    }

    /// Removes a batch that could not be sent, and takes the credit back.
    pub fn unsent(&mut self, batch: BatchId, now: Instant) {
        if let Some(held) = self.take(batch, now) {
            self.members = self.members.saturating_sub(held.unfinished);
            self.credit += 1;
        }
    }

    /// Removes a batch that the worker does not hold any more. Its engine begins the next one.
    fn take(&mut self, batch: BatchId, now: Instant) -> Option<HeldBatch> {
        let at = self.batches.iter().position(|held| held.dispatched.batch == batch)?;
        let held = self.batches.remove(at);
        if let Some(next) = self.batches.iter_mut().find(|held| held.runs_since.is_none()) {
            next.runs_since = Some(now);
        }
        held
    }

    /// Whether it has asked to leave.
    pub fn is_draining(&self) -> bool {
        self.drains_since.is_some()
    }

    /// Until when it stays although it holds nothing, if it has asked to leave: requests may be on their way that were
    /// sent before clients were told to go elsewhere. `arriving`: whether request bodies are being read.
    pub(super) fn lingers_until(&self, arriving: bool) -> Option<Instant> {
        self.drains_since.map(|since| since + if arriving { LINGER + BODY_TIMEOUT } else { 2 * LINGER })
    }

    /// The number of batches that it holds.
    pub(super) fn batches(&self) -> usize {
        self.batches.len()
    }

    /// Whether it holds no batch.
    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Whether it holds a batch of quarantined jobs.
    pub(super) fn is_quarantined(&self) -> bool {
        self.batches.iter().any(|held| held.quarantined)
    }

    /// Whether it holds a batch that was told to give way.
    pub(super) fn has_batch_that_gives_way(&self) -> bool {
        self.batches.iter().any(|held| held.gives_way)
    }

    /// Whether an engine has begun this batch, as far as the proxy can know.
    pub fn runs(&self, batch: BatchId) -> bool {
        self.batches.iter().any(|held| held.dispatched.batch == batch && held.runs_since.is_some())
    }

    /// Records that members of a batch have ended or were given back.
    pub fn ended(&mut self, batch: BatchId, members: usize) {
        self.members = self.members.saturating_sub(members);
        if let Some(held) = self.batches.iter_mut().find(|held| held.dispatched.batch == batch) {
            held.unfinished = held.unfinished.saturating_sub(members);
        }
    }

    /// Removes a completed batch. The forecast learns from it, unless it gave way and so did not do all of its work.
    pub fn done(&mut self, dispatched: &DispatchedBatch, outcome: &BatchOutcome, now: Instant) {
        let held = self.take(dispatched.batch, now);
        self.since = now;
        if !held.is_some_and(|held| held.gives_way) {
            self.forecast.learn(&dispatched.demand, outcome);
        }
    }

    /// Whether this batch was told to give way.
    pub fn gives_way(&self, batch: BatchId) -> bool {
        self.batches.iter().any(|held| held.dispatched.batch == batch && held.gives_way)
    }

    /// The running batches that could give way, and what remains of each. Their members would meet their deadlines even
    /// if others took the engine for `others` and the members were then passed over for as long as is allowed.
    pub(super) fn running(&self, now: Instant, others: Duration) -> impl Iterator<Item = (BatchId, Remains)> {
        self.batches.iter().filter_map(move |held| {
            let ran = now.saturating_duration_since(held.runs_since?);
            let remains = self.forecast.remains(&held.dispatched.demand, held.unfinished, ran);
            let needed = (remains.time + remains.resume_cost) * (LONGEST_PASSING + 1) + others;
            let in_time = held.dispatched.resumable_before.is_some_and(|deadline| now + needed < deadline);
            in_time.then_some((held.dispatched.batch, remains))
        })
    }

    /// Records that this batch was told to give way.
    pub fn give_way(&mut self, batch: BatchId) {
        if let Some(held) = self.batches.iter_mut().find(|held| held.dispatched.batch == batch) {
            held.gives_way = true;
        }
    }

    /// What the policy needs to decide whether this candidate leaves now. The caller adds `arriving` and `slack`, which
    /// the worker does not know.
    pub fn view(&self, candidate: &BatchCandidate, engines: usize, now: Instant) -> View {
        let (fixed_cost, member_cost) = self.forecast.costs(&candidate.demand);
        let (ending, ends_in) = self.ending(now);
        View {
            waiting: candidate.waiting,
            fixed_cost,
            member_cost,
            engines,
            ending,
            ends_in,
            time: candidate.time,
            is_due: candidate.is_due(now),
            ..View::default()
        }
    }

    /// The predicted time until an engine is free.
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

    /// How many members the batch has whose engine the next credit is for, and the time until it is predicted to end.
    pub fn ending(&self, now: Instant) -> (usize, Duration) {
        if self.has_free_engine() {
            return (0, Duration::ZERO);
        }
        (self.members / self.batches.len().max(1), self.free_in(now).min(LONGEST_LEAD))
    }
}
