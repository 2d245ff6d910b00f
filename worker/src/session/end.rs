//! How a session ends.

use std::io;
use std::time::Duration;

use pillion_protocol::frame::{Goodbye, GoodbyeReason};
use pillion_protocol::{EncodeError, ReadError};

/// The longest that unsent bytes may wait without the proxy reading any.
pub(super) const LONGEST_STALL: Duration = Duration::from_secs(10);

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The proxy released the worker, and every member has ended.
    Drained,
    /// The drain timed out with this many members unfinished.
    DrainTimeout(usize),
    /// The worker was told to stop at once with this many members unfinished.
    Quit(usize),
    /// The proxy said goodbye.
    Goodbye {
        /// The proxy's GOODBYE.
        goodbye: Goodbye,
        /// Whether the worker was draining. Then the worker ends too.
        draining: bool,
    },
    /// The connection was lost, or the worker closed it.
    Lost {
        /// The reason.
        reason: String,
        /// Whether the worker was draining. Then the worker ends too.
        draining: bool,
    },
}

/// Why a session ends early.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("{}", chain(.0))]
    Read(#[from] ReadError),
    #[error("the proxy closed the connection")]
    Closed,
    #[error("the proxy read nothing for {} seconds", LONGEST_STALL.as_secs())]
    Stalled,
    #[error("the proxy broke the protocol: {0}")]
    Protocol(String),
    #[error("an internal error: {0}")]
    Internal(String),
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

impl From<EncodeError> for Trouble {
    fn from(error: EncodeError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl Trouble {
    /// The reason for the proxy. `None` if the connection is gone.
    pub(super) fn goodbye(&self) -> Option<GoodbyeReason> {
        match self {
            Self::Protocol(_) | Self::Read(ReadError::Decode(_)) => Some(GoodbyeReason::Protocol),
            Self::Internal(_) => Some(GoodbyeReason::Internal),
            _ => None,
        }
    }
}
