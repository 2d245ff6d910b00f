//! Remembers, from one request on a connection to the next, the last answer that the client got.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::domain::Answered;

/// The last answer that the client of a connection got, if there was one. From this the policy learns how soon clients send again.
#[derive(Debug, Default)]
pub struct ClientHistory(Mutex<Option<Answered>>);

impl ClientHistory {
    /// Returns the client's last answer, and forgets it.
    pub(super) fn take_answered(&self) -> Option<Answered> {
        self.lock().take()
    }

    pub(super) fn set_answered(&self, answered: Answered) {
        *self.lock() = Some(answered);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Answered>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
