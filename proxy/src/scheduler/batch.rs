//! A batch on its way to a worker and back, as the scheduler and a link tell each other of it.

use std::time::Duration;

use pillion_protocol::BatchId;
use tokio::time::Instant;

use crate::domain::Demand;
use crate::policy::forecast::BatchOutcome;

/// What was known of a batch as it left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DispatchedBatch {
    /// Its number.
    pub batch: BatchId,
    /// What its members ask for.
    pub demand: Demand,
    /// How long it was expected to take the engine.
    pub predicted: Duration,
    /// The first deadline of its members, if they can be given back and go on later.
    pub resumable_before: Option<Instant>,
}

/// A batch that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompletedBatch {
    /// Since when it ran.
    pub since: Instant,
    /// What was known of it then.
    pub dispatched: DispatchedBatch,
    /// What came of it.
    pub outcome: BatchOutcome,
}
