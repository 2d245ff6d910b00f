//! Why the worker ends, and with which exit code.

use pillion_process::exit;

use crate::config::FlagError;
use crate::engine::ct2::LoadError;
use crate::model::ModelError;

/// Why the worker ends, if not by a clean drain. Each error prints as one sentence.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag does not exist or does not take its value.
    #[error(transparent)]
    Flag(#[from] FlagError),
    /// The model or its tokenizer is missing or cannot be served.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The device is not available.
    #[error("{0}")]
    Device(String),
    /// A GPU is there, but a CUDA library is missing or the card is too old for the kernels.
    #[error("{0}")]
    Unusable(String),
    /// An engine made no step for longer than it may.
    #[error("engine {slot} has made no step for {seconds} seconds and counts as stuck; this worker ends")]
    Stuck {
        /// The slot of the engine.
        slot: usize,
        /// Seconds without a step.
        seconds: u64,
    },
    /// A defect, or a failure of the system.
    #[error("internal error: {0}")]
    Internal(String),
    /// `--drain-timeout` passed or a second signal came while members were still being served.
    #[error("{members} members were still being served when {when}")]
    WorkLeft {
        /// Members that had not ended.
        members: usize,
        /// The event that ended the drain.
        when: &'static str,
    },
}

impl Error {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Flag(_) => exit::BAD_FLAG,
            Self::Model(_) => exit::NO_MODEL,
            Self::Device(_) | Self::Unusable(_) => exit::UNAVAILABLE,
            Self::Stuck { .. } | Self::Internal(_) => exit::INTERNAL,
            Self::WorkLeft { .. } => exit::WORK_LEFT,
        }
    }
}

impl From<LoadError> for Error {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Flag(flag) => Self::Flag(flag),
            LoadError::Device(message) => Self::Device(message),
            LoadError::Unusable(message) => Self::Unusable(message),
            LoadError::Model(model) => Self::Model(model),
        }
    }
}
