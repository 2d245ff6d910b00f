//! What leaves the queue: for a worker, since it pays or is time; for good, since its time is over. And what is called back.

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
    /// Ends what has waited for as long as it may.
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

    /// The next instant at which something is due though nothing happens.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let unserved = |key: &BatchKey| self.workers.unserved_since(key, self.start);
        let unserved = self.queue.next_unserved(unserved, self.settings.worker_wait).map(|(due, _)| due);
        [self.queue.next_deadline(), unserved].into_iter().flatten().min()
    }

    /// Every free credit takes what waits, as far as the policy allows. Until when the policy holds the next batch back,
    /// if it does.
    pub(super) fn dispatch(&mut self, now: Instant) -> Option<Instant> {
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
            let (id, candidate) = self.workers.next(&self.queue.buckets(), most, rate, now)?;
            let share = self.workers.share(&candidate.demand, id);
            let engines = self.workers.engines();
            let worker = self.workers.get_mut(id)?;
            let arriving = self.admission.count_arriving();
            let view = View { arriving, ..worker.view(&candidate, engines, now) };
            let first = self.queue.next_deadline().map(|deadline| deadline.saturating_duration_since(now));
            let slack = first.map(|left| left.saturating_sub(view.ends_in + view.time));
            let view = View { slack, ..view };
            let was_held = match self.policy.decide(&view, now) {
                Decision::HoldUntil(until) => return Some(until),
                Decision::Go { held } => held,
            };
            let limits = Limits {
                members: most.min(share).min(candidate.quarantine().most()),
                tokens: u64::from(worker.hello.max_batch_tokens),
                bytes: MAX_BATCH_TEXT,
            };
            // A link without room is one that has ended; its last word, which takes the worker out, is on its way.
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
                Filled::Members if jobs.len() == most => Trigger::Full,
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
                warn!(worker = id.0, batch, members, "workers have died with these: apart");
            }
            room.send(LinkCommand::Batch(jobs, dispatched));
        }
    }

    /// A batch of which little is left gives way to those who wait, where that pays.
    pub(super) fn preempt(&mut self, now: Instant) {
        if self.queue.is_empty() {
            return;
        }
        let told = self.workers.should_give_way(&self.queue.buckets(), self.most(), &self.policy, now);
        if let Some((id, batch, remains)) = told
            && let Some(worker) = self.workers.get_mut(id)
            && worker.link.try_send(LinkCommand::Yield(batch)).is_ok()
        {
            worker.give_way(batch);
            self.policy.preemption.spend(&remains);
        }
    }

    /// Workers that want to leave and are not needed are told that they may. When to look again, if nothing happens
    /// before.
    pub(super) fn release(&mut self, now: Instant) -> Option<Instant> {
        if !self.workers.iter().any(|worker| worker.is_draining() && !worker.released) {
            return None;
        }
        let arriving = self.admission.count_arriving() > 0;
        for id in self.workers.releasable(&self.queue.keys(), arriving, now) {
            if let Some(worker) = self.workers.get_mut(id)
                && worker.link.try_send(LinkCommand::Release).is_ok()
            {
                self.workers.release(id, now);
                info!(worker = id.0, "the worker may leave");
            }
        }
        self.workers.next_leave(arriving, now)
    }
}
