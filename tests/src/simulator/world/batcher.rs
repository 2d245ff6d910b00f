//! What the batcher does, with the proxy's own queue, policy and workers.

use pillion_proxy::batcher::workers::WorkerId;
use pillion_proxy::job::Job;
use pillion_proxy::policy::Decision;
use pillion_proxy::policy::company::Size;
use pillion_proxy::policy::forecast::Asked;
use pillion_proxy::queue::Limits;

use super::engines::Batch;
use super::{Asker, BYTES, Event, TICK, World};
use crate::simulator::Rule;

impl World<'_> {
    /// As the batcher does it.
    pub(super) fn dispatch(&mut self) {
        let most = self.setting.max_batch_size;
        while !self.queue.is_empty() {
            if !self.workers.have_credit() {
                return;
            }
            let cells = self.queue.cells();
            let oldest = cells.iter().map(|cell| cell.since).min().unwrap_or(self.now);
            // Where nobody is expected to come, all ride together.
            let rate = if self.setting.rule == Rule::Pillion { self.policy.texts_per_second(self.now) } else { 0.0 };
            let Some((id, company)) = self.workers.next(&cells, most, rate, self.now) else { return };
            let Some(worker) = self.workers.get_mut(id) else { return };
            let view = worker.view(&company, self.sites.len(), self.now);
            if let Rule::Timer(timer) = self.setting.rule {
                let due = oldest + timer;
                if view.ending > 0 {
                    return;
                }
                if self.queue.len() < most && self.now < due {
                    return self.at(due, Event::Wake);
                }
            }
            if let Decision::HoldUntil(until) = self.policy.decide(&view, self.now) {
                self.held_since.get_or_insert(self.now);
                return self.at(until + TICK, Event::Wake);
            }
            if let Some(since) = self.held_since.take() {
                self.longest_hold = self.longest_hold.max(self.now - since);
            }
            let share = self.workers.share(&company.asked, id);
            let limits = Limits { members: most.min(share), tokens: u64::MAX, bytes: usize::MAX };
            let (jobs, _) = self.queue.take_batch(&company.cells, &limits);
            self.watch_the_oldest(&jobs);
            self.depart(id, jobs, view.is_due);
        }
        self.policy.nobody_waits();
    }

    /// For how long the oldest has waited, where younger ones go before it.
    fn watch_the_oldest(&mut self, leaving: &[Box<Job>]) {
        let Some(oldest) = self.queue.cells().into_iter().min_by_key(|cell| cell.since) else { return };
        if leaving.iter().any(|job| job.waits_since <= oldest.since) {
            return;
        }
        for (request, longest) in self.setting.requests.iter().zip(&mut self.longest_passings) {
            let mut asked = Asked::default();
            asked.add(request.prompt as usize * BYTES, request.answer, 0);
            if Size::of(&asked) == oldest.size {
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
        let departure = worker.board(&jobs, is_due, self.now);
        let worker = usize::try_from(id.0).expect("few workers");
        self.sites[worker].batches.push_back(Batch {
            departure,
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

    /// As the batcher does it.
    pub(super) fn preempt(&mut self) {
        let (cells, most) = (self.queue.cells(), self.setting.max_batch_size);
        let told = self.workers.should_give_way(&cells, most, &self.policy, self.now);
        if let Some((id, batch, remains)) = told {
            self.workers.get_mut(id).expect("no worker leaves").give_way(batch);
            self.policy.preemption.spend(&remains);
            let worker = usize::try_from(id.0).expect("few workers");
            self.at(self.now + self.setting.host.handover / 2, Event::Yield { worker, batch: batch.0 });
        }
    }
}
