//! Where the outcome of a job goes.

use std::sync::Arc;

use super::feed::Feed;
use super::outcome::{Completion, Failure, Outcome};

/// Where a job's one outcome goes, and before it the text of an answer that is streamed. Saying something never waits: text
/// that a client has not taken yet grows together. Dropping the reply unsent sends [`Failure::Internal`], so that no client
/// waits for ever.
#[derive(Debug)]
pub struct Reply {
    /// The request's feed, and which of its texts this is; `None` once the outcome was sent.
    to: Option<(Arc<Feed>, usize)>,
    is_stream: bool,
}

impl Reply {
    /// A reply that is heard as text number `text` of a feed, as it is made if `is_stream`.
    pub fn new(feed: Arc<Feed>, text: usize, is_stream: bool) -> Self {
        Self { to: Some((feed, text)), is_stream }
    }

    /// A reply that nobody hears.
    pub fn unheard() -> Self {
        Self { to: None, is_stream: false }
    }

    /// Takes the reply out; what is left has nothing to say.
    #[must_use]
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, Self::unheard())
    }

    /// Whether text is wanted as it is made.
    pub fn is_stream(&self) -> bool {
        self.is_stream
    }

    /// Whether nobody waits for the outcome any more.
    pub fn is_abandoned(&self) -> bool {
        self.to.as_ref().is_none_or(|(feed, _)| feed.is_closed())
    }

    /// More of the text of an answer that is [streamed](Self::is_stream).
    pub fn say(&self, piece: &str) {
        if let Some((feed, text)) = &self.to {
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
    fn a_dropped_reply_still_says_something_and_a_used_one_says_its_own() {
        let (dropped, feed) = reply();
        dropped.say("a");
        drop(dropped);
        let events = feed.take();
        assert_eq!((events[0].piece.as_str(), &events[0].outcome), ("a", &Some(Err(Failure::Internal))));
        let (used, feed) = reply();
        assert!(!used.is_abandoned());
        used.fail(Failure::Deadline);
        assert_eq!(feed.take()[0].outcome, Some(Err(Failure::Deadline)));
    }

    #[test]
    fn a_reply_that_nobody_waits_for_says_so() {
        let (reply, feed) = reply();
        feed.close();
        assert!(reply.is_abandoned() && Reply::unheard().is_abandoned());
    }
}
