//! The connected workers: which jobs each of them serves, and which worker gets the next batch. Plain data.

use std::collections::BTreeSet;
use std::time::Duration;

use pillion_protocol::BatchId;
use pillion_protocol::frame::Hello;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::message::{LinkCommand, WorkerId};
use super::worker::Worker;
use crate::domain::{Demand, JobRange, ModelId, Quarantine, Target, WorkerModel};
use crate::policy::Policy;
use crate::policy::candidates::{self, BatchCandidate, Bucket};
use crate::policy::preemption::{Remains, Waiting};

/// All connected workers.
#[derive(Debug, Default)]
pub struct Workers {
    all: Vec<Worker>,
    /// When the last worker of each worker model left. Bounded.
    left: Vec<(WorkerModel, Instant)>,
    /// Since when all connected workers have asked to leave. Kept when they are gone, until another worker connects.
    leaving: Option<Instant>,
}

/// Waiting jobs are shared with idle workers if the batch becomes shorter by more than one part in this many.
const WORTH_SHARING: u32 = 10;
/// The most worker models that are remembered after their workers left.
const REMEMBERED: usize = 64;
/// How often to check whether the request bodies that a worker stays for have arrived.
const CHECK_EVERY: Duration = Duration::from_secs(1);

impl Workers {
    /// Adds a worker that has connected.
    pub fn add(
        &mut self,
        id: WorkerId,
        hello: Hello,
        model: ModelId,
        link: UnboundedSender<LinkCommand>,
        now: Instant,
    ) {
        self.all.push(Worker::new(id, hello, model, link, now));
        self.leaving = None;
    }

    /// Records that a worker asks to leave.
    pub fn drains(&mut self, id: WorkerId, now: Instant) {
        if let Some(worker) = self.get_mut(id) {
            worker.drains_since.get_or_insert(now);
            self.update_leaving(now);
        }
    }

    /// Removes a worker whose connection has ended.
    pub fn remove(&mut self, id: WorkerId, now: Instant) -> Option<Worker> {
        let at = self.all.iter().position(|worker| worker.id == id)?;
        let worker = self.all.swap_remove(at);
        self.record_left(worker.model, now);
        self.update_leaving(now);
        Some(worker)
    }

    /// Records that a worker was told that it may leave.
    pub fn release(&mut self, id: WorkerId, now: Instant) {
        if let Some(worker) = self.get_mut(id) {
            (worker.released, worker.credit) = (true, 0);
            let model = worker.model;
            self.record_left(model, now);
        }
    }

    fn update_leaving(&mut self, now: Instant) {
        if !self.all.is_empty() && self.all.iter().all(Worker::is_draining) {
            self.leaving.get_or_insert(now);
        }
    }

    /// Since when all connected workers have asked to leave. Kept when they are gone, until another worker connects.
    pub fn leaving(&self) -> Option<Instant> {
        self.leaving
    }

    /// When to call [`releasable`](Self::releasable) again, if nothing happens before. `arriving` is the same as there.
    pub fn next_leave(&self, arriving: bool, now: Instant) -> Option<Instant> {
        let leavers = self.all.iter().filter(|worker| worker.is_draining() && !worker.released);
        let lingering = leavers.filter_map(|worker| {
            let until = worker.lingers_until(arriving).filter(|until| *until > now)?;
            Some(worker.lingers_until(false).filter(|soonest| *soonest > now).unwrap_or(until.min(now + CHECK_EVERY)))
        });
        lingering.min()
    }

    fn record_left(&mut self, model: WorkerModel, now: Instant) {
        self.left.retain(|(other, _)| *other != model);
        if self.left.len() >= REMEMBERED {
            self.left.remove(0);
        }
        self.left.push((model, now));
    }

    /// Since when no worker serves this target: `None` if one does, and `start` if none ever did.
    pub fn unserved_since(&self, target: &Target, start: Instant) -> Option<Instant> {
        if self.serving(target).next().is_some() {
            return None;
        }
        self.left.iter().filter(|(model, _)| target.is_for(*model)).map(|(_, at)| *at).max().or(Some(start))
    }

    /// The workers that serve this target.
    pub fn serving<'a>(&'a self, target: &'a Target) -> impl Iterator<Item = &'a Worker> {
        self.all.iter().filter(|worker| !worker.released && self.serves(worker.model, target))
    }

    /// Whether workers with this worker model serve this target: they can serve it, and their model is not superseded
    /// unless the target is tied to its fingerprint.
    pub fn serves(&self, model: WorkerModel, target: &Target) -> bool {
        target.is_for(model) && (target.is_tied() || !self.is_superseded(model))
    }

