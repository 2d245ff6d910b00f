//! How the rest of the proxy speaks to the scheduler.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::message::{LinkEvent, Message, Serving, WorkerId};
use super::models::Models;
use crate::admission::{Admission, Rejected};
use crate::domain::{Feed, GenerationRequest, Job, JobId, JobRange, Reply, RequestContext, StreamEvent};

/// For requests. Cheap to clone; the scheduler ends when all handles and ports are gone.
#[derive(Clone, Debug)]
pub struct Handle {
    outbox: mpsc::Sender<Message>,
    admission: Admission,
    serving: watch::Receiver<Serving>,
    next_job: Arc<AtomicU64>,
}

impl Handle {
    pub(super) fn new(outbox: mpsc::Sender<Message>, admission: Admission, serving: watch::Receiver<Serving>) -> Self {
        Self { outbox, admission, serving, next_job: Arc::new(AtomicU64::new(1)) }
    }

    /// The door in front of the queue.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Workers that are connected and stay.
    pub fn workers_serving(&self) -> usize {
        self.serving.borrow().workers
    }

    /// Since when no worker stays, where whoever was last there was told to stop. Those that are left still serve.
    pub fn workers_leaving(&self) -> Option<Instant> {
        self.serving.borrow().leaving
    }

    /// The same, when it is so.
    pub async fn workers_leave(&self) -> Instant {
        let mut serving = self.serving.clone();
        loop {
            if let Some(since) = serving.borrow_and_update().leaving {
                return since;
            }
            if serving.changed().await.is_err() {
                // The scheduler has ended, and says nothing any more.
                return std::future::pending().await;
            }
        }
    }

    /// Looks at the models that workers have announced.
    pub fn with_models<T>(&self, look: impl FnOnce(&Models) -> T) -> T {
        look(&self.serving.borrow().models)
    }

    /// Logs what waits and what is in flight, if the scheduler is not too busy to hear of it.
    pub fn dump(&self) {
        let _ = self.outbox.try_send(Message::Dump);
    }

    /// A client that had its last answer at this instant has closed its connection. Only a hint: where the scheduler is too
    /// busy to hear of it, nothing is lost.
    pub fn left(&self, answered: Instant) {
        let _ = self.outbox.try_send(Message::Left(answered));
    }

    /// Ends the scheduler; links that it fed then say goodbye to their workers.
    pub async fn close(&self) {
        // An error means that it has ended already.
        let _ = self.outbox.send(Message::Close).await;
    }

    /// Admits the texts of one request, all or none. Each gets exactly one outcome on the stream, and before it, if
    /// `is_stream`, its text as it is made.
    ///
    /// # Errors
    /// There is no room; nothing was admitted.
    pub fn submit(
        &self,
        requests: Vec<GenerationRequest>,
        RequestContext { origin, answered, now, deadline }: RequestContext,
        is_stream: bool,
    ) -> Result<Stream, Rejected> {
        let texts = requests.len();
        let slots = self.admission.texts(texts)?;
        // A full inbox is rare: only HTTP/2 has more requests than connections.
        let room = || {
            self.outbox.clone().try_reserve_owned().map_err(|error| match error {
                TrySendError::Full(_) => Rejected::QueueFull { retry_after: Duration::from_secs(1) },
                TrySendError::Closed(_) => Rejected::Draining,
            })
        };
        let (submit, cancel) = (room()?, room()?);
        let feed = Arc::new(Feed::new(texts));
        let first = self.next_job.fetch_add(texts as u64, Relaxed);
        let jobs = (first..).zip(requests).zip(slots).enumerate().map(|(text, ((id, request), slot))| {
            let job = Job::new(JobId(id), request, now, deadline, Reply::new(feed.clone(), text, is_stream));
            Box::new(Job { origin: origin.clone(), slot: Some(slot), ..job })
        });
        submit.send(Message::Submit(jobs.collect(), answered));
        Ok(Stream { feed, open: texts, jobs: first..first + texts as u64, cancel: Some(cancel) })
    }
}

/// The answers of a request. Dropping it before all have ended cancels what is left.
#[derive(Debug)]
pub struct Stream {
    feed: Arc<Feed>,
    /// Texts of whose end nothing was taken.
    open: usize,
    jobs: JobRange,
    /// The place in the scheduler's inbox that was reserved for a cancellation.
    cancel: Option<mpsc::OwnedPermit<Message>>,
}

impl Stream {
    /// Holds something until the last text has ended, whether or not anybody takes it.
    pub fn hold(&self, held: impl Any + Send) {
        self.feed.hold(held);
    }

    /// What is new; `None` once every text has ended. Safe to drop: nothing is lost by it.
    pub async fn next(&mut self) -> Option<Vec<StreamEvent>> {
        if self.open == 0 {
            return None;
        }
        let events = self.feed.next().await;
        self.open -= events.iter().filter(|event| event.outcome.is_some()).count();
        Some(events)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // First, so that the scheduler knows that nobody waits.
        self.feed.close();
        if let Some(cancel) = self.cancel.take().filter(|_| self.open > 0) {
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

    /// Tells the scheduler. Waits while its inbox is full; the scheduler never waits for a link.
    pub async fn tell(&self, worker: WorkerId, event: LinkEvent) {
        // The scheduler is gone only while the proxy shuts down; replies that are dropped then speak for themselves.
        let _ = self.outbox.send(Message::Link(worker, event)).await;
    }
}
