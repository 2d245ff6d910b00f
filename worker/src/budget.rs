//! The most tokens, prompts and answers together, of one call. It shrinks when the device runs out of memory.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The budget, shared by the threads. It never grows: a call that was too large for the device is not repeated.
#[derive(Debug)]
pub struct Budget(AtomicU64);

impl Budget {
    /// A budget of this many tokens, at least 1.
    pub fn new(tokens: u64) -> Self {
        Self(AtomicU64::new(tokens.max(1)))
    }

    /// The most tokens of a call.
    pub fn tokens(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Lowers the budget to half of a call that was too large for the device. Returns the new budget.
    pub fn exceeded(&self, tokens: u64) -> u64 {
        let half = (tokens / 2).max(1);
        self.0.fetch_min(half, Relaxed).min(half)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_was_too_large_halves_the_budget_and_nothing_raises_it() {
        let budget = Budget::new(32_768);
        assert_eq!(budget.exceeded(10_000), 5_000);
        assert_eq!(budget.exceeded(20_000), 5_000, "a call that began before the first failed");
        assert_eq!(budget.exceeded(1), 1);
        assert_eq!(budget.tokens(), 1);
    }
}
