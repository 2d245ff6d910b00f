//! The messages between requests, the scheduler and links.

use pillion_protocol::BatchId;
use pillion_protocol::frame::Hello;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::batch::{CompletedBatch, DispatchedBatch};
use super::models::Models;
use crate::domain::{Answered, Job, JobRange};

/// A worker's connection. A worker that dials again gets a new number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u64);

/// A message to the scheduler.
#[derive(Debug)]
pub(super) enum Message {
    /// The jobs of one request, and its client's previous answer, if there was one.
    Submit(Vec<Box<Job>>, Option<Answered>),
    /// The client of these jobs has gone away.
    Cancel(JobRange),
    /// A client whose last answer was this one has closed its connection.
    ClientLeft(Answered),
    /// An event from the link of this worker.
    Link(WorkerId, LinkEvent),
    /// Log what is queued, and what is in flight.
    Dump,
    /// Serve no more. All jobs fail, and the links say goodbye to their workers.
    Close,
}

/// What a link reports to the scheduler.
#[derive(Debug)]
pub enum LinkEvent {
    /// The worker is connected. The sender is its link's inbox.
    Up(Hello, mpsc::UnboundedSender<LinkCommand>),
    /// The worker has granted credit for this number of batches.
    Credit(u32),
    /// Members of a batch have finished or failed.
    Ended {
        /// The batch.
        batch: BatchId,
        /// How many.
        members: usize,
        /// How many of them clients still waited for.
        answered: usize,
    },
    /// The worker has completed a batch.
    Done(CompletedBatch),
    /// The worker has given back this number of members of a batch. The jobs are those among them that clients still
    /// wait for.
    Yielded(BatchId, usize, Vec<Box<Job>>),
    /// A batch could not be sent, and its jobs have failed. The worker has not seen it.
    Unsent(BatchId),
    /// The worker asks to leave.
    Draining,
    /// The connection has ended. These jobs were in flight, each in its batch, or had not been sent yet (`None`).
    Down(Vec<(Option<BatchId>, Box<Job>)>),
}

/// What the scheduler wants a link to do. There are never more commands than batches that the worker granted credit for, and
/// jobs in them.
#[derive(Debug)]
pub enum LinkCommand {
    /// Send a batch, which spends one credit.
    Batch(Vec<Box<Job>>, DispatchedBatch),
    /// Cancel these jobs, whose client has gone away.
    Cancel(JobRange),
    /// Tell the worker to give back the members of a batch that have not ended.
    Yield(BatchId),
    /// Tell the worker that it may leave.
    Release,
    /// Log what is in flight.
    Dump,
}

/// Which workers and models are there to serve requests.
#[derive(Clone, Debug, Default)]
pub struct Serving {
    /// The number of connected workers that have not asked to leave.
    pub workers: usize,
    /// Since when all connected workers have asked to leave. Kept when they are gone, until another worker connects.
    pub leaving: Option<Instant>,
    /// Whether the proxy is shutting down.
    pub shutting_down: bool,
    /// The models that workers have or had.
    pub models: Models,
}

impl Serving {
    /// Whether clients are to go elsewhere: the proxy is shutting down, or all workers have asked to leave.
    pub fn is_leaving(&self) -> bool {
        self.shutting_down || self.leaving.is_some()
    }
}