    /// Whether a newer model of the same name serves: a worker that has not asked to leave has another fingerprint,
    /// which was first loaded later than this one.
    fn is_superseded(&self, model: WorkerModel) -> bool {
        let there = || self.all.iter().filter(|worker| !worker.released && worker.model.model == model.model);
        if there().all(|worker| worker.model == model) {
            return false;
        }
        let age = |worker: &Worker| (worker.loaded, worker.id);
        let since = |fingerprint| there().filter(|worker| worker.model.fingerprint == fingerprint).map(age).min();
        there().any(|other| {
            let fingerprint = other.model.fingerprint;
            !other.is_draining() && fingerprint != model.fingerprint && since(fingerprint) > since(model.fingerprint)
        })
    }

    /// The worker with this number.
    pub fn get_mut(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.all.iter_mut().find(|worker| worker.id == id)
    }

    /// The worker with credit and this worker model that is predicted to end a batch soonest. A worker that has asked
    /// to leave is chosen only if no other has credit. `but` is not chosen.
    fn soonest(&self, demand: &Demand, model: WorkerModel, but: Option<WorkerId>, now: Instant) -> Option<WorkerId> {
        let ends = |worker: &Worker| worker.free_in(now) + worker.forecast.time(demand);
        self.with_credit()
            .filter(|worker| worker.model == model && Some(worker.id) != but)
            .min_by_key(|worker| (worker.is_draining(), ends(worker), worker.members, worker.id))
            .map(|w| w.id)
    }

    /// The worker that the next batch goes to, and the candidate that it is taken from. If there are several worker
    /// models, the candidate that has waited longest goes first. Workers whose model is one of `held` get no batch.
    /// `max_size`: the most members of a batch. `texts_per_second`: the rate at which texts for a model come.
    pub fn next(
        &self,
        buckets: &[Bucket],
        max_size: usize,
        texts_per_second: impl Fn(ModelId) -> f64,
        held: &[ModelId],
        now: Instant,
    ) -> Option<(WorkerId, BatchCandidate)> {
        let mut models: Vec<WorkerModel> =
            self.with_credit().map(|worker| worker.model).filter(|model| !held.contains(&model.model)).collect();
        models.sort_unstable();
        models.dedup();
        let of_model = |model: WorkerModel| {
            let rate = texts_per_second(model.model);
            self.next_of(model, self.served_by(model, buckets), max_size, rate, None, now)
        };
        models.into_iter().filter_map(of_model).min_by_key(|(_, candidate)| candidate.since)
    }

    /// The same for one worker model. Quarantined jobs wait for a worker that holds nothing else; until then, one worker
    /// is `reserved` for them, and the other workers take other jobs.
    fn next_of(
        &self,
        model: WorkerModel,
        mut buckets: Vec<Bucket>,
        max_size: usize,
        texts_per_second: f64,
        reserved: Option<WorkerId>,
        now: Instant,
    ) -> Option<(WorkerId, BatchCandidate)> {
        let oldest = buckets.iter().min_by_key(|bucket| bucket.since)?.demand;
        let id = self.soonest(&oldest.part(oldest.members.min(max_size), oldest.members), model, reserved, now)?;
        let forecast = &self.all.iter().find(|worker| worker.id == id)?.forecast;
        let time = |demand: &Demand| forecast.time(demand);
        let candidate = candidates::next(buckets.clone(), max_size, time, texts_per_second, now)?;
        if candidate.quarantine() == Quarantine::None {
            return Some((id, candidate));
        }
        if let Some(empty) = self.with_credit().find(|worker| worker.model == model && worker.is_empty()) {
            return Some((empty.id, candidate));
        }
        let alike = self.all.iter().filter(|worker| worker.model == model && !worker.released);
        // An empty worker without credit takes no batch for the time being.
        let may_be_empty_soon = |worker: &&Worker| !worker.is_quarantined() && !worker.is_empty();
        let soonest_free = |worker: &&Worker| (worker.batches(), worker.free_in(now), worker.id);
        let reserved = alike.filter(may_be_empty_soon).min_by_key(soonest_free);
        buckets.retain(|bucket| bucket.key.quarantine == Quarantine::None);
        self.next_of(model, buckets, max_size, texts_per_second, reserved.map(|worker| worker.id), now)
    }

