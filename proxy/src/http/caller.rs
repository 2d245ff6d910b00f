//! A client, from one request on its connection to the next.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// When a connection's client had its last answer from a worker.
#[derive(Debug)]
pub(super) struct Caller {
    since: Instant,
    /// Microseconds since then; 0 for never.
    answered: AtomicU64,
}

impl Caller {
    pub(super) fn new(since: Instant) -> Self {
        Self { since, answered: AtomicU64::new(0) }
    }

    /// When it had its last answer. Said once, since with the next request it is over.
    pub(super) fn answered(&self) -> Option<Instant> {
        match self.answered.swap(0, Relaxed) {
            0 => None,
            micros => Some(self.since + Duration::from_micros(micros)),
        }
    }

    pub(super) fn has_its_answer(&self, now: Instant) {
        let micros = u64::try_from(now.saturating_duration_since(self.since).as_micros()).unwrap_or(u64::MAX);
        self.answered.store(micros.max(1), Relaxed);
    }
}
