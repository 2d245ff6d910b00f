//! What the scheduler does after it handled messages: it expires jobs, sends and preempts batches, releases workers.

use pillion_protocol::codec::MAX_BATCH_TEXT;
use tokio::sync::mpsc::error::SendError;
use tokio::time::Instant;
use tracing::{info, warn};

use super::Scheduler;
use super::message::{LinkCommand, WorkerId};
use super::queue::{Filled, Limits};
use crate::domain::{Failure, ModelId, Quarantine, Target};
use crate::metrics::Trigger;
use crate::policy::candidates::BatchCandidate;
use crate::policy::{Decision, View};

impl Scheduler {
    /// Fails the jobs that have waited for as long as they may.
    pub(super) fn expire(&mut self, now: Instant) {
        for job in self.queue.take_expired(now) {
            job.reply.fail(Failure::Expired);
        }
        let unserved = |target: &Target| self.workers.unserved_since(target, self.start);
        for job in self.queue.take_unserved(unserved, self.settings.worker_wait, now) {
            let is_tied = job.request.key.target.is_tied();
            job.reply.fail(if is_tied { Failure::ModelGone } else { Failure::NoWorker });
        }
    }

    /// When the next job expires.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let unserved = |target: &Target| self.workers.unserved_since(target, self.start);
        let unserved = self.queue.next_unserved(unserved, self.settings.worker_wait);
        [self.queue.next_deadline(|_| true), unserved].into_iter().flatten().min()
    }

    /// Sends a batch for each free credit, as far as the policies allow. Returns the time until which a batch is held back, if
    /// one is.
    pub(super) fn dispatch(&mut self, now: Instant) -> Option<Instant> {
        if self.queue.is_empty() {
            self.policies.end_holds_but(&[]);
            return None;
        }
        let (mut held, mut until): (Vec<_>, Vec<_>) = self.policies.held(now).into_iter().unzip();
        while !self.queue.is_empty() && self.workers.have_credit() {
            let rate = |model| self.policies.texts_per_second(model, now);
            let Some((id, candidate)) = self.workers.next(&self.queue.window(), self.max_size(), rate, &held, now)
            else {
                break;
            };
            if let Some((model, held_until)) = self.dispatch_or_hold(id, &candidate, now) {
                self.policies.hold(model, held_until);
                held.push(model);
                until.push(held_until);
            }
        }
        self.policies.end_holds_but(&held);
        until.into_iter().min()
    }

    /// Sends a batch of this candidate to this worker, unless the policy holds it back: for which model, and until when.
    fn dispatch_or_hold(
        &mut self,
        id: WorkerId,
        candidate: &BatchCandidate,
        now: Instant,
    ) -> Option<(ModelId, Instant)> {
        let max_size = self.max_size();
        let worker = self.workers.get(id)?;
        let model = worker.model;
        let view = worker.view(candidate, self.workers.engines(model.model), now);
        let deadline = self.queue.next_deadline(|target| self.workers.serves(model, target));
        let left = deadline.map(|deadline| deadline.saturating_duration_since(now));
        let slack = left.map(|left| left.saturating_sub(view.ends_in + view.time));
        let view = View { arriving: self.admission.arriving().get(), slack, ..view };
        let was_held = match self.policies.of(model.model).decide(&view, now) {
            Decision::HoldUntil(until) => return Some((model.model, until)),
            Decision::Go { held } => held,
        };
        let limits = Limits {
            members: max_size.min(self.workers.share(&candidate.demand, id)).min(candidate.quarantine().max_size()),
            tokens: u64::from(worker.hello.max_batch_tokens),
            bytes: MAX_BATCH_TEXT,
        };
        let (mut jobs, filled) = self.queue.take_batch(&candidate.buckets, &limits);
        let (members, fingerprint) = (jobs.len(), worker.fingerprint.clone());
        jobs.retain_mut(|job| match job.leave_queue(&fingerprint, members, now) {
            Ok(()) => true,
            Err(failure) => {
                job.reply.take().fail(failure);
                false
            }
        });
        if jobs.is_empty() {
            return None;
        }
        if jobs.len() < members {
            let members = jobs.len();
            jobs.iter_mut().filter_map(|job| job.dispatch.as_mut()).for_each(|dispatch| dispatch.members = members);
        }
        // In this order a job is found quickly when it is cancelled.
        jobs.sort_unstable_by_key(|job| job.id);
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
        let worker = self.workers.get_mut(id)?;
        let dispatched = worker.dispatch(&jobs, view.is_due, now);
        if candidate.quarantine() != Quarantine::None {
            let (batch, members) = (dispatched.batch.0, jobs.len());
            warn!(worker = id.0, batch, members, "a batch of quarantined jobs: workers have died with them");
        }
        if let Err(SendError(LinkCommand::Batch(jobs, _))) = worker.link.send(LinkCommand::Batch(jobs, dispatched)) {
            // The link has ended. Its last event, which removes the worker, is on its way.
            worker.credit = 0;
            for mut job in jobs {
                job.attempts = job.attempts.saturating_sub(1);
                self.requeue(job);
            }
        }
        None
    }

    /// Tells a running batch to give way to the jobs that wait, if that pays.
    pub(super) fn preempt(&mut self, now: Instant) {
        if self.queue.is_empty() {
            return;
        }
        let policy = |model| self.policies.get(model);
        let chosen = self.workers.should_give_way(self.queue.window(), self.max_size(), policy, now);
        if let Some((id, batch, remains)) = chosen
            && let Some(worker) = self.workers.get_mut(id)
            && worker.link.send(LinkCommand::Yield(batch)).is_ok()
        {
            worker.give_way(batch);
            self.policies.of(worker.model.model).preemption.spend(&remains);
        }
    }

    /// Tells workers that have asked to leave and are not needed that they may. Returns when to check again, if nothing
    /// happens before.
    pub(super) fn release(&mut self, now: Instant) -> Option<Instant> {
        if !self.workers.iter().any(|worker| worker.is_draining() && !worker.released) {
            return None;
        }
        let arriving = self.admission.arriving().get() > 0;
        for id in self.workers.releasable(&self.queue.targets(), arriving, now) {
            if let Some(worker) = self.workers.get_mut(id)
                && worker.link.send(LinkCommand::Release).is_ok()
            {
                self.workers.release(id, now);
                info!(worker = id.0, "the worker asked to leave and is released");
            }
        }
        self.workers.next_leave(arriving, now)
    }
}
