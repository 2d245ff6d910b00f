//! The thread that tokenises batches while the engines are busy with those before.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use pillion_protocol::BatchId;
use pillion_protocol::frame::{Batch, BatchCost};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::Sender;

use crate::batch::{BatchSignals, Event, Job, Progress};
use crate::engine::EnginePool;
use crate::prepare;
use crate::shared::Shared;

/// A batch as it came.
#[derive(Debug)]
pub struct Arrived {
    /// Its name.
    pub id: BatchId,
    /// The batch.
    pub batch: Batch,
    /// When it came: deadlines count from here.
    pub at: Instant,
    /// What the session has to say to it later.
    pub signals: Arc<BatchSignals>,
    /// Where its events go.
    pub events: Sender<Event>,
    /// Its place in the worker, given back at its end.
    pub place: OwnedSemaphorePermit,
}

/// The way into the worker. Dropping it lets everything on the way be finished, and waits for that.
#[derive(Debug)]
pub struct Tokeniser {
    arrived: Option<SyncSender<Arrived>>,
    thread: Option<JoinHandle<()>>,
}

/// More batches came than there are places for.
#[derive(Debug, thiserror::Error)]
#[error("the tokeniser takes no more batches")]
pub struct Overrun;

impl Tokeniser {
    /// Starts the thread, which gives what it has tokenised to `pool` and owns it.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn start(shared: Arc<Shared>, pool: EnginePool) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(2 * shared.limits.slots);
        let thread =
            thread::Builder::new().name("tokeniser".to_owned()).spawn(move || work(&receiver, &shared, &pool))?;
        Ok(Self { arrived: Some(sender), thread: Some(thread) })
    }

    /// Takes a batch, without waiting.
    ///
    /// # Errors
    /// More batches are on the way than there can be places for, or the thread is gone.
    pub fn take(&self, arrived: Arrived) -> Result<(), Overrun> {
        let Some(sender) = &self.arrived else { return Err(Overrun) };
        sender.try_send(arrived).map_err(|(TrySendError::Full(_) | TrySendError::Disconnected(_))| Overrun)
    }

    /// Leaves the threads to themselves: for a process that ends at once, whatever runs.
    pub fn abandon(mut self) {
        self.arrived = None;
        self.thread = None;
    }
}

impl Drop for Tokeniser {
    fn drop(&mut self) {
        self.arrived = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work(arrived: &Receiver<Arrived>, shared: &Shared, pool: &EnginePool) {
    while let Ok(Arrived { id, batch: Batch { options, members }, at, signals, events, place }) = arrived.recv() {
        let start = Instant::now();
        let mut progress = Progress::of(id);
        let riders = prepare::riders(members, &options, at, &shared.tokens, &shared.limits, &mut progress);
        shared.pace.tokenised(start.elapsed());
        // A session that is gone has cancelled every member, and the engine will find that out.
        if !progress.is_empty() {
            let _ = events.blocking_send(Event::Progress(progress));
        }
        if riders.is_empty() {
            let _ = events.blocking_send(Event::Done(id, BatchCost::default()));
        } else {
            pool.serve(Job { batch: id, options, riders, signals, events, place: Some(place) });
        }
    }
}
