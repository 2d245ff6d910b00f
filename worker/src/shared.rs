//! What the threads of a worker share.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::budget::Budget;
use crate::cohort::Shape;
use crate::liveness::Liveness;
use crate::memory::{Allowance, Size};
use crate::pace::Pace;
use crate::tokens::Tokens;

/// Engine threads of each slot: while one waits for a call, the other prepares the next batch.
pub const THREADS_PER_SLOT: usize = 2;

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
    /// What the worker can take: as it was when it had loaded.
    pub limits: Limits,
    /// Bytes of memory that a call may take by now.
    pub memory: AtomicU64,
    /// Whether it is the system's memory, which may be looked at again.
    pub is_on_processor: bool,
    /// What one call of it may have.
    pub budget: Budget,
    /// How long what nobody streams may stay here before the proxy is told of it: so much is lost with the worker.
    pub held_back: Duration,
}

impl Limits {
    /// Whether a call of this member alone fits the memory.
    pub fn allows(&self, shape: Shape) -> bool {
        self.allowance.fits(Size::alone(shape.prompt, shape.most))
    }
}

impl Shared {
    /// What the worker can take by now.
    pub fn limits(&self) -> Limits {
        let allowance = Allowance { bytes: self.memory.load(Relaxed), ..self.limits.allowance };
        Limits { allowance, ..self.limits }
    }

    /// So much memory may a call take now that none runs. More than before counts: another program may have held it
    /// when this one had loaded. Less does not, since the engine keeps what calls have given back.
    pub fn found_memory(&self, bytes: u64) {
        self.memory.fetch_max(bytes, Relaxed);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Instant;

    use super::*;
    use crate::memory::tests::UNKNOWN;
    use crate::tokens::samples::byte_tokens;

    /// Of a worker with so many slots that has measured nothing yet.
    pub(crate) fn shared(slots: usize) -> Shared {
        Shared {
            tokens: byte_tokens(),
            pace: Pace::default(),
            liveness: Liveness::new(slots * THREADS_PER_SLOT, slots, Instant::now()),
            limits: Limits { positions: 1000, slots, top_p_candidates: 100, allowance: UNKNOWN, window: 0 },
            memory: AtomicU64::new(u64::MAX),
            is_on_processor: false,
            budget: Budget::new(10_000),
            held_back: Duration::from_secs(60),
        }
    }
}
