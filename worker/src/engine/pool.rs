//! The engine threads.
//!
//! Each slot has two threads that take turns. While one waits for the last call of its batch, the other tokenises the next
//! batch and puts its first call into the engine's own queue. So the engine begins the next call without waiting for a thread
//! to wake up.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use pillion_protocol::BatchId;
use pillion_protocol::frame::{Batch, BatchCost};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::Sender;

use super::batch_run;
use super::call::Engine;
use super::replicas::Replicas;
use super::thread::EngineThread;
use crate::batch::{BatchSignals, Event, PreparedBatch, Progress};
use crate::prepare;
use crate::shared::{Shared, THREADS_PER_SLOT};

/// A batch as the session received it.
#[derive(Debug)]
pub struct ReceivedBatch {
    /// The batch's number.
    pub id: BatchId,
    /// The batch.
    pub batch: Batch,
    /// When the batch came. Deadlines count from here.
    pub at: Instant,
    /// When the session asked for the batch. `None` if the batch did not come at once, so was not waiting in the proxy.
    pub requested: Option<Instant>,
    /// Carries signals from the session.
    pub signals: Arc<BatchSignals>,
    /// Sends events to the session.
    pub events: Sender<Event>,
    /// The batch's place in the worker, which is free again when the batch ends.
    pub place: OwnedSemaphorePermit,
}

/// The pool already has as many batches as it can hold, or its threads are gone.
#[derive(Debug, thiserror::Error)]
#[error("the engines take no more batches")]
pub struct PoolFull;

/// Two threads per slot, each of which serves one batch at a time. Dropping the pool waits until the threads have served all
/// submitted batches.
#[derive(Debug)]
pub struct EnginePool {
    batches: Option<SyncSender<ReceivedBatch>>,
    threads: Vec<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl EnginePool {
    /// Starts the threads of all slots.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start(engine: &Arc<dyn Engine>, shared: &Arc<Shared>) -> std::io::Result<Self> {
        // One turn for each slot. The thread that holds it may make calls, and gives it up with its batch's last call.
        let turns: Vec<_> = (0..shared.limits().slots).map(|_| Arc::new(Mutex::new(()))).collect();
        let replicas = Arc::new(Replicas::new(turns.len(), Instant::now()));
        let (sender, receiver) = sync_channel(2 * turns.len());
        let receiver = Arc::new(Mutex::new(receiver));
        let threads = (0..turns.len() * THREADS_PER_SLOT)
            .map(|index| {
                let (engine, shared, receiver) = (Arc::clone(engine), Arc::clone(shared), Arc::clone(&receiver));
                let (turn, replicas) = (Arc::clone(&turns[index / THREADS_PER_SLOT]), Arc::clone(&replicas));
                let work = move || {
                    loop {
                        let turn = lock(&turn);
                        let Some(batch) = next(&receiver) else { return };
                        let Some(batch) = prepare(batch, &shared) else { continue };
                        let thread = EngineThread { engine: &*engine, shared: &shared, replicas: &replicas, index };
                        batch_run::run(batch, thread, turn);
                    }
                };
                thread::Builder::new().name(format!("engine-{index}")).spawn(work)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { batches: Some(sender), threads })
    }

    /// Submits a batch, without waiting.
    ///
    /// # Errors
    /// The pool already has as many batches as it can hold, or its threads are gone.
    pub fn submit(&self, batch: ReceivedBatch) -> Result<(), PoolFull> {
        let Some(sender) = &self.batches else { return Err(PoolFull) };
        sender.try_send(batch).map_err(|(TrySendError::Full(_) | TrySendError::Disconnected(_))| PoolFull)
    }

    /// Stops waiting for the threads, which run on. Meant for a process that ends at once.
    pub fn abandon(mut self) {
        self.batches = None;
        self.threads.clear();
    }
}

fn next(batches: &Mutex<Receiver<ReceivedBatch>>) -> Option<ReceivedBatch> {
    lock(batches).recv().ok()
}

/// Prepares a batch. Returns `None` if no member of it needs the engine.
fn prepare(batch: ReceivedBatch, shared: &Shared) -> Option<PreparedBatch> {
    let ReceivedBatch { id, batch: Batch { options, members }, at, requested, signals, events, place } = batch;
    let mut progress = Progress::of(id);
    let members = prepare::members(members, &options, at, &shared.tokens, &shared.limits(), &mut progress);
    if let Some(requested) = requested {
        shared.pace.handed_over(requested.elapsed());
    }
    // Sending fails only if the session is gone. The session has then cancelled every member, and the engine thread sees that
    // later.
    if !progress.is_empty() {
        let _ = events.blocking_send(Event::Progress(progress));
    }
    if members.is_empty() {
        let _ = events.blocking_send(Event::Done(id, BatchCost::default()));
        return None;
    }
    Some(PreparedBatch { id, options, members, signals, events, place })
}

impl Drop for EnginePool {
    fn drop(&mut self) {
        self.batches = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use pillion_protocol::frame::{Member, Options};
    use tokio::sync::Semaphore;
    use tokio::sync::mpsc::channel;

    use super::*;
    use crate::engine::call::{Call, EngineFailed, NewToken};
    use crate::engine::script::Script;
    use crate::shared::tests::shared;
    use crate::tokens::tests::member;

    /// An engine that cancels member 0 before its third step, and counts the tokens that it computes for member 0 after that.
    #[derive(Debug)]
    struct Cancelling {
        engine: Script,
        signals: Arc<BatchSignals>,
        after: AtomicUsize,
    }

    impl Engine for Cancelling {
        fn generate(
            &self,
            call: &Call<'_>,
            on_token: &mut (dyn FnMut(NewToken) -> bool + Send),
        ) -> Result<(), EngineFailed> {
            self.engine.generate(call, &mut |token| {
                if token.step == 2 {
                    self.signals.cancel(0);
                }
                self.after.fetch_add(usize::from(token.step >= 2 && token.member == 0), Relaxed);
                on_token(token)
            })
        }
    }

    #[test]
    fn no_more_than_one_step_is_computed_for_a_member_that_is_cancelled_while_it_is_decoded() {
        let signals = Arc::new(BatchSignals::new(2));
        let engine = Arc::new(Cancelling {
            engine: Script::default(),
            signals: Arc::clone(&signals),
            after: AtomicUsize::new(0),
        });
        let shared = Arc::new(shared(1));
        let pool = EnginePool::start(&(Arc::clone(&engine) as Arc<dyn Engine>), &shared).unwrap();
        let (events, mut inbox) = channel(64);
        let member = |text: &str| Member { max_new_tokens: 20, ..member(text) };
        let batch = Batch { options: Options::default(), members: vec![member("ab"), member("cd")] };
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let id = BatchId(1);
        pool.submit(ReceivedBatch { id, batch, at: Instant::now(), requested: None, signals, events, place }).unwrap();
        drop(pool);
        let mut produced = [0; 2];
        while let Ok(event) = inbox.try_recv() {
            if let Event::Progress(progress) = event {
                progress.ended.iter().for_each(|end| produced[end.member as usize] = end.completion_tokens);
            }
        }
        assert_eq!(engine.after.load(Relaxed), 1);
        assert_eq!(produced, [3, 20], "and the other goes on");
    }
}
