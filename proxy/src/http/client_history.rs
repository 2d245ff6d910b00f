//! Remembers, from one request on a connection to the next, when the client got its last answer.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// When the client of a connection got its last answer. From this the policy learns how soon clients send again.
#[derive(Debug)]
pub struct ClientHistory {
    since: Instant,
    /// Microseconds from `since` to the last answer; 0 if there is none.
    answered: AtomicU64,
}

impl ClientHistory {
    /// The history of a client that connected at `since`.
    pub fn new(since: Instant) -> Self {
        Self { since, answered: AtomicU64::new(0) }
    }

    /// Returns when the client got its last answer, and forgets it.
    pub(super) fn take_answered(&self) -> Option<Instant> {
        match self.answered.swap(0, Relaxed) {
            0 => None,
            micros => Some(self.since + Duration::from_micros(micros)),
        }
    }

    pub(super) fn set_answered(&self, now: Instant) {
        let micros = u64::try_from(now.saturating_duration_since(self.since).as_micros()).unwrap_or(u64::MAX);
        self.answered.store(micros.max(1), Relaxed);
    }
}
