//! Why a worker's connection fails.

use std::time::Duration;

use pillion_protocol::frame::GoodbyeReason;
use pillion_protocol::{EncodeError, ReadError, VERSIONS};

use super::inflight::Violation;

/// Why a link failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the worker sent no HELLO in time")]
    NoHello,
    #[error("the connection was closed before a HELLO")]
    Silent,
    #[error("the worker's first frame is not HELLO")]
    NotHello,
    #[error("the worker speaks protocol versions {theirs:?}, but this proxy speaks {VERSIONS:?}")]
    Version { theirs: Vec<u8> },
    #[error("the worker's HELLO is invalid: {0}")]
    Hello(&'static str),
    #[error("the worker broke the protocol: {0}")]
    Violation(#[from] Violation),
    #[error("the worker sent a second {0}")]
    Again(&'static str),
    #[error("the worker's engine has made no step for {0:?}, which is longer than its heartbeats allow")]
    Stuck(Duration),
    #[error("the task that serves the worker has panicked, which is a bug")]
    Panicked,
    #[error("the worker granted a credit of 0, or more credit than the proxy takes")]
    Credit,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the connection failed")]
    Write(#[from] std::io::Error),
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl LinkError {
    /// Whether the worker broke the protocol, which the metrics count.
    pub(super) fn is_violation(&self) -> bool {
        !matches!(
            self,
            Self::Read(ReadError::Io(_))
                | Self::Write(_)
                | Self::Encode(_)
                | Self::NoHello
                | Self::Silent
                | Self::Stuck(_)
                | Self::Panicked
        )
    }

    pub(super) fn reason(&self) -> GoodbyeReason {
        match self {
            Self::Version { .. } => GoodbyeReason::Version,
            Self::Encode(_) | Self::Stuck(_) | Self::Panicked => GoodbyeReason::Internal,
            _ => GoodbyeReason::Protocol,
        }
    }
}
