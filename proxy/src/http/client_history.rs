//! Remembers, from one request on a connection to the next, when the client got its last answer.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// When the client of a connection got its last answer, if it had one. From this the policy learns how soon clients send again.
#[derive(Debug, Default)]
pub struct ClientHistory(Mutex<Option<Instant>>);

impl ClientHistory {
    /// Returns when the client got its last answer, and forgets it.
    pub(super) fn take_answered(&self) -> Option<Instant> {
        self.lock().take()
    }

    pub(super) fn set_answered(&self, now: Instant) {
        *self.lock() = Some(now);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
