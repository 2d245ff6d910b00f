//! How a job ends, and where its client hears of it.

use std::sync::Arc;
use std::time::Duration;

use pillion_protocol::frame::{FailureCode, FinishReason};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Boarding;
use super::feed::Feed;

/// What a client hears of one text, once.
pub type End = Result<Completion, Failure>;

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
    pub boarding: Option<Boarding>,
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

/// Where a job's one terminal event goes, and before it the text of an answer that is streamed. Saying something never
/// waits: the terminal event's room was made at admission, and text that a client has not taken yet grows together.
/// Dropping the reply unsent sends [`Failure::Internal`], so that no client waits for ever.
#[derive(Debug)]
pub struct Reply(Option<To>);

#[derive(Debug)]
enum To {
    /// A client that wants the answer when all of it is there.
    Whole(oneshot::Sender<End>),
    /// A client that wants it as it is made, and which of its texts this is.
    Stream(Arc<Feed>, usize),
}

impl Reply {
    /// A reply, and where its event comes out.
    pub fn new() -> (Self, oneshot::Receiver<End>) {
        let (sender, end) = oneshot::channel();
        (Self(Some(To::Whole(sender))), end)
    }

    /// A reply that is heard as text number `text` of a feed.
    pub fn streamed(feed: Arc<Feed>, text: usize) -> Self {
        Self(Some(To::Stream(feed, text)))
    }

    /// Takes the event's place out; what is left has nothing to say.
    #[must_use]
    pub fn take(&mut self) -> Self {
        Self(self.0.take())
    }

    /// Whether text is wanted as it is made.
    pub fn is_stream(&self) -> bool {
        matches!(self.0, Some(To::Stream(..)))
    }

    /// Whether nobody waits for the event any more.
    pub fn is_abandoned(&self) -> bool {
        match &self.0 {
            Some(To::Whole(sender)) => sender.is_closed(),
            Some(To::Stream(feed, _)) => feed.is_closed(),
            None => true,
        }
    }

    /// More of the answer's text. Nobody hears of it where it is not [streamed](Self::is_stream).
    pub fn say(&self, piece: &str) {
        if let Some(To::Stream(feed, text)) = &self.0 {
            feed.say(*text, piece);
        }
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
        match self.0.take() {
            // Whoever has gone away needs no answer.
            Some(To::Whole(sender)) => drop(sender.send(end)),
            Some(To::Stream(feed, text)) => feed.end(text, end),
            None => {}
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

    #[test]
    fn a_streamed_reply_that_is_dropped_says_something_too() {
        let feed = Arc::new(Feed::new(1));
        let reply = Reply::streamed(feed.clone(), 0);
        reply.say("a");
        assert!(!reply.is_abandoned());
        drop(reply);
        let news = feed.take();
        assert_eq!((news[0].piece.as_str(), &news[0].end), ("a", &Some(Err(Failure::Internal))));
        let reply = Reply::streamed(feed.clone(), 0);
        feed.close();
        assert!(reply.is_abandoned());
    }
}
