//! Sends what a job produces to its request's feed.

use std::sync::Arc;

use super::feed::Feed;
use super::outcome::{Completion, Failure, Outcome};

/// Takes a job's outcome, and before it the pieces of an answer that is streamed. Sending never waits. Dropping a reply
/// before the outcome was sent sends [`Failure::Internal`], so that no client waits for ever.
#[derive(Debug)]
pub struct Reply {
    /// The request's feed and the text's index in it. `None` once the outcome was sent.
    to: Option<(Arc<Feed>, usize)>,
    is_stream: bool,
}

impl Reply {
    /// A reply for text number `text` of a feed. If `is_stream`, the text is wanted in pieces while it is produced.
    pub fn new(feed: Arc<Feed>, text: usize, is_stream: bool) -> Self {
        Self { to: Some((feed, text)), is_stream }
    }

    /// A reply that discards what it is given.
    pub fn unheard() -> Self {
        Self { to: None, is_stream: false }
    }

    /// Takes the reply out, and leaves one that discards what it is given.
    #[must_use]
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, Self::unheard())
    }

    /// Whether the text is wanted in pieces while it is produced.
    pub fn is_stream(&self) -> bool {
        self.is_stream
    }

    /// Whether no client waits for the outcome any more.
    pub fn is_abandoned(&self) -> bool {
        self.to.as_ref().is_none_or(|(feed, _)| feed.is_closed())
    }

    /// Sends the next piece of an answer that is [streamed](Self::is_stream).
    pub fn send_piece(&self, piece: &str) {
        if let Some((feed, text)) = &self.to {
            feed.add_piece(*text, piece);
        }
    }

    /// Sends the outcome of a job that has an answer.
    pub fn finish(mut self, completion: Completion) {
        self.send(completion.checked());
    }

    /// Sends the outcome of a job that has failed.
    pub fn fail(mut self, failure: Failure) {
        self.send(Err(failure));
    }

    fn send(&mut self, outcome: Outcome) {
        if let Some((feed, text)) = self.to.take() {
            feed.end(text, outcome);
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

    fn reply() -> (Reply, Arc<Feed>) {
        let feed = Arc::new(Feed::new(1));
        (Reply::new(feed.clone(), 0, true), feed)
    }

    #[test]
    fn a_dropped_reply_sends_a_failure_and_a_used_one_sends_only_its_outcome() {
        let (dropped, feed) = reply();
        dropped.send_piece("a");
        drop(dropped);
        let events = feed.lock().take();
        assert_eq!((events[0].piece.as_str(), &events[0].outcome), ("a", &Some(Err(Failure::Internal))));
        let (used, feed) = reply();
        assert!(!used.is_abandoned());
        used.fail(Failure::Deadline);
        assert_eq!(feed.lock().take()[0].outcome, Some(Err(Failure::Deadline)));
    }

    #[test]
    fn a_reply_whose_feed_is_closed_is_abandoned() {
        let (reply, feed) = reply();
        feed.close();
        assert!(reply.is_abandoned() && Reply::unheard().is_abandoned());
    }
}
