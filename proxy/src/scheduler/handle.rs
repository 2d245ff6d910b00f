//! How requests and links reach the scheduler.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::message::{LinkEvent, Message, Serving, WorkerId};
use crate::admission::{Admission, LINGER, Rejected};
use crate::domain::{Answered, Feed, GenerationRequest, Job, JobId, JobRange, ModelId, Outcome, Reply};
use crate::domain::{RequestContext, StreamEvent};

/// The scheduler's handle for requests and links. Cheap to clone. The scheduler ends when all handles are dropped.
#[derive(Clone, Debug)]
pub struct Handle {
    outbox: mpsc::Sender<Message>,
    admission: Admission,
    serving: watch::Sender<Serving>,
    next_job: Arc<AtomicU64>,
    next_worker: Arc<AtomicU64>,
}

impl Handle {
    pub(super) fn new(outbox: mpsc::Sender<Message>, admission: Admission, serving: watch::Sender<Serving>) -> Self {
        let one = || Arc::new(AtomicU64::new(1));
        Self { outbox, admission, serving, next_job: one(), next_worker: one() }
    }

    /// Admission control, which bounds the queue.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Calls `look` with what is there to serve requests.
    pub fn serving<T>(&self, look: impl FnOnce(&Serving) -> T) -> T {
        look(&self.serving.borrow())
    }

    /// From now on the proxy is shutting down: clients are to go elsewhere. Requests are still admitted.
    pub fn shut_down(&self) {
        self.serving.send_modify(|serving| serving.shutting_down = true);
    }

    /// Resolves when the proxy is shutting down.
    pub async fn shutting_down(&self) {
        // An error means that all senders are dropped, and this handle is one.
        let _ = self.serving.subscribe().wait_for(|serving| serving.shutting_down).await;
    }

    /// Resolves [`LINGER`] after clients were told to [go elsewhere](Serving::is_leaving), unless that is over by then.
    pub async fn clients_have_to_leave(&self) {
        let mut serving = self.serving.subscribe();
        loop {
            let since = serving.wait_for(Serving::is_leaving).await.ok().and_then(|serving| serving.leaving);
            sleep(LINGER).await;
            if self.serving(|now| now.shutting_down || (now.is_leaving() && now.leaving == since)) {
                return;
            }
        }
    }

    /// Asks the scheduler to log what is queued and in flight. Does nothing if the scheduler's inbox is full.
    pub fn dump(&self) {
        let _ = self.outbox.try_send(Message::Dump);
    }

    /// A new number for a worker's connection.
    pub fn new_worker(&self) -> WorkerId {
        WorkerId(self.next_worker.fetch_add(1, Relaxed))
    }

    /// Sends a link's event to the scheduler. Waits while the inbox is full; the scheduler never waits for a link.
    pub async fn on_link(&self, worker: WorkerId, event: LinkEvent) {
        // An error means that the scheduler has ended. The event's jobs are dropped, and their replies send a failure.
        let _ = self.outbox.send(Message::Link(worker, event)).await;
    }

    /// Reports that a client whose last answer was this one has closed its connection. This is a hint for the
    /// policy, and is dropped if the scheduler's inbox is full.
    pub fn left(&self, answered: Answered) {
        let _ = self.outbox.try_send(Message::ClientLeft(answered));
    }

    /// Serves no more: all jobs fail, and the links say goodbye to their workers.
    pub async fn close(&self) {
        // An error means that the scheduler has ended already.
        let _ = self.outbox.send(Message::Close).await;
    }

    /// Admits the texts of one request, all or none. Each text gets exactly one outcome on the stream, and before that,
    /// if `is_stream`, the pieces of its answer.
    ///
    /// # Errors
    /// The queue is full or the proxy is shutting down. Nothing was admitted.
    pub fn submit(
        &self,
        requests: Vec<GenerationRequest>,
        RequestContext { origin, answered, now, deadline }: RequestContext,
        is_stream: bool,
    ) -> Result<Stream, Rejected> {
        let texts = requests.len();
        let model = requests.first().map_or(ModelId::ANY, |request| request.key.target.model);
        let slots = self.admission.texts(texts, model)?;
        // A full inbox is rare: only with HTTP/2 can there be more requests than connections.
        let room = || {
            self.outbox.clone().try_reserve_owned().map_err(|error| match error {
                TrySendError::Full(_) => self.admission.refuse(model),
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

/// The answers of a request. Dropping it before all texts have ended cancels the others.
#[derive(Debug)]
pub struct Stream {
    feed: Arc<Feed>,
    /// The number of texts whose outcome was not taken yet.
    open: usize,
    jobs: JobRange,
    /// The place in the scheduler's inbox that was reserved for a cancellation.
    cancel: Option<mpsc::OwnedPermit<Message>>,
}

impl Stream {
    /// Keeps a value until the last text has ended, even if nothing is read from the stream.
    pub fn hold(&self, held: impl Any + Send) {
        self.feed.hold(held);
    }

    /// Waits for new output and takes it; `None` once every text has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<Vec<StreamEvent>> {
        if self.open == 0 {
            return None;
        }
        let events = self.feed.next().await;
        self.open -= events.iter().filter(|event| event.outcome.is_some()).count();
        Some(events)
    }

    /// The outcomes of all texts, in the request's order.
    pub async fn outcomes(mut self) -> Vec<Outcome> {
        let outcomes = self.feed.outcomes().await;
        self.open = 0;
        outcomes
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // The feed is closed first, so that the scheduler finds the replies abandoned.
        self.feed.close();
        if let Some(cancel) = self.cancel.take().filter(|_| self.open > 0) {
            cancel.send(Message::Cancel(self.jobs.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use pillion_protocol::frame::Options;
    use tokio::time::Instant;

    use super::*;
    use crate::admission::Bounds;
    use crate::domain::BatchKey;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn a_request_that_finds_the_inbox_full_is_refused_and_counted() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let admission = Admission::new(Bounds { texts: 10, bytes: 0 }, metrics.clone());
        // A request takes two places. Nobody empties this inbox.
        let (outbox, _inbox) = mpsc::channel(3);
        let handle = Handle::new(outbox, admission, watch::Sender::new(Serving::default()));
        let submit = || {
            let now = Instant::now();
            let request = GenerationRequest::text("a", BatchKey::new(Options::default(), 0), 1);
            handle.submit(vec![request], RequestContext { origin: None, answered: None, now, deadline: now }, false)
        };
        let _first = submit().unwrap();
        assert!(matches!(submit(), Err(Rejected::QueueFull { .. })));
        assert!(metrics.render().contains(r#"pillion_rejected_total{reason="queue_full"} 1"#));
    }
}
