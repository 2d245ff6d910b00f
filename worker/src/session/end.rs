//! How a session ends.

use std::io;
use std::time::Duration;

use pillion_protocol::frame::{Goodbye, GoodbyeReason};
use pillion_protocol::{EncodeError, ReadError};

/// How long the proxy may take nothing of what is to be sent.
pub(super) const LONGEST_STALL: Duration = Duration::from_secs(10);

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The proxy released the worker, and everything was answered.
    Drained,
    /// The drain took too long, with so many members left.
    DrainTimeout(usize),
    /// Told to quit at once, with so many members left.
    Quit(usize),
    /// The proxy said goodbye.
    Goodbye {
        /// What it said.
        goodbye: Goodbye,
        /// Whether the worker had been told to drain: then this is its end too.
        draining: bool,
    },
    /// The connection is gone, or was given up.
    Lost {
        /// Why.
        reason: String,
        /// As above.
        draining: bool,
    },
}

/// What ends a session from within.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("{}", chain(.0))]
    Read(#[from] ReadError),
    #[error("the proxy closed the connection")]
    Closed,
    #[error("the proxy took nothing for {} seconds", LONGEST_STALL.as_secs())]
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
    /// The reason to give the proxy, where there still is one to talk to.
    pub(super) fn goodbye(&self) -> Option<GoodbyeReason> {
        match self {
            Self::Protocol(_) | Self::Read(ReadError::Decode(_)) => Some(GoodbyeReason::Protocol),
            Self::Internal(_) => Some(GoodbyeReason::Internal),
            _ => None,
        }
    }
}
