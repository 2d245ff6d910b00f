//! How a connection of the simulated worker ends.

use std::io;

use pillion_protocol::frame::Goodbye;
use pillion_protocol::{EncodeError, ReadError};

use super::FaultKind;

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The worker drained, and everything it had was answered.
    Drained,
    /// The drain timeout passed; what was left was yielded.
    DrainTimeout,
    /// The proxy said goodbye.
    Goodbye(Goodbye),
    /// The proxy closed the connection.
    Closed,
    /// A member killed the worker.
    Poison,
    /// The worker closed it: its fault.
    Fault(FaultKind),
}

/// Why a connection could not go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The proxy sent no frame, or the stream failed.
    #[error("reading from the proxy")]
    Read(#[from] ReadError),
    /// The stream failed.
    #[error("writing to the proxy")]
    Write(#[from] io::Error),
    /// A frame is too long.
    #[error("a frame that cannot be sent")]
    Encode(#[from] EncodeError),
    /// The proxy sent a frame that has no place here.
    #[error("the proxy broke the protocol: {0}")]
    Violation(&'static str),
}
