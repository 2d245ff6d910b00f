//! The threads that own the engines.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::{Engine, trip};
use crate::batch::Job;
use crate::shared::Shared;

/// A thread per slot, each serving one batch at a time. Dropping the pool lets every thread finish the batches it was
/// given, and waits for that.
#[derive(Debug)]
pub struct EnginePool {
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl EnginePool {
    /// Starts as many threads as batches may run at once.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn start(engine: &Arc<dyn Engine>, shared: &Arc<Shared>) -> std::io::Result<Self> {
        let slots = shared.limits.slots;
        let (sender, receiver) = sync_channel(2 * slots);
        let receiver = Arc::new(Mutex::new(receiver));
        let threads = (0..slots)
            .map(|slot| {
                let (engine, shared, receiver) = (Arc::clone(engine), Arc::clone(shared), Arc::clone(&receiver));
                let work = move || {
                    while let Some(job) = next(&receiver) {
                        trip::serve(job, &*engine, &shared, slot);
                    }
                };
                thread::Builder::new().name(format!("engine-{slot}")).spawn(work)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { jobs: Some(sender), threads })
    }

    /// Gives a batch to the next free engine. Waits only where more batches are held than there are places for.
    pub fn serve(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The threads end only after the sender is gone.
            let _ = jobs.send(job);
        }
    }
}

fn next(jobs: &Mutex<Receiver<Job>>) -> Option<Job> {
    jobs.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

impl Drop for EnginePool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
