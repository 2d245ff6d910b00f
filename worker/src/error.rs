//! Why the worker ends, and with which exit code: the only place that knows one.

use crate::config::FlagError;
use crate::engine::ct2::LoadError;
use crate::model::ModelError;

/// Why the worker ends other than by a clean drain. Each prints as one sentence.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag that is none, or a value that it does not take.
    #[error(transparent)]
    Flag(#[from] FlagError),
    /// The model or its tokenizer is missing or unfit.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The device is not to be had.
    #[error("{0}")]
    Device(String),
    /// A GPU is there, but not what computes on it: a library of CUDA's, or kernels for so old a card.
    #[error("{0}")]
    Unusable(String),
    /// The engine went on for longer than it may without a step.
    #[error("engine {slot} has made no step for {seconds} seconds and counts as stuck")]
    Stuck {
        /// Which engine.
        slot: usize,
        /// For how long.
        seconds: u64,
    },
    /// Something that should not happen.
    #[error("internal error: {0}")]
    Internal(String),
    /// `--drain-timeout` passed, or a second signal came, with members left.
    #[error("{members} members were still being served when {when}")]
    WorkLeft {
        /// How many members had had no terminal frame.
        members: usize,
        /// What ended the waiting.
        when: &'static str,
    },
}

impl Error {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Flag(_) => 64,
            Self::Model(_) => 66,
            Self::Device(_) | Self::Unusable(_) => 69,
            Self::Stuck { .. } | Self::Internal(_) => 70,
            Self::WorkLeft { .. } => 75,
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
