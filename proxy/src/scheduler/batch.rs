//! What the scheduler and a link exchange about a batch: when it is sent, and when it is completed.

use std::time::Duration;

use pillion_protocol::BatchId;
use tokio::time::Instant;

use crate::domain::Demand;
use crate::policy::forecast::BatchOutcome;

/// A batch that is sent to a worker, with what is known of it then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DispatchedBatch {
    /// The batch's number.
    pub batch: BatchId,
    /// The demand of its members.
    pub demand: Demand,
    /// How long the engine is predicted to take.
    pub predicted: Duration,
    /// The earliest deadline of its members, if the batch may give way to others.
    pub resumable_before: Option<Instant>,
}

/// A batch that a worker has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompletedBatch {
    /// When it was sent.
    pub since: Instant,
    /// What was known of it when it was sent.
    pub dispatched: DispatchedBatch,
    /// What it produced and cost.
    pub outcome: BatchOutcome,
}
