//! The workers that are connected: who serves whom, and who is next. Plain data.

use std::time::Duration;

use pillion_protocol::BatchId;
use pillion_protocol::frame::Hello;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use super::message::{LinkCommand, WorkerId};
use super::worker::Worker;
use crate::domain::{BatchKey, Demand, ModelId, Quarantine, WorkerModel};
use crate::policy::Policy;
use crate::policy::candidates::{self, BatchCandidate, Bucket};
use crate::policy::preemption::{Remains, Waiting};

/// All that are connected.
#[derive(Debug, Default)]
pub struct Workers {
    all: Vec<Worker>,
    /// When the last worker of a kind left. Bounded.
    left: Vec<(WorkerModel, Instant)>,
    /// Since when none stays, where whoever was last there was told to stop. One that died comes back.
    leaving: Option<Instant>,
}

/// A batch is shared with an idle worker where that makes it shorter by this part.
const WORTH_SHARING: u32 = 10;
/// Kinds of workers that are remembered after they left.
const REMEMBERED: usize = 64;
/// How often is looked whether those whose bodies are awaited have come.
const LOOK: Duration = Duration::from_secs(1);

impl Workers {
    /// A worker has connected.
    pub fn add(&mut self, id: WorkerId, hello: Hello, model: ModelId, link: Sender<LinkCommand>, now: Instant) {
        self.all.push(Worker::new(id, hello, model, link, now));
        self.leaving = None;
    }

    /// A worker wants to leave.
    pub fn drains(&mut self, id: WorkerId, now: Instant) {
        if let Some(worker) = self.get_mut(id) {
            worker.drains_since.get_or_insert(now);
            self.see_who_stays(now);
        }
    }

    /// A worker's connection has ended.
    pub fn remove(&mut self, id: WorkerId, now: Instant) -> Option<Worker> {
        let at = self.all.iter().position(|worker| worker.id == id)?;
        let worker = self.all.swap_remove(at);
        self.leaves(worker.model, now);
        self.see_who_stays(now);
        Some(worker)
    }

    /// A worker was told that it may leave.
    pub fn release(&mut self, id: WorkerId, now: Instant) {
        if let Some(worker) = self.get_mut(id) {
            (worker.released, worker.credit) = (true, 0);
            let model = worker.model;
            self.leaves(model, now);
        }
    }

    fn see_who_stays(&mut self, now: Instant) {
        if !self.all.is_empty() && self.all.iter().all(Worker::is_draining) {
            self.leaving.get_or_insert(now);
        }
    }

    /// Since when none stays, where whoever was last there was told to stop, whether or not it still is.
    pub fn leaving(&self) -> Option<Instant> {
        self.leaving
    }

    /// When to look again who may leave, if nothing happens before. `arriving` as for [`releasable`](Self::releasable).
    pub fn next_leave(&self, arriving: bool, now: Instant) -> Option<Instant> {
        let leavers = self.all.iter().filter(|worker| worker.is_draining() && !worker.released);
        let lingering = leavers.filter_map(|worker| {
            let until = worker.lingers_until(arriving).filter(|until| *until > now)?;
            Some(worker.lingers_until(false).filter(|soonest| *soonest > now).unwrap_or(until.min(now + LOOK)))
        });
        lingering.min()
    }

    fn leaves(&mut self, model: WorkerModel, now: Instant) {
        self.left.retain(|(other, _)| *other != model);
        if self.left.len() >= REMEMBERED {
            self.left.remove(0);
        }
        self.left.push((model, now));
    }

    /// Since when no worker has been there that serves this class, if none is; `start` where none ever was.
    pub fn unserved_since(&self, key: &BatchKey, start: Instant) -> Option<Instant> {
        if self.serving(key).next().is_some() {
            return None;
        }
        self.left.iter().filter(|(model, _)| key.is_for(*model)).map(|(_, at)| *at).max().or(Some(start))
    }

    /// The workers that serve this class.
    pub fn serving<'a>(&'a self, key: &'a BatchKey) -> impl Iterator<Item = &'a Worker> {
        self.all.iter().filter(|worker| !worker.released && self.serves(worker.model, key))
    }

    /// Whether workers of this kind serve this class: they have what it needs, and no newer model of that name has come,
    /// unless an answer has begun with theirs.
    fn serves(&self, model: WorkerModel, key: &BatchKey) -> bool {
        key.is_for(model) && (key.is_tied() || !self.is_superseded(model))
    }

    /// Whether there are workers that are not about to leave, whose model has the same name and is another, and was loaded
    /// later than all of this kind have loaded theirs.
    fn is_superseded(&self, model: WorkerModel) -> bool {
        let there = || self.all.iter().filter(|worker| !worker.released && worker.model.model == model.model);
        let age = |worker: &Worker| (worker.loaded, worker.id);
        let since = |fingerprint| there().filter(|worker| worker.model.fingerprint == fingerprint).map(age).min();
        there().any(|other| {
            let fingerprint = other.model.fingerprint;
            !other.is_draining() && fingerprint != model.fingerprint && since(fingerprint) > since(model.fingerprint)
        })
    }

    /// The worker on that connection.
    pub fn get_mut(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.all.iter_mut().find(|worker| worker.id == id)
    }

    /// The worker that the next batch goes to: of those with credit the one that is predicted to end it soonest; one that
    /// wants to leave only if no other has credit.
    fn soonest(&self, demand: &Demand, model: WorkerModel, now: Instant) -> Option<WorkerId> {
        let ends = |worker: &Worker| worker.free_in(now) + worker.forecast.time(demand);
        self.with_credit()
            .filter(|worker| worker.model == model)
            .min_by_key(|worker| (worker.is_draining(), ends(worker), worker.members, worker.id))
            .map(|w| w.id)
    }

