//! The workers that are connected and the credit they have granted. Plain data.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use pillion_protocol::BatchId;
use pillion_protocol::frame::Hello;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use super::ToLink;
use crate::job::{Build, Class, Kind, ModelId, Trial};
use crate::link::inflight::Departure;
use crate::policy::Policy;
use crate::policy::company::{self, Cell, Company, LONGEST_PASSING};
use crate::policy::forecast::{Asked, Forecast, Outcome};
use crate::policy::preemption::{Remains, Waiting};

/// A connection of a worker; a worker that returns is a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u64);

/// A connected worker.
#[derive(Debug)]
pub struct Worker {
    /// Its connection.
    pub id: WorkerId,
    /// What it said of itself.
    pub hello: Hello,
    /// Its model, and which one of that name.
    pub kind: Kind,
    /// The same as in its HELLO, to be shared with what it produces.
    pub fingerprint: Arc<str>,
    /// Its link's inbox.
    pub link: Sender<ToLink>,
    /// Batches it will take.
    pub credit: u32,
    /// Members it holds that have not ended.
    pub members: usize,
    /// What its batches cost.
    pub forecast: Forecast,
    /// Batches it holds, in the order in which they went to it.
    batches: VecDeque<Held>,
    /// The number of the next.
    next_batch: u64,
    /// When it last began or ended one: since then the first of them runs.
    since: Instant,
    /// What the members of its latest batch asked for.
    latest: Asked,
    /// It wants to leave.
    pub draining: bool,
    /// It was told that it may; nothing more goes to it.
    pub released: bool,
}

/// A batch that a worker holds.
#[derive(Debug)]
struct Held {
    departure: Departure,
    /// Members that have not ended.
    left: usize,
    /// Since when it has an engine, if it has.
    runs_since: Option<Instant>,
    /// It was told to give way.
    gives_way: bool,
    /// Its members may be why workers die: nothing else goes to the worker meanwhile.
    on_trial: bool,
}

/// A batch is shared with an idle worker where that makes it shorter by this part.
const WORTH_SHARING: u32 = 10;
/// The most that is believed of a credit that came before its engine was free: workers grant it no earlier.
const LONGEST_LEAD: Duration = Duration::from_millis(2);

impl Worker {
    /// A batch goes to it, into a credit.
    pub fn take(&mut self, asked: Asked, resumable_before: Option<Instant>, now: Instant) -> Departure {
        let batch = BatchId(self.next_batch);
        let departure = Departure { batch, asked, predicted: self.forecast.time(&asked), resumable_before };
        self.next_batch += 1;
        self.credit = self.credit.saturating_sub(1);
        self.members += asked.members;
        if self.batches.is_empty() {
            self.since = now;
        }
        let runs_since = self.has_free_engine().then_some(now);
        self.latest = asked;
        self.batches.push_back(Held { departure, left: asked.members, runs_since, gives_way: false, on_trial: false });
        departure
    }

    /// The members of this batch are on trial.
    pub fn isolate(&mut self, batch: BatchId) {
        if let Some(held) = self.batches.iter_mut().find(|held| held.departure.batch == batch) {
            held.on_trial = true;
        }
    }

    /// Whether a batch has an engine, as far as that can be known.
    pub fn runs(&self, batch: BatchId) -> bool {
        self.batches.iter().any(|held| held.departure.batch == batch && held.runs_since.is_some())
    }

    /// Members of a batch have ended, or were given back.
    pub fn ended(&mut self, batch: BatchId, members: usize) {
        self.members = self.members.saturating_sub(members);
        if let Some(held) = self.batches.iter_mut().find(|held| held.departure.batch == batch) {
            held.left = held.left.saturating_sub(members);
        }
    }

    /// A batch is done. What it cost is learned from, unless it was made to give way: then it is not what was asked for.
    pub fn done(&mut self, departure: &Departure, outcome: &Outcome, now: Instant) {
        let at = self.batches.iter().position(|held| held.departure.batch == departure.batch);
        let held = at.and_then(|at| self.batches.remove(at));
        if let Some(next) = self.batches.iter_mut().find(|held| held.runs_since.is_none()) {
            next.runs_since = Some(now);
        }
        self.since = now;
        if !held.is_some_and(|held| held.gives_way) {
            self.forecast.learn(&departure.asked, outcome);
        }
    }

    /// Whether this batch was told to give way.
    pub fn gives_way(&self, batch: BatchId) -> bool {
        self.batches.iter().any(|held| held.departure.batch == batch && held.gives_way)
    }

    /// The batches that run and could give way, as far as they have come: those whose members would still be in time if
    /// others took the engine for so long, as often as they may be passed over.
    fn running(&self, now: Instant, others: Duration) -> impl Iterator<Item = (BatchId, Remains)> {
        self.batches.iter().filter_map(move |held| {
            let ran = now.saturating_duration_since(held.runs_since?);
            let remains = self.forecast.remains(&held.departure.asked, held.left, ran);
            let needed = (remains.time + remains.again) * (LONGEST_PASSING + 1) + others;
            let in_time = held.departure.resumable_before.is_some_and(|deadline| now + needed < deadline);
            in_time.then_some((held.departure.batch, remains))
        })
    }

