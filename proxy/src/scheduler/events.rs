//! Handles what links report, and requeues jobs whose attempt ended early.

use std::time::{Duration, SystemTime};

use pillion_protocol::BatchId;
use tokio::time::Instant;
use tracing::warn;

use super::Scheduler;
use super::batch::CompletedBatch;
use super::message::{LinkEvent, WorkerId};
use crate::domain::{Failure, Job, ModelId};

impl Scheduler {
    pub(super) fn on_link_event(&mut self, id: WorkerId, event: LinkEvent) {
        if self.is_closed {
            return drop_event(event);
        }
        if let Some(worker) = self.workers.get(id) {
            self.policies.concerns(worker.model.model);
        }
        match event {
            LinkEvent::Up(hello, link) => {
                self.metrics.workers_connected(&hello.model).increment(1.0);
                if self.lost_workers > 0 {
                    self.lost_workers -= 1;
                    self.metrics.worker_reconnects.increment(1);
                }
                let mut model = ModelId::ANY;
                self.serving.send_modify(|serving| {
                    model = serving.models.announced(&hello, SystemTime::now());
                    self.policies.retain(|model| serving.models.has(model));
                });
                self.workers.add(id, hello, model, link, Instant::now());
            }
            LinkEvent::Credit(grant) => {
                if let Some(worker) = self.workers.get_mut(id) {
                    worker.credit = worker.credit.saturating_add(grant);
                }
            }
            LinkEvent::Ended { batch, members, answered } => {
                if let Some(worker) = self.workers.get_mut(id) {
                    worker.ended(batch, members);
                    self.policies.of(worker.model.model).returns.answered(answered, Instant::now());
                }
            }
            LinkEvent::Done(CompletedBatch { dispatched, outcome, .. }) => {
                if let Some(worker) = self.workers.get_mut(id) {
                    worker.done(&dispatched, &outcome, Instant::now());
                    let policy = self.policies.of(worker.model.model);
                    policy.ended(dispatched.demand.members, Instant::now());
                    policy.preemption.worked(Duration::from_micros(outcome.cost.engine_us));
                }
            }
            LinkEvent::Yielded(batch, members, jobs) => {
                let gives_way = self.workers.get_mut(id).is_some_and(|worker| {
                    worker.ended(batch, members);
                    worker.gives_way(batch)
                });
                let resumed = if gives_way { &self.metrics.resumed_preempted } else { &self.metrics.resumed_yielded };
                resumed.increment(jobs.len() as u64);
                // Nothing went wrong, so the attempt does not count.
                for mut job in jobs {
                    job.attempts = job.attempts.saturating_sub(1);
                    if gives_way {
                        job.gave_way += 1;
                        job.waits_since = Instant::now();
                    }
                    self.requeue(job);
                }
            }
            LinkEvent::Unsent(batch) => {
                if let Some(worker) = self.workers.get_mut(id) {
                    worker.unsent(batch, Instant::now());
                }
            }
            LinkEvent::Draining => self.workers.drains(id, Instant::now()),
            LinkEvent::Down(jobs) => self.on_worker_down(id, jobs),
        }
        self.publish_serving();
    }

    /// Handles the end of a worker's connection. Its jobs wait again, except those that were suspected too often.
    fn on_worker_down(&mut self, id: WorkerId, jobs: Vec<(Option<BatchId>, Box<Job>)>) {
        let worker = self.workers.remove(id, Instant::now());
        if let Some(worker) = &worker {
            self.metrics.workers_connected(&worker.hello.model).decrement(1.0);
            self.serving.send_modify(|serving| serving.models.left(worker.model.model));
            self.lost_workers += 1;
        }
        // A worker that asked to leave was being stopped, so its jobs are not suspected.
        let died = worker.filter(|worker| !worker.is_draining());
        for (batch, mut job) in jobs {
            let was_running = batch.is_some_and(|batch| died.as_ref().is_some_and(|worker| worker.runs(batch)));
            match if was_running { job.suspect(self.settings.max_attempts) } else { Ok(()) } {
                Ok(()) => {
                    self.metrics.resumed_worker_lost.increment(1);
                    self.requeue(job);
                }
                Err(failure) => {
                    let (job_id, suspicions) = (job.id.0, job.suspicions);
                    warn!(job = job_id, suspicions, "a job has failed, because workers died while they ran it");
                    job.reply.fail(failure);
                }
            }
        }
    }

    /// Puts a job whose attempt ended early back into the queue, or fails it if no worker could continue it.
    pub(super) fn requeue(&mut self, mut job: Box<Job>) {
        if job.reply.is_abandoned() {
            self.metrics.cancelled_running.increment(1);
        } else if let Err(failure) = job.requeue() {
            job.reply.fail(failure);
        } else {
            self.policies.concerns(job.request.key.target.model);
            job.slot = Some(self.admission.readmit());
            self.queue.push(job);
        }
    }

    fn publish_serving(&mut self) {
        let serving = self.workers.iter().filter(|worker| !worker.is_draining()).count();
        let leaving = self.workers.leaving();
        self.serving.send_if_modified(|known| {
            let before = (known.workers, known.leaving);
            (known.workers, known.leaving) = (serving, leaving);
            before != (serving, leaving)
        });
    }
}

/// Drops an event that comes after the end. Its jobs fail.
fn drop_event(event: LinkEvent) {
    let jobs: Vec<_> = match event {
        LinkEvent::Yielded(_, _, jobs) => jobs,
        LinkEvent::Down(jobs) => jobs.into_iter().map(|(_, job)| job).collect(),
        _ => return,
    };
    jobs.into_iter().for_each(|job| job.reply.fail(Failure::ShutDown));
}
