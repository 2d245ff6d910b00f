//! How the rest of the proxy speaks to the batcher.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::workers::WorkerId;
use super::{FromLink, Message};
use crate::admission::{Admission, Promise, Rejected};
use crate::job::{Ask, End, Failure, Job, JobId, JobRange, Progress, Reply};

/// For requests. Cheap to clone; the batcher ends when all handles and ports are gone.
#[derive(Clone, Debug)]
pub struct Handle {
    outbox: mpsc::Sender<Message>,
    admission: Admission,
    serving: watch::Receiver<usize>,
    next_job: Arc<AtomicU64>,
}

impl Handle {
    pub(super) fn new(outbox: mpsc::Sender<Message>, admission: Admission, serving: watch::Receiver<usize>) -> Self {
        Self { outbox, admission, serving, next_job: Arc::new(AtomicU64::new(1)) }
    }

    /// The door in front of the queue.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Workers that are connected and take batches.
    pub fn workers_serving(&self) -> usize {
        *self.serving.borrow()
    }

    /// Logs what waits and what is in flight, if the batcher is not too busy to hear of it.
    pub fn dump(&self) {
        let _ = self.outbox.try_send(Message::Dump);
    }

    /// A client that had its last answer at this instant has closed its connection. Only a hint: where the batcher is too
    /// busy to hear of it, nothing is lost.
    pub fn left(&self, answered: Instant) {
        let _ = self.outbox.try_send(Message::Left(answered));
    }

    /// Ends the batcher; links that it fed then say goodbye to their workers.
    pub async fn close(&self) {
        // An error means that it has ended already.
        let _ = self.outbox.send(Message::Close).await;
    }

    /// Admits the texts of one request, all or none. Each gets exactly one terminal event on the ticket.
    ///
    /// # Errors
    /// There is no room; nothing was admitted.
    pub fn submit(&self, asks: Vec<Ask>, past: Past, now: Instant, deadline: Instant) -> Result<Ticket, Rejected> {
        let Past { answered, promised } = past;
        let texts = asks.len();
        let slots = self.admission.texts(texts, promised, now)?;
        let room = || self.outbox.clone().try_reserve_owned().map_err(|_| Rejected::Draining);
        let (submit, cancel) = (room()?, room()?);
        let mut ends = Vec::with_capacity(texts);
        let first = self.next_job.fetch_add(texts as u64, Relaxed);
        let jobs = (first..).zip(asks).zip(slots).map(|((id, ask), slot)| {
            let (reply, end) = Reply::new();
            ends.push(end);
            Box::new(Job {
                id: JobId(id),
                ask,
                admitted: now,
                waits_since: now,
                deadline,
                progress: Progress::default(),
                attempts: 0,
                gave_way: 0,
                slot: Some(slot),
                reply,
            })
        });
        submit.send(Message::Submit(jobs.collect(), answered));
        Ok(Ticket { ends, heard: 0, jobs: first..first + texts as u64, cancel: Some(cancel) })
    }
}

/// What went before a request on its connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Past {
    /// When its client had its last answer, if it had one: it helps to foresee when others will come.
    pub answered: Option<Instant>,
    /// What it was told, if it was refused.
    pub promised: Option<Promise>,
}

/// A request's claim on its terminal events. Dropping it before they have all come cancels what is left.
#[derive(Debug)]
pub struct Ticket {
    /// One a text, in the request's order.
    ends: Vec<oneshot::Receiver<End>>,
    /// How many have come.
    heard: usize,
    jobs: JobRange,
    cancel: Option<mpsc::OwnedPermit<Message>>,
}

impl Ticket {
    /// The next text's terminal event, in the request's order; `None` once every text has had its own.
    pub async fn next(&mut self) -> Option<End> {
        let end = self.ends.get_mut(self.heard)?.await;
        self.heard += 1;
        // A reply says something even where it is dropped.
        Some(end.unwrap_or(Err(Failure::Internal)))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.heard < self.ends.len()
            && let Some(cancel) = self.cancel.take()
        {
            self.ends.clear();
            cancel.send(Message::Cancel(self.jobs.clone()));
        }
    }
}

/// For links.
#[derive(Clone, Debug)]
pub struct LinkPort {
    outbox: mpsc::Sender<Message>,
    next_worker: Arc<AtomicU64>,
}

impl LinkPort {
    pub(super) fn new(outbox: mpsc::Sender<Message>) -> Self {
        Self { outbox, next_worker: Arc::new(AtomicU64::new(1)) }
    }

    /// A number for a new connection.
    pub fn new_worker(&self) -> WorkerId {
        WorkerId(self.next_worker.fetch_add(1, Relaxed))
    }

    /// Tells the batcher. Waits while its inbox is full; the batcher never waits for a link.
    pub async fn tell(&self, worker: WorkerId, news: FromLink) {
        // The batcher is gone only while the proxy shuts down; replies that are dropped then speak for themselves.
        let _ = self.outbox.send(Message::Link(worker, news)).await;
    }
}
