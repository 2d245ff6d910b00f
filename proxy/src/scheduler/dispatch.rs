//! What the scheduler does after it handled messages: it expires jobs, sends and preempts batches, releases workers.

use pillion_protocol::codec::MAX_BATCH_TEXT;
use tokio::time::Instant;
use tracing::{info, warn};

use super::Scheduler;
use super::message::LinkCommand;
use crate::domain::{BatchKey, Failure, Quarantine};
use crate::metrics::Trigger;
use crate::policy::{Decision, View};
use crate::scheduler::queue::{Filled, Limits};

impl Scheduler {
    /// Fails the jobs that have waited for as long as they may.
    pub(super) fn expire(&mut self, now: Instant) {
        for job in self.queue.take_expired(now) {
            job.reply.fail(Failure::Deadline);
        }
        let unserved = |key: &BatchKey| self.workers.unserved_since(key, self.start);
        for job in self.queue.take_unserved(unserved, self.settings.worker_wait, now) {
            let is_tied = job.request.key.is_tied();
            job.reply.fail(if is_tied { Failure::ModelGone } else { Failure::NoWorker });
        }
    }

    /// When the next job expires.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let unserved = |key: &BatchKey| self.workers.unserved_since(key, self.start);
        let unserved = self.queue.next_unserved(unserved, self.settings.worker_wait).map(|(due, _)| due);
        [self.queue.next_deadline(), unserved].into_iter().flatten().min()
    }

    /// Sends a batch for each free credit, as far as the policy allows. Returns the time until which the policy holds
    /// the next batch back, if it does.
    pub(super) fn dispatch(&mut self, now: Instant) -> Option<Instant> {
        loop {
            if self.queue.is_empty() {
                self.policy.nobody_waits();
                return None;
            }
            if !self.workers.have_credit() {
                return None;
            }
            let max_size = self.max_size();
            let rate = self.policy.texts_per_second(now);
            let (id, candidate) = self.workers.next(&self.queue.buckets(), max_size, rate, now)?;
            let share = self.workers.share(&candidate.demand, id);
            let engines = self.workers.engines();
            let worker = self.workers.get_mut(id)?;
            let arriving = self.admission.arriving().get();
            let view = View { arriving, ..worker.view(&candidate, engines, now) };
            let until_deadline = self.queue.next_deadline().map(|deadline| deadline.saturating_duration_since(now));
            let slack = until_deadline.map(|left| left.saturating_sub(view.ends_in + view.time));
            let view = View { slack, ..view };
            let was_held = match self.policy.decide(&view, now) {
                Decision::HoldUntil(until) => return Some(until),
                Decision::Go { held } => held,
            };
            let limits = Limits {
                members: max_size.min(share).min(candidate.quarantine().max_size()),
                tokens: u64::from(worker.hello.max_batch_tokens),
                bytes: MAX_BATCH_TEXT,
            };
            // A link without room has ended. Its last event, which removes the worker, is on its way.
            let link = worker.link.clone();
            let Ok(room) = link.try_reserve() else {
                worker.credit = 0;
                continue;
            };
            let (mut jobs, filled) = self.queue.take_batch(&candidate.buckets, &limits);
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
                Filled::Members if jobs.len() == max_size => Trigger::Full,
                Filled::Tokens => Trigger::Tokens,
                _ if was_held => Trigger::Hold,
                _ => Trigger::Idle,
            };
            self.metrics.batch(trigger, jobs.len());
            for job in &jobs {
                self.metrics.queue_duration.record((now - job.admitted).as_secs_f64());
            }
            let dispatched = worker.dispatch(&jobs, view.is_due, now);
            if candidate.quarantine() != Quarantine::None {
                let (batch, members) = (dispatched.batch.0, jobs.len());
                warn!(worker = id.0, batch, members, "a batch of quarantined jobs: workers have died with them");
            }
            room.send(LinkCommand::Batch(jobs, dispatched));
        }
    }

    /// Tells a running batch to give way to the jobs that wait, if that pays.
    pub(super) fn preempt(&mut self, now: Instant) {
        if self.queue.is_empty() {
            return;
        }
        let chosen = self.workers.should_give_way(&self.queue.buckets(), self.max_size(), &self.policy, now);
        if let Some((id, batch, remains)) = chosen
            && let Some(worker) = self.workers.get_mut(id)
            && worker.link.try_send(LinkCommand::Yield(batch)).is_ok()
        {
            worker.give_way(batch);
            self.policy.preemption.spend(&remains);
        }
    }

    /// Tells workers that have asked to leave and are not needed that they may. Returns when to check again, if nothing
    /// happens before.
    pub(super) fn release(&mut self, now: Instant) -> Option<Instant> {
        if !self.workers.iter().any(|worker| worker.is_draining() && !worker.released) {
            return None;
        }
        let arriving = self.admission.arriving().get() > 0;
        for id in self.workers.releasable(&self.queue.keys(), arriving, now) {
            if let Some(worker) = self.workers.get_mut(id)
                && worker.link.try_send(LinkCommand::Release).is_ok()
            {
                self.workers.release(id, now);
                info!(worker = id.0, "the worker asked to leave and is released");
            }
        }
        self.workers.next_leave(arriving, now)
    }
}