    /// The worker that the next batch of those who wait goes to, and who rides in it, where so many texts come in a second.
    /// Of several kinds of workers the one whose company has waited the longest. Whoever is on trial waits for a worker
    /// that holds nothing else.
    pub fn next(
        &self,
        buckets: &[Bucket],
        most: usize,
        texts_per_second: f64,
        now: Instant,
    ) -> Option<(WorkerId, BatchCandidate)> {
        let mut models: Vec<WorkerModel> = self.with_credit().map(|worker| worker.model).collect();
        models.sort_unstable();
        models.dedup();
        let of_kind = |model: WorkerModel| {
            let buckets = self.served_by(model, buckets);
            let oldest = buckets.iter().min_by_key(|bucket| bucket.since)?.demand;
            let id = self.soonest(&oldest.part(oldest.members.min(most), oldest.members), model, now)?;
            let forecast = &self.all.iter().find(|worker| worker.id == id)?.forecast;
            let candidate = candidates::next(buckets, most, |demand| forecast.time(demand), texts_per_second, now)?;
            if candidate.quarantine() == Quarantine::None {
                return Some((id, candidate));
            }
            let empty = self.with_credit().find(|worker| worker.model == model && worker.is_empty())?;
            Some((empty.id, candidate))
        };
        models.into_iter().filter_map(of_kind).min_by_key(|(_, candidate)| candidate.since)
    }

    /// The batch that should give way to those who wait, if there is one, and what is left of it.
    pub fn should_give_way(
        &self,
        buckets: &[Bucket],
        most: usize,
        policy: &Policy,
        now: Instant,
    ) -> Option<(WorkerId, BatchId, Remains)> {
        if buckets.iter().any(|bucket| self.have_credit_for(&bucket.key)) || !self.may_preempt() {
            return None;
        }
        let rate = policy.texts_per_second(now);
        self.all.iter().filter(|worker| !worker.released).find_map(|worker| {
            let buckets = self.served_by(worker.model, buckets);
            let candidate = candidates::next(buckets, most, |demand| worker.forecast.time(demand), rate, now)?;
            let waiting = Waiting { members: candidate.demand.members, time: candidate.time };
            let mut running = worker.running(now, waiting.time);
            running
                .find(|(_, left)| policy.preemption.pays(left, &waiting))
                .map(|(batch, left)| (worker.id, batch, left))
        })
    }

    /// How many of the members that wait the next batch, which goes to this worker, should take. All, unless other engines stand idle too and the
    /// batch would be noticeably shorter for being shared with them.
    pub fn share(&self, demand: &Demand, id: WorkerId) -> usize {
        let Some(model) = self.all.iter().find(|worker| worker.id == id).map(|worker| worker.model) else {
            return usize::MAX;
        };
        let with_credit = || self.with_credit().filter(|worker| worker.model == model);
        let idle = with_credit().filter(|worker| worker.is_empty());
        let Some(longest) = idle.clone().map(|worker| worker.forecast.time(demand)).max() else { return usize::MAX };
        let idle = idle.count();
        let part = demand.members.div_ceil(idle);
        let shared = demand.part(part, demand.members);
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
        alike && !serving.any(Worker::has_batch_that_gives_way)
    }

    /// Whether anybody takes a batch of this class.
    pub fn have_credit_for(&self, key: &BatchKey) -> bool {
        self.with_credit().any(|worker| self.serves(worker.model, key))
    }

    /// Whether anybody takes a batch.
    pub fn have_credit(&self) -> bool {
        self.with_credit().next().is_some()
    }

    fn with_credit(&self) -> impl Iterator<Item = &Worker> + Clone {
        self.all.iter().filter(|worker| worker.credit > 0 && !worker.released && !worker.is_quarantined())
    }

    /// Every worker.
    pub fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.all.iter()
    }

    /// Whether none is connected that takes batches.
    pub fn none_serving(&self) -> bool {
        self.all.iter().all(|worker| worker.released)
    }

    /// The workers that want to leave and are not needed: an equal one stays, or they hold nothing, nothing waits for
    /// them, and nothing is on its way. `waiting`: the classes of what waits; `arriving`: whether bodies are awaited.
    pub fn releasable<'a>(
        &self,
        waiting: &(impl Iterator<Item = &'a BatchKey> + Clone),
        arriving: bool,
        now: Instant,
    ) -> Vec<WorkerId> {
        let equal_stays =
            |leaver: &Worker| self.all.iter().any(|worker| !worker.is_draining() && worker.model == leaver.model);
        let is_idle =
            |leaver: &Worker| leaver.members == 0 && !waiting.clone().any(|key| self.serves(leaver.model, key));
        let more_may_come = |leaver: &Worker| {
            !self.is_superseded(leaver.model) && leaver.lingers_until(arriving).is_some_and(|until| until > now)
        };
        self.all
            .iter()
            .filter(|worker| worker.is_draining() && !worker.released)
            .filter(|worker| equal_stays(worker) || is_idle(worker) && !more_may_come(worker))
            .map(|worker| worker.id)
            .collect()
    }

    /// Of those who wait, those whom a worker of this kind serves.
    fn served_by(&self, model: WorkerModel, buckets: &[Bucket]) -> Vec<Bucket> {
        buckets.iter().filter(|bucket| self.serves(model, &bucket.key)).copied().collect()
    }
}

#[cfg(test)]
mod tests;
