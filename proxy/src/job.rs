//! What travels through the proxy: a job is one text of one request, on its way to exactly one terminal event.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use pillion_protocol::frame::{FailureCode, FinishReason, Options, Prompt};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::admission::QueueSlot;
use crate::policy::forecast::Asked;
use crate::policy::preemption::MOST_TIMES;

/// A job's number. Numbers rise with admission, so a smaller one is older.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// The jobs of one request: consecutive numbers.
pub type JobRange = Range<u64>;

/// What must be equal for two jobs to share a batch: the engine takes these for a whole call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Class {
    topk: u32,
    topp: u32,
    temperature: u32,
    penalty: u32,
    ngram: u32,
    min_new_tokens: u32,
}

impl Class {
    /// The class of requests with these options.
    pub fn new(options: &Options, min_new_tokens: u32) -> Self {
        Self {
            topk: options.sampling_topk,
            topp: options.sampling_topp.to_bits(),
            temperature: options.sampling_temperature.to_bits(),
            penalty: options.repetition_penalty.to_bits(),
            ngram: options.no_repeat_ngram_size,
            min_new_tokens,
        }
    }

    /// The options that every member of the class has.
    pub fn options(&self) -> Options {
        Options {
            sampling_topk: self.topk,
            sampling_topp: f32::from_bits(self.topp),
            sampling_temperature: f32::from_bits(self.temperature),
            repetition_penalty: f32::from_bits(self.penalty),
            no_repeat_ngram_size: self.ngram,
        }
    }

    /// The least number of new tokens that every member of the class has.
    pub fn min_new_tokens(&self) -> u32 {
        self.min_new_tokens
    }
}

/// What a client asked of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// What to continue.
    pub prompt: Prompt,
    /// What it can share a batch with.
    pub class: Class,
    /// The most tokens to produce, at least 1.
    pub max_new_tokens: u32,
    /// Texts at which the answer ends.
    pub stop: Arc<[String]>,
}

impl Ask {
    /// A guess at the tokens that prompt and answer take, made before anything is tokenised: a token is rarely shorter
    /// than three bytes of text. The worker counts exactly and splits a batch that is too large for it.
    pub fn estimated_tokens(&self) -> u64 {
        let prompt = match &self.prompt {
            Prompt::Text(text) => text.len() / 3 + 1,
            Prompt::Ids(ids) => ids.len(),
        };
        prompt as u64 + u64::from(self.max_new_tokens)
    }

    /// Bytes that the prompt takes on the wire, before JSON's escapes.
    pub fn bytes(&self) -> usize {
        let prompt = match &self.prompt {
            Prompt::Text(text) => text.len(),
            Prompt::Ids(ids) => ids.len() * 8,
        };
        prompt + self.stop.iter().map(String::len).sum::<usize>()
    }
}

/// What a member has produced so far, over all attempts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Token ids.
    pub produced: Vec<u32>,
    /// Their text, as far as the worker has sent it.
    pub text: String,
    /// The fingerprint of the worker that produced them: only its equal may go on.
    pub fingerprint: Option<Arc<str>>,
    /// When the first of them arrived.
    pub first_token_at: Option<Instant>,
}

/// One text on its way.
#[derive(Debug)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// What was asked.
    pub ask: Ask,
    /// When it was admitted.
    pub admitted: Instant,
    /// Since when it waits for its turn: its admission, or when it last gave way to others.
    pub waits_since: Instant,
    /// When it is worth nothing any more.
    pub deadline: Instant,
    /// What it has so far.
    pub progress: Progress,
    /// How often it has been sent to a worker.
    pub attempts: u32,
    /// How often it has been made to give way to others.
    pub gave_way: u32,
    /// Its place in the queue's bound; dropped when it leaves the queue.
    pub slot: Option<QueueSlot>,
    /// Where its terminal event goes.
    pub reply: Reply,
}

impl Job {
    /// What it asks for, less what it has.
    pub fn asked(&self) -> Asked {
        let produced = self.progress.produced.len();
        let left = self.ask.max_new_tokens.saturating_sub(u32::try_from(produced).unwrap_or(u32::MAX));
        let mut asked = Asked::default();
        asked.add(self.ask.bytes(), left, produced);
        asked
    }

    /// Whether it can be given back by an engine once more, and go on later.
    pub fn may_give_way(&self) -> bool {
        self.gave_way < MOST_TIMES && !self.ask.class.options().look_back()
    }

    /// The job leaves the queue for a worker with this fingerprint. What another model produced is forgotten, and so is
    /// what was produced under options that look back: nothing of it has reached the client, so it starts again.
    pub fn leave_queue(&mut self, fingerprint: &Arc<str>) {
        self.slot = None;
        self.attempts += 1;
        let foreign = self.progress.fingerprint.as_ref().is_some_and(|theirs| theirs != fingerprint);
        if foreign || self.ask.class.options().look_back() {
            self.progress = Progress::default();
        }
    }
}

/// What a client hears of one text, once.
pub type End = Result<Completion, Failure>;

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The answer's text.
    pub text: String,
    /// Why it ended.
    pub reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// When the proxy saw the first token, if there was one.
    pub first_token_at: Option<Instant>,
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
    /// The batch it was to ride in could not be sent.
    #[error("the request could not be passed to a worker: {0}")]
    Unsendable(String),
    /// The proxy dropped it; that is a bug.
    #[error("the request was lost inside the proxy")]
    Internal,
}

/// Where a job's one terminal event goes. Its room was made at admission, so that sending never waits; dropping the reply
/// unsent sends [`Failure::Internal`], so that no client waits for ever.
#[derive(Debug)]
pub struct Reply {
    sender: Option<oneshot::Sender<End>>,
}

impl Reply {
    /// A reply, and where its event comes out.
    pub fn new() -> (Self, oneshot::Receiver<End>) {
        let (sender, end) = oneshot::channel();
        (Self { sender: Some(sender) }, end)
    }

    /// Whether nobody waits for the event any more.
    pub fn is_abandoned(&self) -> bool {
        self.sender.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    /// The job ended well.
    pub fn finish(mut self, completion: Completion) {
        self.send(Ok(completion));
    }

    /// The job ended badly.
    pub fn fail(mut self, failure: Failure) {
        self.send(Err(failure));
    }

    fn send(&mut self, end: End) {
        if let Some(sender) = self.sender.take() {
            // Whoever has gone away needs no answer.
            let _ = sender.send(end);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.send(Err(Failure::Internal));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_gives_back_its_options() {
        let options = Options { sampling_topp: 0.9, repetition_penalty: 1.2, ..Options::default() };
        assert_eq!(Class::new(&options, 3).options(), options);
    }

    #[test]
    fn requests_with_other_penalties_are_of_other_classes() {
        let one = Class::new(&Options::default(), 0);
        let other = Class::new(&Options { repetition_penalty: 1.1, ..Options::default() }, 0);
        assert_ne!(one, other);
    }

    #[test]
    fn a_dropped_reply_still_says_something_and_a_used_one_says_its_own() {
        let (dropped, mut end) = Reply::new();
        drop(dropped);
        assert_eq!(end.try_recv().unwrap(), Err(Failure::Internal));
        let (used, mut end) = Reply::new();
        assert!(!used.is_abandoned());
        used.fail(Failure::Deadline);
        assert_eq!(end.try_recv().unwrap(), Err(Failure::Deadline));
    }

    #[test]
    fn a_reply_that_nobody_waits_for_says_so() {
        let (reply, end) = Reply::new();
        drop(end);
        assert!(reply.is_abandoned());
    }
}
