//! How many tokens, prompts and answers together, one call may have: what the device's memory allows.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The budget, shared by the threads. It only shrinks: what a device could not take once, it is not asked to take again.
#[derive(Debug)]
pub struct Budget(AtomicU64);

impl Budget {
    /// So many tokens to begin with.
    pub fn new(tokens: u64) -> Self {
        Self(AtomicU64::new(tokens.max(1)))
    }

    /// Tokens that a call may have.
    pub fn tokens(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// A call of so many tokens was too much for the device: from now on half of them is the most. The new budget.
    pub fn exceeded(&self, tokens: u64) -> u64 {
        let half = (tokens / 2).max(1);
        self.0.fetch_min(half, Relaxed).min(half)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_too_much_is_halved_and_never_raised() {
        let budget = Budget::new(32_768);
        assert_eq!(budget.exceeded(10_000), 5_000);
        assert_eq!(budget.exceeded(20_000), 5_000, "a call that began before");
        assert_eq!(budget.exceeded(1), 1);
        assert_eq!(budget.tokens(), 1);
    }
}
