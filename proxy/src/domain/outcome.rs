//! How a text ends: with a completion, or with a failure.

use std::time::Duration;

use pillion_protocol::frame::{FailureCode, FinishReason};
use tokio::time::Instant;

/// How one text ends. Each text has exactly one outcome.
pub type Outcome = Result<Completion, Failure>;

/// A text's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The answer's text; empty if it was streamed.
    pub text: String,
    /// Why the answer ended.
    pub reason: FinishReason,
    /// The number of tokens in the prompt.
    pub prompt_tokens: u32,
    /// The number of tokens in the answer.
    pub completion_tokens: u32,
    /// When the proxy received the first token, if there was one.
    pub first_token_at: Option<Instant>,
    /// When the text's job first left the queue, and how many members its latest batch had.
    pub dispatch: Option<Dispatch>,
}

/// Why a text has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The deadline passed before anything was produced.
    #[error("the deadline passed before anything was produced")]
    Deadline,
    /// The deadline passed while the text waited in the queue.
    #[error("the deadline passed while the request waited in the queue")]
    Expired,
    /// The request could not start before its deadline, so it was refused.
    #[error("{ahead} texts are ahead in the queue, so the request could not start before its deadline")]
    TooLate {
        /// The number of texts that go first.
        ahead: usize,
        /// How long the client should wait before it tries again.
        retry_after: Duration,
    },
    /// No suitable worker connected within `--worker-wait`.
    #[error("no worker was connected in time")]
    NoWorker,
    /// Workers died while they ran the text, as often as `--max-attempts` allows.
    #[error("the worker was lost in attempt {attempts}")]
    WorkerLost {
        /// How often the text was tried.
        attempts: u32,
    },
    /// The worker refused the text or failed to serve it.
    #[error("{message}")]
    Worker {
        /// The worker's code.
        code: FailureCode,
        /// The worker's message.
        message: String,
    },
    /// The worker was lost or gave the text back after a part of the answer had reached the client. No other worker can
    /// continue the answer, because the options look back over it.
    #[error(
        "the worker was lost after a part of the answer was sent, and an answer with repetition_penalty or \
        no_repeat_ngram_size cannot be continued by another worker"
    )]
    NotResumable,
    /// The worker was lost or gave the text back after a part of the answer had reached the client. No worker with the
    /// same model is there to continue the answer.
    #[error("the worker was lost after a part of the answer was sent, and no other worker has the same model")]
    ModelGone,
    /// The text's batch could not be sent to a worker.
    #[error("the request could not be sent to a worker: {0}")]
    Unsendable(String),
    /// The proxy was shut down before the text had ended.
    #[error("the server was shut down before the answer was complete")]
    ShutDown,
    /// The proxy dropped the text's reply unsent, which is a bug.
    #[error("the request was lost inside the proxy")]
    Internal,
}

impl Completion {
    /// The same completion, or [`Failure::Deadline`] if the deadline passed before anything was produced.
    ///
    /// # Errors
    /// The deadline passed before anything was produced.
    pub fn checked(self) -> Outcome {
        if self.reason == FinishReason::Deadline && self.completion_tokens == 0 {
            return Err(Failure::Deadline);
        }
        Ok(self)
    }
}

/// When a job first left the queue, and how many members its latest batch had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dispatch {
    /// When the job left the queue for the first time.
    pub first: Instant,
    /// The number of members of its latest batch.
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
