//! How the rest of the proxy speaks to the batcher.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::workers::WorkerId;
use super::{FromLink, Message};
use crate::admission::{Admission, Rejected};
use crate::job::{Ask, Event, Job, JobId, JobRange, Progress, Reply};

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

    /// Ends the batcher; links that it fed then say goodbye to their workers.
    pub async fn close(&self) {
        // An error means that it has ended already.
        let _ = self.outbox.send(Message::Close).await;
    }

    /// Admits the texts of one request, all or none. Each gets exactly one terminal event on the ticket.
    ///
    /// # Errors
    /// There is no room; nothing was admitted.
    pub fn submit(&self, asks: Vec<Ask>, now: Instant, deadline: Instant) -> Result<Ticket, Rejected> {
        let texts = asks.len();
        let slots = self.admission.texts(texts)?;
        let room = || self.outbox.clone().try_reserve_owned().map_err(|_| Rejected::Draining);
        let (submit, cancel) = (room()?, room()?);
        let (sender, events) = mpsc::channel(texts.max(1));
        let first = self.next_job.fetch_add(texts as u64, Relaxed);
        let jobs = asks.into_iter().zip(slots).enumerate().filter_map(|(index, (ask, slot))| {
            Some(Job {
                id: JobId(first + index as u64),
                ask,
                admitted: now,
                deadline,
                progress: Progress::default(),
                attempts: 0,
                slot: Some(slot),
                reply: Reply::reserve(index, &sender)?,
            })
        });
        submit.send(Message::Submit(jobs.collect()));
        Ok(Ticket { events, pending: texts, jobs: first..first + texts as u64, cancel: Some(cancel) })
    }
}

/// A request's claim on its terminal events. Dropping it before they have all come cancels what is left.
#[derive(Debug)]
pub struct Ticket {
    events: mpsc::Receiver<Event>,
    pending: usize,
    jobs: JobRange,
    cancel: Option<mpsc::OwnedPermit<Message>>,
}

impl Ticket {
    /// The next terminal event, in no order among the texts; `None` once every text has had its own.
    pub async fn next(&mut self) -> Option<Event> {
        if self.pending == 0 {
            return None;
        }
        let event = self.events.recv().await;
        self.pending = if event.is_some() { self.pending - 1 } else { 0 };
        event
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.pending > 0
            && let Some(cancel) = self.cancel.take()
        {
            self.events.close();
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
