//! What is said between the batcher, the requests and the links.

use pillion_protocol::BatchId;
use pillion_protocol::frame::Hello;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::batch::{CompletedBatch, DispatchedBatch};
use super::models::Models;
use crate::domain::{Job, JobRange};

/// A connection of a worker; a worker that returns is a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u64);

/// To the scheduler.
#[derive(Debug)]
pub(super) enum Message {
    /// Jobs of one request, and when its client had its answer to the request before, if there was one.
    Submit(Vec<Box<Job>>, Option<Instant>),
    /// The request's client went away.
    Cancel(JobRange),
    /// A client that had its last answer at this instant has closed its connection.
    Left(Instant),
    /// From a link.
    Link(WorkerId, LinkEvent),
    /// Log what waits.
    Dump,
    /// End: whoever still waits hears of it.
    Close,
}

/// From a link to the scheduler.
#[derive(Debug)]
pub enum LinkEvent {
    /// A worker is connected; this is its link's inbox.
    Up(Hello, mpsc::Sender<LinkCommand>),
    /// It will take so many batches more.
    Credit(u32),
    /// So many members of a batch have ended, well or badly.
    Ended(BatchId, usize),
    /// A batch is done.
    Done(CompletedBatch),
    /// So many members of a batch were given back though the worker lives; the jobs among them that clients wait for go
    /// on.
    Yielded(BatchId, usize, Vec<Box<Job>>),
    /// It wants to leave.
    Draining,
    /// The connection has ended; these were in flight, each in this batch, or had not been sent yet.
    Down(Vec<(Option<BatchId>, Box<Job>)>),
}

/// From the scheduler to a link.
#[derive(Debug)]
pub enum LinkCommand {
    /// A batch, paid for with one credit.
    Batch(Vec<Box<Job>>, DispatchedBatch),
    /// Clients of these jobs went away.
    Cancel(JobRange),
    /// The members of a batch that have not ended are wanted back.
    Yield(BatchId),
    /// The worker may leave.
    Release,
    /// Log what is in flight.
    Dump,
}

/// Who is there to serve.
#[derive(Clone, Debug, Default)]
pub struct Serving {
    /// Workers that are connected and stay.
    pub workers: usize,
    /// Since when none stays, where whoever was last there was told to stop.
    pub leaving: Option<Instant>,
    /// The models that they have, or had.
    pub models: Models,
}
