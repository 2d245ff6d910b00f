//! Where the outcome of a job goes.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::feed::Feed;
use super::outcome::{Completion, Failure, Outcome};

/// Where a job's one terminal event goes, and before it the text of an answer that is streamed. Saying something never
/// waits: the terminal event's room was made at admission, and text that a client has not taken yet grows together.
/// Dropping the reply unsent sends [`Failure::Internal`], so that no client waits for ever.
#[derive(Debug)]
pub struct Reply(Option<To>);

#[derive(Debug)]
enum To {
    /// A client that wants the answer when all of it is there.
    Whole(oneshot::Sender<Outcome>),
    /// A client that wants it as it is made, and which of its texts this is.
    Stream(Arc<Feed>, usize),
}

impl Reply {
    /// A reply, and where its event comes out.
    pub fn new() -> (Self, oneshot::Receiver<Outcome>) {
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

    fn send(&mut self, end: Outcome) {
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
        let events = feed.take();
        assert_eq!((events[0].piece.as_str(), &events[0].outcome), ("a", &Some(Err(Failure::Internal))));
        let reply = Reply::streamed(feed.clone(), 0);
        feed.close();
        assert!(reply.is_abandoned());
    }
}
