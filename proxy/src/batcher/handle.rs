//! How the rest of the proxy speaks to the batcher.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::models::Model;
use super::workers::WorkerId;
use super::{FromLink, Message, Serving};
use crate::admission::{Admission, Rejected};
use crate::job::{Ask, End, Failure, Feed, Held, Job, JobId, JobRange, News, Origin, Reply};

/// For requests. Cheap to clone; the batcher ends when all handles and ports are gone.
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
                // The batcher has ended, and says nothing any more.
                return std::future::pending().await;
            }
        }
    }

    /// The model of this name, if a worker has ever announced it.
    pub fn model(&self, name: &str) -> Option<Model> {
        self.serving.borrow().models.named(name).cloned()
    }

    /// The models that connected workers have.
    pub fn models(&self) -> Vec<Model> {
        self.serving.borrow().models.connected().cloned().collect()
    }

    /// Whether no worker has announced a model yet.
    pub fn knows_no_model(&self) -> bool {
        self.serving.borrow().models.is_empty()
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
    pub fn submit(&self, asks: Vec<Ask>, about: About) -> Result<Ticket, Rejected> {
        let mut ends = Vec::with_capacity(asks.len());
        let claim = self.admit(asks, about, |_| {
            let (reply, end) = Reply::new();
            ends.push(end);
            reply
        })?;
        Ok(Ticket { ends, heard: 0, claim })
    }

    /// The same for a client that wants the answers as they are made.
    ///
    /// # Errors
    /// There is no room; nothing was admitted.
    pub fn stream(&self, asks: Vec<Ask>, about: About) -> Result<Stream, Rejected> {
        let open = asks.len();
        let feed = Arc::new(Feed::new(open));
        let claim = self.admit(asks, about, |text| Reply::streamed(feed.clone(), text))?;
        feed.hold(claim);
        Ok(Stream { feed, open })
    }

    fn admit(
        &self,
        asks: Vec<Ask>,
        About { origin, answered, now, deadline }: About,
        mut reply: impl FnMut(usize) -> Reply,
    ) -> Result<Claim, Rejected> {
        let texts = asks.len();
        let slots = self.admission.texts(texts)?;
        // A full inbox is rare: only HTTP/2 has more requests than connections.
        let room = || {
            self.outbox.clone().try_reserve_owned().map_err(|error| match error {
                TrySendError::Full(_) => Rejected::QueueFull { retry_after: Duration::from_secs(1) },
                TrySendError::Closed(_) => Rejected::Draining,
            })
        };
        let (submit, cancel) = (room()?, room()?);
        let first = self.next_job.fetch_add(texts as u64, Relaxed);
        let jobs = (first..).zip(asks).zip(slots).enumerate().map(|(text, ((id, ask), slot))| {
            let job = Job::new(JobId(id), ask, now, deadline, reply(text));
            Box::new(Job { origin: origin.clone(), slot: Some(slot), ..job })
        });
        submit.send(Message::Submit(jobs.collect(), answered));
        Ok(Claim { jobs: first..first + texts as u64, cancel: Some(cancel) })
    }
}

/// What is known of a request beside its texts.
#[derive(Clone, Debug)]
pub struct About {
    /// What it is called in the worker's log, if it belongs to a trace.
    pub origin: Option<Arc<Origin>>,
    /// When its client had its last answer, if it had one: it helps to foresee when others will come.
    pub answered: Option<Instant>,
    /// When it is admitted.
    pub now: Instant,
    /// When it is worth nothing any more.
    pub deadline: Instant,
}

/// A request's right to be told of its ends. Dropping it before they have all come cancels what is left.
#[derive(Debug)]
struct Claim {
    jobs: JobRange,
    cancel: Option<mpsc::OwnedPermit<Message>>,
}

impl Claim {
    /// All ends have come.
    fn settle(&mut self) {
        self.cancel = None;
    }
}

impl Held for Claim {
    fn all_have_ended(mut self: Box<Self>) {
        self.settle();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(cancel) = self.cancel.take() {
            cancel.send(Message::Cancel(self.jobs.clone()));
        }
    }
}

/// The terminal events of a request that is answered as a whole. Dropping it before they have all come cancels what is
/// left.
#[derive(Debug)]
pub struct Ticket {
    /// One a text, in the request's order. Dropped before the claim, so that whoever is cancelled knows that nobody waits.
    ends: Vec<oneshot::Receiver<End>>,
    /// How many have come.
    heard: usize,
    claim: Claim,
}

impl Ticket {
    /// The next text's terminal event, in the request's order; `None` once every text has had its own.
    pub async fn next(&mut self) -> Option<End> {
        let end = self.ends.get_mut(self.heard)?.await;
        self.heard += 1;
        if self.heard == self.ends.len() {
            self.claim.settle();
        }
        // A reply says something even where it is dropped.
        Some(end.unwrap_or(Err(Failure::Internal)))
    }
}

/// The answers of a request as they are made. Dropping it before all have ended cancels what is left.
#[derive(Debug)]
pub struct Stream {
    feed: Arc<Feed>,
    /// Texts of whose end nothing was taken.
    open: usize,
}

impl Stream {
    /// Holds something until the last text has ended, whether or not anybody takes it.
    pub fn hold(&self, held: impl Held + 'static) {
        self.feed.hold(held);
    }

    /// What is new; `None` once every text has ended. Safe to drop: nothing is lost by it.
    pub async fn news(&mut self) -> Option<Vec<News>> {
        if self.open == 0 {
            return None;
        }
        let news = self.feed.news().await;
        self.open -= news.iter().filter(|news| news.end.is_some()).count();
        Some(news)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // And with that cancels what has not ended.
        self.feed.close();
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
