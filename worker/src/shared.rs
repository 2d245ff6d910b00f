//! What the threads of a worker share.

use std::time::Duration;

use crate::budget::Budget;
use crate::liveness::Liveness;
use crate::memory::Allowance;
use crate::pace::Pace;
use crate::tokens::Tokens;

/// What a worker can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Positions of the model: the most tokens that prompt and answer may have together.
    pub positions: u32,
    /// Batches run at once.
    pub slots: usize,
    /// The most candidates that top-p sampling may choose among.
    pub top_p_candidates: u32,
    /// The memory that a call may take.
    pub allowance: Allowance,
    /// How far the model looks back; 0 where that has no limit.
    pub window: u32,
}

/// What the threads of a worker share.
#[derive(Debug)]
pub struct Shared {
    /// The tokenizer.
    pub tokens: Tokens,
    /// How fast things go here.
    pub pace: Pace,
    /// Whether the engines make progress.
    pub liveness: Liveness,
    /// What the worker can take.
    pub limits: Limits,
    /// What one call of it may have.
    pub budget: Budget,
    /// How long what nobody streams may stay here before the proxy is told of it: so much is lost with the worker.
    pub held_back: Duration,
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Instant;

    use super::*;
    use crate::engine::FEEDERS;
    use crate::memory::Need;
    use crate::tokens::samples::byte_tokens;

    /// Where nobody knows what is free.
    pub(crate) const UNKNOWN: Allowance = Allowance { need: Need::NOTHING, bytes: u64::MAX };

    /// Of a worker with so many slots that has measured nothing yet.
    pub(crate) fn shared(slots: usize) -> Shared {
        Shared {
            tokens: byte_tokens(),
            pace: Pace::default(),
            liveness: Liveness::new(slots * FEEDERS, slots, Instant::now()),
            limits: Limits { positions: 1000, slots, top_p_candidates: 100, allowance: UNKNOWN, window: 0 },
            budget: Budget::new(10_000),
            held_back: Duration::from_secs(60),
        }
    }
}
