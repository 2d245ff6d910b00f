//! How a text ends: with a completion, or with a failure.

use std::time::Duration;

use pillion_protocol::frame::{FailureCode, FinishReason};
use tokio::time::Instant;

/// What a client hears of one text, once.
pub type Outcome = Result<Completion, Failure>;

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The answer's text; empty where it was streamed.
    pub text: String,
    /// Why it ended.
    pub reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// When the proxy saw the first token, if there was one.
    pub first_token_at: Option<Instant>,
    /// The batch that it rode in.
    pub dispatch: Option<Dispatch>,
}

/// Why a text has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Its deadline passed before anything was produced.
    #[error("the deadline passed before anything was produced")]
    Deadline,
    /// It would still have waited when its deadline passed, so it was not let in.
    #[error("{ahead} texts go first, so the request would not be begun before its deadline")]
    TooLate {
        /// How many.
        ahead: usize,
        /// When they will be gone.
        retry_after: Duration,
    },
    /// No worker came within `--worker-wait`.
    #[error("no worker was connected in time")]
    NoWorker,
    /// Workers died under it, `--max-attempts` times.
    #[error("the worker was lost, at attempt {attempts}")]
    WorkerLost {
        /// How often it was tried.
        attempts: u32,
    },
    /// The worker refused it, or failed on it.
    #[error("{message}")]
    Worker {
        /// The worker's code.
        code: FailureCode,
        /// The worker's words.
        message: String,
    },
    /// Its worker was lost or wants to leave, a part of the answer has reached the client, and its options look back over
    /// the answer, so that no other worker can go on with it.
    #[error(
        "the worker was lost after a part of the answer was sent, and with repetition_penalty or \
        no_repeat_ngram_size no other can go on"
    )]
    NotResumable,
    /// Its worker was lost or wants to leave, a part of the answer has reached the client, and no worker with the same
    /// model is there to go on with it.
    #[error("the worker was lost after a part of the answer was sent, and those that are there have another model")]
    ModelGone,
    /// The batch it was to ride in could not be sent.
    #[error("the request could not be passed to a worker: {0}")]
    Unsendable(String),
    /// The proxy dropped it; that is a bug.
    #[error("the request was lost inside the proxy")]
    Internal,
}

impl Completion {
    /// The same, but a deadline that passed before anything was produced is a failure, whichever side noticed it.
    pub fn checked(self) -> Outcome {
        if self.reason == FinishReason::Deadline && self.completion_tokens == 0 {
            return Err(Failure::Deadline);
        }
        Ok(self)
    }
}

/// A job's leaving the queue with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dispatch {
    /// When it first did.
    pub first: Instant,
    /// Members of the latest batch.
    pub members: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_with_nothing_produced_is_a_failure() {
        let completion = Completion {
            text: String::new(),
            reason: FinishReason::Deadline,
            prompt_tokens: 3,
            completion_tokens: 2,
            first_token_at: None,
            dispatch: None,
        };
        assert!(completion.clone().checked().is_ok());
        assert_eq!(Completion { completion_tokens: 0, ..completion }.checked(), Err(Failure::Deadline));
    }
}