    /// This batch is told to give way.
    pub fn give_way(&mut self, batch: BatchId) {
        if let Some(held) = self.batches.iter_mut().find(|held| held.departure.batch == batch) {
            held.gives_way = true;
        }
    }

    /// What its latest batch costs however few its members were, and what each of them adds.
    pub fn latest_costs(&self) -> (Duration, Duration) {
        self.forecast.costs(&self.latest)
    }

    /// How long until an engine is predicted to be free.
    fn free_in(&self, now: Instant) -> Duration {
        if self.has_free_engine() {
            return Duration::ZERO;
        }
        let outstanding: Duration = self.batches.iter().map(|held| held.departure.predicted).sum();
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

/// All that are connected.
#[derive(Debug, Default)]
pub struct Workers {
    all: Vec<Worker>,
    /// When the last worker of a kind left. Bounded.
    left: Vec<(Kind, Instant)>,
}

/// Kinds of workers that are remembered after they left.
const REMEMBERED: usize = 64;

impl Workers {
    /// A worker has connected.
    pub fn add(&mut self, id: WorkerId, hello: Hello, model: ModelId, link: Sender<ToLink>, now: Instant) {
        self.all.push(Worker {
            id,
            kind: Kind { model, build: Build::of(&hello.fingerprint) },
            fingerprint: Arc::from(hello.fingerprint.as_str()),
            forecast: Forecast::new(&hello.cost, hello.positions),
            hello,
            link,
            credit: 0,
            members: 0,
            batches: VecDeque::new(),
            next_batch: 1,
            since: now,
            latest: Asked::default(),
            draining: false,
            released: false,
        });
    }

    /// A worker's connection has ended.
    pub fn remove(&mut self, id: WorkerId, now: Instant) -> Option<Worker> {
        let at = self.all.iter().position(|worker| worker.id == id)?;
        let worker = self.all.swap_remove(at);
        self.leaves(worker.kind, now);
        Some(worker)
    }

    /// A worker was told that it may leave.
    pub fn release(&mut self, id: WorkerId, now: Instant) {
        if let Some(worker) = self.get_mut(id) {
            (worker.released, worker.credit) = (true, 0);
            let kind = worker.kind;
            self.leaves(kind, now);
        }
    }

    fn leaves(&mut self, kind: Kind, now: Instant) {
        self.left.retain(|(other, _)| *other != kind);
        if self.left.len() >= REMEMBERED {
            self.left.remove(0);
        }
        self.left.push((kind, now));
    }

    /// Since when no worker has been there that serves this class, if none is; `start` where none ever was.
    pub fn unserved_since(&self, class: &Class, start: Instant) -> Option<Instant> {
        if self.serving(class).next().is_some() {
            return None;
        }
        self.left.iter().filter(|(kind, _)| class.is_for(*kind)).map(|(_, at)| *at).max().or(Some(start))
    }

    /// The workers that serve this class.
    pub fn serving<'a>(&'a self, class: &'a Class) -> impl Iterator<Item = &'a Worker> {
        self.all.iter().filter(|worker| !worker.released && self.serves(worker.kind, class))
    }

    /// Whether workers of this kind serve this class: they have what it needs, and no newer model of that name has come,
    /// unless an answer has begun with theirs.
    fn serves(&self, kind: Kind, class: &Class) -> bool {
        class.is_for(kind) && (class.is_tied() || !self.is_superseded(kind))
    }

    /// Whether workers have come, later than all of this kind, whose model has the same name and is another, and which are
    /// not about to leave.
    fn is_superseded(&self, kind: Kind) -> bool {
        let there = || self.all.iter().filter(|worker| !worker.released && worker.kind.model == kind.model);
        let since = |build| there().filter(|worker| worker.kind.build == build).map(|worker| worker.id).min();
        there().any(|other| {
            let build = other.kind.build;
            !other.draining && build != kind.build && since(build) > since(kind.build)
        })
    }

    /// The worker on that connection.
    pub fn get_mut(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.all.iter_mut().find(|worker| worker.id == id)
    }

    /// The worker that the next batch goes to: of those with credit the one that is predicted to end it soonest; one that
    /// wants to leave only if no other has credit.
    fn soonest(&self, asked: &Asked, kind: Kind, now: Instant) -> Option<WorkerId> {
        let ends = |worker: &Worker| worker.free_in(now) + worker.forecast.time(asked);
        self.with_credit()
            .filter(|worker| worker.kind == kind)
            .min_by_key(|worker| (worker.draining, ends(worker), worker.members, worker.id))
            .map(|w| w.id)
    }

    /// The worker that the next batch of those who wait goes to, and who rides in it, where so many texts come in a second.
    /// Of several kinds of workers the one whose company has waited the longest. Whoever is on trial waits for a worker
    /// that holds nothing else.
    pub fn next(
        &self,
        cells: &[Cell],
        most: usize,
        texts_per_second: f64,
        now: Instant,
    ) -> Option<(WorkerId, Company)> {
        let mut kinds: Vec<Kind> = self.with_credit().map(|worker| worker.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let of_kind = |kind: Kind| {
            let cells = self.served_by(kind, cells);
            let oldest = cells.iter().min_by_key(|cell| cell.since)?.asked;
            let id = self.soonest(&oldest.part(oldest.members.min(most), oldest.members), kind, now)?;
            let forecast = &self.all.iter().find(|worker| worker.id == id)?.forecast;
            let company = company::next(cells, most, |asked| forecast.time(asked), texts_per_second, now)?;
            if company.trial() == Trial::None {
                return Some((id, company));
            }
            let empty = self.with_credit().find(|worker| worker.kind == kind && worker.batches.is_empty())?;
            Some((empty.id, company))
        };
        kinds.into_iter().filter_map(of_kind).min_by_key(|(_, company)| company.since)
    }

    /// The batch that should give way to those who wait, if there is one, and what is left of it.
    pub fn should_give_way(
        &self,
        cells: &[Cell],
        most: usize,
        policy: &Policy,
        now: Instant,
    ) -> Option<(WorkerId, BatchId, Remains)> {
        if cells.iter().any(|cell| self.have_credit_for(&cell.class)) || !self.may_preempt() {
            return None;
        }
        let rate = policy.texts_per_second(now);
        self.all.iter().filter(|worker| !worker.released).find_map(|worker| {
            let cells = self.served_by(worker.kind, cells);
            let company = company::next(cells, most, |asked| worker.forecast.time(asked), rate, now)?;
            let waiting = Waiting { members: company.asked.members, time: company.time };
            let mut running = worker.running(now, waiting.time);
            running
                .find(|(_, left)| policy.preemption.pays(left, &waiting))
                .map(|(batch, left)| (worker.id, batch, left))
        })
    }

    /// How many of the members that wait the next batch should take. All, unless other engines stand idle too and the
    /// batch would be noticeably shorter for being shared with them.
    pub fn share(&self, asked: &Asked, kind: Kind) -> usize {
        let with_credit = || self.with_credit().filter(|worker| worker.kind == kind);
        let idle = with_credit().filter(|worker| worker.batches.is_empty());
        let Some(longest) = idle.clone().map(|worker| worker.forecast.time(asked)).max() else { return usize::MAX };
        let idle = idle.count();
        let part = asked.members.div_ceil(idle);
        let shared = asked.part(part, asked.members);
        let shorter = with_credit().map(|worker| worker.forecast.time(&shared)).max().unwrap_or_default();
        if longest.saturating_sub(shorter) > longest / WORTH_SHARING { part } else { usize::MAX }
    }

    /// How many engines there are that take batches.
    pub fn engines(&self) -> usize {
        self.all.iter().filter(|worker| !worker.released).map(|worker| worker.hello.slots as usize).sum()
    }

    /// Whether a batch may be told to give way: none has been that still runs, and whoever gives way can go on with any.
    fn may_preempt(&self) -> bool {
        let mut serving = self.all.iter().filter(|worker| !worker.released);
        let alike = serving.clone().zip(serving.clone().skip(1)).all(|(a, b)| a.fingerprint == b.fingerprint);
        alike && !serving.any(|worker| worker.batches.iter().any(|held| held.gives_way))
    }

    /// Whether anybody takes a batch of this class.
    pub fn have_credit_for(&self, class: &Class) -> bool {
        self.with_credit().any(|worker| self.serves(worker.kind, class))
    }

    /// Whether anybody takes a batch.
    pub fn have_credit(&self) -> bool {
        self.with_credit().next().is_some()
    }

    fn with_credit(&self) -> impl Iterator<Item = &Worker> + Clone {
        let isolated = |worker: &Worker| worker.batches.iter().any(|held| held.on_trial);
        self.all.iter().filter(move |worker| worker.credit > 0 && !worker.released && !isolated(worker))
    }

    /// Every worker.
    pub fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.all.iter()
    }

    /// Whether none is connected that takes batches.
    pub fn none_serving(&self) -> bool {
        self.all.iter().all(|worker| worker.released)
    }

    /// The workers that want to leave and are not needed: an equal one stays, or they hold nothing and nothing waits for
    /// them. `waiting`: the classes of what waits.
    pub fn releasable<'a>(&self, waiting: &(impl Iterator<Item = &'a Class> + Clone)) -> Vec<WorkerId> {
        let equal_stays =
            |leaver: &Worker| self.all.iter().any(|worker| !worker.draining && worker.kind == leaver.kind);
        let is_idle =
            |leaver: &Worker| leaver.members == 0 && !waiting.clone().any(|class| self.serves(leaver.kind, class));
        self.all
            .iter()
            .filter(|worker| worker.draining && !worker.released)
            .filter(|worker| equal_stays(worker) || is_idle(worker))
            .map(|worker| worker.id)
            .collect()
    }

    /// Of those who wait, those whom a worker of this kind serves.
    fn served_by(&self, kind: Kind, cells: &[Cell]) -> Vec<Cell> {
        cells.iter().filter(|cell| self.serves(kind, &cell.class)).copied().collect()
    }
}

#[cfg(test)]
mod tests;
