//! Does what the proxy's scheduler does, with the proxy's own queue, policy and workers.

use pillion_proxy::domain::Demand;
use pillion_proxy::domain::Job;
use pillion_proxy::policy::candidates::Size;
use pillion_proxy::policy::{Decision, View};
use pillion_proxy::scheduler::WorkerId;
use pillion_proxy::scheduler::queue::Limits;
use tokio::time::Instant;

use super::engines::Batch;
use super::{Asker, BYTES, Event, TICK, World};
use crate::policy_simulator::{Mechanism, Rule, mechanism};

impl World<'_> {
    /// Sends batches to workers, as the scheduler does.
    pub(super) fn dispatch(&mut self) {
        let most = self.setting.max_batch_size;
        let set = self.wakes.take();
        while !self.queue.is_empty() {
            if !self.workers.have_credit() {
                return;
            }
            let waiting = self.queue.window();
            let oldest = waiting.iter().map(|bucket| bucket.since).min().unwrap_or(self.now);
            let buckets = mechanism::seen(waiting.clone(), self.setting.without, self.now);
            // With a rate of 0, requests of all sizes share a batch: no others are expected that would wait for the long ones.
            let rate = if self.setting.rule == Rule::Pillion { self.policy.texts_per_second(self.now) } else { 0.0 };
            let Some((id, mut candidate)) = self.workers.next(&buckets, most, |_| rate, &[], self.now) else { return };
            let Some(worker) = self.workers.get_mut(id) else { return };
            if self.setting.without == Some(Mechanism::ShortestFirst) {
                candidate.since += mechanism::LONG_AGO;
            }
            let view = View { arriving: self.arriving, ..worker.view(&candidate, self.sites.len(), self.now) };
            if let Rule::Timer(timer) = self.setting.rule {
                let due = oldest + timer;
                if view.ending > 0 {
                    return;
                }
                if self.queue.len() < most && self.now < due {
                    return self.wake(due, set);
                }
            }
            let is_due = view.is_due;
            let view = mechanism::view(view, self.setting.without);
            if let Decision::HoldUntil(until) = self.policy.decide(&view, self.now) {
                self.held_since.get_or_insert(self.now);
                return self.wake(until + TICK, set);
            }
            if let Some(since) = self.held_since.take() {
                self.longest_hold = self.longest_hold.max(self.now - since);
            }
            let share =
                if self.has(Mechanism::Sharing) { self.workers.share(&candidate.demand, id) } else { usize::MAX };
            let limits = Limits { members: most.min(share), tokens: u64::MAX, bytes: usize::MAX };
            // Without grouping, a batch takes jobs from the buckets of all sizes.
            let from = if self.has(Mechanism::Grouping) { &candidate.buckets } else { &waiting };
            let (jobs, _) = self.queue.take_batch(from, &limits);
            self.watch_the_oldest(&jobs);
            self.depart(id, jobs, is_due);
        }
        self.policy.nobody_waits();
    }

    /// Sets the timer. As in the scheduler there is only one, and `set` is the time for which it was set before.
    fn wake(&mut self, at: Instant, set: Option<Instant>) {
        self.wakes = Some(at);
        if set != Some(at) {
            self.at(at, Event::Wake);
        }
    }

    /// If younger jobs leave before the oldest one, records how long the oldest one has waited.
    fn watch_the_oldest(&mut self, leaving: &[Box<Job>]) {
        let Some(oldest) = self.queue.window().into_iter().min_by_key(|bucket| bucket.since) else { return };
        if leaving.iter().any(|job| job.waits_since <= oldest.since) {
            return;
        }
        for (request, longest) in self.setting.requests.iter().zip(&mut self.longest_passings) {
            let mut demand = Demand::default();
            demand.add(request.prompt as usize * BYTES, request.answer, 0);
            if Size::of(&demand) == oldest.size {
                *longest = (*longest).max(self.now - oldest.since);
            }
        }
    }

    fn depart(&mut self, id: WorkerId, mut jobs: Vec<Box<Job>>, is_due: bool) {
        let Some(worker) = self.workers.get_mut(id) else { return };
        for job in &mut jobs {
            job.leave_queue(&worker.fingerprint, 1, self.now).expect("nothing streams");
            if let Some(Asker { kind, .. }) = self.askers.get(&job.id) {
                self.longest_waits[*kind] = self.longest_waits[*kind].max(self.now - job.waits_since);
            }
        }
        let dispatched = worker.dispatch(&jobs, is_due, self.now);
        let worker = usize::try_from(id.0).expect("few workers");
        self.sites[worker].batches.push_back(Batch {
            dispatched,
            jobs: jobs.into(),
            is_ready: false,
            made_room: false,
            run: None,
            prompt_tokens: 0,
            completion_tokens: 0,
        });
        self.batches += 1;
        self.at(self.now + self.setting.host.handover, Event::Ready { worker });
    }

    /// Interrupts batches in favour of requests that wait, as the scheduler does.
    pub(super) fn preempt(&mut self) {
        let buckets = mechanism::seen(self.queue.window(), self.setting.without, self.now);
        let most = self.setting.max_batch_size;
        let told = self.workers.should_give_way(buckets, most, |_| Some(&self.policy), self.now);
        if let Some((id, batch, remains)) = told {
            self.workers.get_mut(id).expect("no worker leaves").give_way(batch);
            self.policy.preemption.spend(&remains);
            let worker = usize::try_from(id.0).expect("few workers");
            self.at(self.now + self.setting.host.handover / 2, Event::Yield { worker, batch: batch.0 });
        }
    }
}
