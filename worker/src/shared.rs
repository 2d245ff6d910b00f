//! The state that the main thread and the engine threads share.

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

/// The limits of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The model's positions: the most tokens that a prompt and its answer may have together.
    pub positions: u32,
    /// Batches that run at once.
    pub slots: usize,
    /// The most candidates that top-p sampling may choose among.
    pub top_p_candidates: u32,
    /// The memory that a call may take.
    pub allowance: Allowance,
    /// The model's sliding window in tokens; 0 means no window.
    pub window: u32,
}

/// The state that the threads share.
#[derive(Debug)]
pub struct Shared {
    /// The tokenizer.
    pub tokens: Tokens,
    /// Measured speeds.
    pub pace: Pace,
    /// The progress of the engines.
    pub liveness: Liveness,
    /// The limits when the model was loaded. [`Shared::limits`] has the present ones.
    pub limits: Limits,
    /// Bytes of memory that a call may take now.
    pub memory: AtomicU64,
    /// Whether calls take the system's memory. Only then is the free memory measured again later.
    pub is_on_processor: bool,
    /// The most tokens of one call.
    pub budget: Budget,
    /// The longest that tokens of a member that is not streamed stay in the worker before they are sent. If the worker dies, no
    /// more than these are lost.
    pub held_back: Duration,
}

impl Limits {
    /// Whether a call of a member alone fits the memory.
    pub fn allows(&self, shape: Shape) -> bool {
        self.allowance.fits(Size::alone(shape.prompt, shape.most))
    }
}

impl Shared {
    /// The present limits.
    pub fn limits(&self) -> Limits {
        let allowance = Allowance { bytes: self.memory.load(Relaxed), ..self.limits.allowance };
        Limits { allowance, ..self.limits }
    }

    /// Raises the memory that a call may take, measured while no call runs. Another program may have held the memory when the
    /// model was loaded. The memory is never lowered, since the engine keeps buffers that calls have freed.
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

    /// The state of a worker that has measured nothing yet.
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
