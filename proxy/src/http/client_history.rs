//! What is remembered of a client from one request on its connection to the next.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// When a connection's client last had an answer from a worker.
#[derive(Debug)]
pub struct ClientHistory {
    since: Instant,
    /// Microseconds from then to the answer; 0 for none.
    answered: AtomicU64,
}

impl ClientHistory {
    /// A client that has connected.
    pub fn new(since: Instant) -> Self {
        Self { since, answered: AtomicU64::new(0) }
    }

    /// Takes out when it had its last answer: with the next request that is over.
    pub(super) fn take_answered(&self) -> Option<Instant> {
        match self.answered.swap(0, Relaxed) {
            0 => None,
            micros => Some(self.since + Duration::from_micros(micros)),
        }
    }

    pub(super) fn answered(&self, now: Instant) {
        let micros = u64::try_from(now.saturating_duration_since(self.since).as_micros()).unwrap_or(u64::MAX);
        self.answered.store(micros.max(1), Relaxed);
    }
}
