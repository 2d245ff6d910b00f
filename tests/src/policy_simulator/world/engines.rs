//! What happens at the workers: batches reach an engine, members end, and unfinished members of interrupted batches
//! come back.

use std::collections::VecDeque;
use std::time::Duration;

use pillion_protocol::BatchId;
use pillion_protocol::frame::BatchCost;
use pillion_proxy::domain::Job;
use pillion_proxy::policy::forecast::BatchOutcome;
use pillion_proxy::scheduler::WorkerId;
use pillion_proxy::scheduler::batch::DispatchedBatch;
use pillion_proxy::scheduler::worker::Worker;
use tokio::time::Instant;

use super::{Asker, BYTES, Event, World};
use crate::policy_simulator::{Engine, Mechanism};

/// A batch on its way to the engine, waiting for the engine, or running.
pub(super) struct Batch {
    pub(super) dispatched: DispatchedBatch,
    /// The jobs that have not ended, in the order in which they will end.
    pub(super) jobs: VecDeque<Box<Job>>,
    /// Whether the batch has reached the engine.
    pub(super) is_ready: bool,
    /// Whether the credit that follows the batch has been granted.
    pub(super) made_room: bool,
    /// When the batch began to run, and the times from then to the ends of its members.
    pub(super) run: Option<(Instant, VecDeque<Duration>)>,
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
}

pub(super) struct Site {
    pub(super) engine: Engine,
    /// The worker's batches. The first one may be running.
    pub(super) batches: VecDeque<Batch>,
    pub(super) busy: Duration,
}

impl World<'_> {
    /// Grants a credit, unless it follows a batch after which a credit was granted already.
    pub(super) fn grant(&mut self, worker: usize, after: Option<u64>) {
        let batches = &mut self.sites[worker].batches;
        let due = after.is_none_or(|id| {
            let batch = batches.iter_mut().find(|batch| batch.dispatched.batch.0 == id);
            batch.is_some_and(|batch| !std::mem::replace(&mut batch.made_room, true))
        });
        self.worker(worker).credit += u32::from(due);
    }

    fn worker(&mut self, worker: usize) -> &mut Worker {
        self.workers.get_mut(WorkerId(worker as u64)).expect("no worker leaves")
    }

    /// Starts the next batch that has reached the engine, if the engine is free.
    pub(super) fn start(&mut self, worker: usize) {
        let (now, lead) = (self.now, self.setting.host.lead);
        let site = &mut self.sites[worker];
        let Some(batch) = site.batches.front_mut().filter(|batch| batch.is_ready && batch.run.is_none()) else {
            return;
        };
        let asks: Vec<(u32, u32)> = batch.jobs.iter().map(|job| fed_and_left(job)).collect();
        let mut ends: Vec<(Duration, usize)> = site.engine.ends(&asks).into_iter().zip(0..).collect();
        ends.sort_unstable();
        let mut jobs: Vec<_> = batch.jobs.drain(..).map(Some).collect();
        batch.jobs = ends.iter().filter_map(|&(_, nth)| jobs[nth].take()).collect();
        let ends: VecDeque<Duration> = ends.into_iter().map(|(end, _)| end).collect();
        let whole = ends.back().copied().unwrap_or_default();
        let id = batch.dispatched.batch.0;
        let groups: Vec<Duration> = ends.iter().copied().collect();
        batch.run = Some((now, ends));
        self.at(now + whole.saturating_sub(lead), Event::Credit { worker, after: Some(id) });
        for group in groups.chunk_by(|a, b| a == b) {
            self.at(now + group[0], Event::Ended { worker, batch: id, members: group.len() });
        }
    }

    pub(super) fn ended(&mut self, worker: usize, id: u64, members: usize) {
        let Some(batch) = self.sites[worker].batches.front_mut().filter(|batch| batch.dispatched.batch.0 == id) else {
            return;
        };
        let ended: Vec<_> = batch.jobs.drain(..members.min(batch.jobs.len())).collect();
        if let Some((_, ends)) = &mut batch.run {
            ends.drain(..ended.len());
        }
        batch.completion_tokens += ended.iter().map(|job| u64::from(job.request.max_new_tokens)).sum::<u64>();
        batch.prompt_tokens += ended.iter().map(|job| (job.request.bytes() / BYTES) as u64).sum::<u64>();
        if self.has(Mechanism::Returns) {
            self.policy.returns.answered(ended.len(), self.now);
        }
        self.worker(worker).ended(BatchId(id), ended.len());
        for job in ended {
            let at = self.host(self.setting.host.answer);
            if let Some(Asker { client, sent, kind }) = self.askers.remove(&job.id) {
                self.at(at, Event::Answered { client, sent, kind });
            }
        }
        if self.sites[worker].batches.front().is_some_and(|batch| batch.jobs.is_empty()) {
            self.done(worker);
        }
    }

    /// Takes the unfinished members of a batch back, with the tokens that they have produced, unless the batch has
    /// ended.
    pub(super) fn give_back(&mut self, worker: usize, id: u64) {
        let now = self.now;
        let Some(batch) = self.sites[worker].batches.front_mut().filter(|batch| batch.dispatched.batch.0 == id) else {
            return;
        };
        let Some((since, ends)) = &batch.run else { return };
        let ran = now - *since;
        let mut back: Vec<_> = batch.jobs.drain(..).collect();
        for (job, end) in back.iter_mut().zip(ends) {
            let (_, left) = fed_and_left(job);
            // All tokens are assumed to take the same time. A step that is not complete has produced no token.
            let done = f64::from(left) * ran.div_duration_f64(*end);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count, and a guess")]
            let done = (done as usize).min(left.saturating_sub(1) as usize);
            job.progress.produced.extend(std::iter::repeat_n(0, done));
            job.gave_way += 1;
            job.waits_since = now;
        }
        self.preempted += back.len();
        self.worker(worker).ended(BatchId(id), back.len());
        back.into_iter().for_each(|job| self.queue.push(job));
        self.grant(worker, Some(id));
        self.done(worker);
    }

    fn done(&mut self, worker: usize) {
        let now = self.now;
        let Some(batch) = self.sites[worker].batches.pop_front() else { return };
        let Some((since, _)) = batch.run else { return };
        let ran = now - since;
        self.sites[worker].busy += ran;
        let Batch { dispatched, prompt_tokens, completion_tokens, .. } = batch;
        let engine_us = u64::try_from(ran.as_micros()).unwrap_or(u64::MAX);
        let cost = BatchCost { engine_us, cohorts: 1, steps: dispatched.demand.longest.into(), ..BatchCost::default() };
        self.policy.ended(dispatched.demand.members, now);
        self.policy.preemption.worked(ran);
        self.worker(worker).done(&dispatched, &BatchOutcome { prompt_tokens, completion_tokens, cost }, now);
        self.start(worker);
    }
}

/// The number of tokens that a job is fed, and the number that it still gets.
fn fed_and_left(job: &Job) -> (u32, u32) {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let produced = count(job.progress.produced.len());
    (count(job.request.bytes() / BYTES) + produced, job.request.max_new_tokens.saturating_sub(produced).max(1))
}