    /// A running batch that should give way to the jobs that wait, and what remains of it.
    pub fn should_give_way<'a>(
        &self,
        mut buckets: Vec<Bucket>,
        max_size: usize,
        policy: impl Fn(ModelId) -> Option<&'a Policy>,
        now: Instant,
    ) -> Option<(WorkerId, BatchId, Remains)> {
        buckets.retain(|bucket| !self.have_credit_for(&bucket.key.target));
        let may_be_told = |worker: &&Worker| !worker.released && self.may_preempt(worker.model.model);
        self.all.iter().filter(|_| !buckets.is_empty()).filter(may_be_told).find_map(|worker| {
            worker.running(now, Duration::ZERO).next()?;
            let policy = policy(worker.model.model)?;
            let rate = policy.texts_per_second(now);
            let buckets = self.served_by(worker.model, &buckets);
            let candidate = candidates::next(buckets, max_size, |demand| worker.forecast.time(demand), rate, now)?;
            let waiting = Waiting { members: candidate.demand.members, time: candidate.time };
            let mut running = worker.running(now, waiting.time);
            running
                .find(|(_, remains)| policy.preemption.pays(remains, &waiting))
                .map(|(batch, remains)| (worker.id, batch, remains))
        })
    }

    /// The most jobs that the next batch, which goes to this worker, should take. No limit (`usize::MAX`), unless
    /// sharing the jobs with other idle workers makes the batch noticeably shorter.
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

    /// The number of engines that take batches for this model.
    pub fn engines(&self, model: ModelId) -> usize {
        let serving = self.all.iter().filter(|worker| !worker.released && worker.model.model == model);
        serving.map(|worker| worker.hello.slots as usize).sum()
    }

    /// The models of the workers that take batches.
    pub fn models(&self) -> BTreeSet<ModelId> {
        self.all.iter().filter(|worker| !worker.released).map(|worker| worker.model.model).collect()
    }

    /// Tells the workers that hold any of these jobs that their client has gone away.
    pub fn cancel(&self, jobs: &JobRange) {
        for worker in self.all.iter().filter(|worker| worker.holds_any(jobs)) {
            // An error means that the link has ended, and with it the jobs' attempts.
            let _ = worker.link.send(LinkCommand::Cancel(jobs.clone()));
        }
    }

    /// Whether a batch of this model may be told to give way: no other is giving way, and any worker can continue its
    /// members.
    fn may_preempt(&self, model: ModelId) -> bool {
        let mut serving = self.all.iter().filter(|worker| !worker.released && worker.model.model == model);
        let alike = serving.clone().zip(serving.clone().skip(1)).all(|(a, b)| a.fingerprint == b.fingerprint);
        alike && !serving.any(Worker::has_batch_that_gives_way)
    }

    /// Whether a worker with credit serves this target.
    pub fn have_credit_for(&self, target: &Target) -> bool {
        self.with_credit().any(|worker| self.serves(worker.model, target))
    }

    /// Whether any worker takes a batch.
    pub fn have_credit(&self) -> bool {
        self.with_credit().next().is_some()
    }

    fn with_credit(&self) -> impl Iterator<Item = &Worker> + Clone {
        self.all.iter().filter(|worker| worker.credit > 0 && !worker.released && !worker.is_quarantined())
    }

    /// The worker with this number.
    pub fn get(&self, id: WorkerId) -> Option<&Worker> {
        self.all.iter().find(|worker| worker.id == id)
    }

    /// All workers.
    pub fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.all.iter()
    }

    /// Whether no connected worker takes batches.
    pub fn none_serving(&self) -> bool {
        self.all.iter().all(|worker| worker.released)
    }

    /// The workers that have asked to leave and are not needed: another with their model stays, or there is no work for
    /// them and none is coming. `waiting`: the targets of the jobs that wait. `arriving`: whether request bodies are being read.
    pub fn releasable<'a>(
        &self,
        waiting: &(impl Iterator<Item = &'a Target> + Clone),
        arriving: bool,
        now: Instant,
    ) -> Vec<WorkerId> {
        let equal_stays =
            |leaver: &Worker| self.all.iter().any(|worker| !worker.is_draining() && worker.model == leaver.model);
        let is_idle =
            |leaver: &Worker| leaver.members == 0 && !waiting.clone().any(|target| self.serves(leaver.model, target));
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

    /// The buckets that workers with this worker model serve.
    fn served_by(&self, model: WorkerModel, buckets: &[Bucket]) -> Vec<Bucket> {
        buckets.iter().filter(|bucket| self.serves(model, &bucket.key.target)).copied().collect()
    }
}

#[cfg(test)]
mod tests;
