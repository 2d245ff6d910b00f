//! The output of a request's texts that the request's connection has not taken yet.
//!
//! Links add output and never wait. The connection takes all of it at once. If the client reads slowly, the pieces of a
//! text are joined, so a feed never holds more than the request's answers.

use std::any::Any;
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use super::outcome::{Failure, Outcome};

/// The output of one request that has not been taken yet.
#[derive(Debug)]
pub struct Feed(Mutex<State>);

#[derive(Debug)]
pub(super) struct State {
    /// New output, by text.
    texts: Vec<NewOutput>,
    /// The texts that have new output, in the order in which it came.
    changed: Vec<usize>,
    /// Whether the reader is gone. Then no output is kept.
    closed: bool,
    /// The number of texts that have not ended.
    open: usize,
    /// A value that is kept until the last text has ended, such as the memory reserved for the request.
    held: Option<Box<dyn Any + Send>>,
    /// The task that waits for new output.
    reader: Option<Waker>,
}

impl State {
    /// Takes the output that is new now.
    pub(super) fn take(&mut self) -> Vec<StreamEvent> {
        let Self { texts, changed, .. } = self;
        let event = |text: usize| {
            let NewOutput { piece, outcome, .. } = std::mem::take(&mut texts[text]);
            StreamEvent { text, piece, outcome }
        };
        changed.drain(..).map(event).collect()
    }
}

#[derive(Debug, Default)]
struct NewOutput {
    piece: String,
    outcome: Option<Outcome>,
    is_listed: bool,
}

/// New output of one text.
#[derive(Debug, PartialEq)]
pub struct StreamEvent {
    /// The text's index in the request.
    pub text: usize,
    /// The next piece of its answer; may be empty if the text has ended.
    pub piece: String,
    /// How the text ended, if it has ended.
    pub outcome: Option<Outcome>,
}

impl Feed {
    /// A feed for a request with this number of texts.
    pub fn new(texts: usize) -> Self {
        let (open, texts) = (texts, (0..texts).map(|_| NewOutput::default()).collect());
        let state = State { texts, changed: Vec::new(), closed: false, open, held: None, reader: None };
        Self(Mutex::new(state))
    }

    /// Adds a piece of a text's answer.
    pub(super) fn add_piece(&self, text: usize, piece: &str) {
        if !piece.is_empty() {
            self.change(text, false, |output| output.piece.push_str(piece));
        }
    }

    /// Adds a text's outcome, which is its last output.
    pub(super) fn end(&self, text: usize, outcome: Outcome) {
        self.change(text, true, |output| output.outcome = Some(outcome));
    }

    /// Keeps a value until the last text has ended or the feed is closed.
    pub fn hold(&self, held: impl Any + Send) {
        let mut state = self.lock();
        if state.open > 0 && !state.closed {
            state.held = Some(Box::new(held));
        }
    }

    fn change(&self, text: usize, has_ended: bool, change: impl FnOnce(&mut NewOutput)) {
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Some(output) = state.texts.get_mut(text) {
            change(output);
            if !std::mem::replace(&mut output.is_listed, true) {
                state.changed.push(text);
            }
        }
        state.open = state.open.saturating_sub(usize::from(has_ended));
        let held = if state.open == 0 { state.held.take() } else { None };
        let reader = state.reader.take();
        drop(guard);
        drop(held);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Waits for new output and takes it, at least one event. Cancel safe: output is taken only when it is returned. At most
    /// one task waits at a time.
    pub async fn next(&self) -> Vec<StreamEvent> {
        self.wait_until(|state| !state.changed.is_empty(), State::take).await
    }

    /// Waits until all texts have ended, and takes their outcomes.
    pub async fn outcomes(&self) -> Vec<Outcome> {
        let outcome = |output: NewOutput| output.outcome.unwrap_or(Err(Failure::Internal));
        self.wait_until(|state| state.open == 0, |state| state.texts.drain(..).map(outcome).collect()).await
    }

    async fn wait_until<T>(&self, is_ready: impl Fn(&State) -> bool, take: impl Fn(&mut State) -> T) -> T {
        poll_fn(|context| {
            let mut state = self.lock();
            if is_ready(&state) {
                return Poll::Ready(take(&mut state));
            }
            state.reader = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Drops all output and the kept value, and ignores later output. For a reader that goes away.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.texts = Vec::new();
        state.changed = Vec::new();
        let held = state.held.take();
        drop(state);
        drop(held);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// The lock is only held for a few instructions, by a link or by the request's connection.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn pieces(events: Vec<StreamEvent>) -> Vec<(usize, String)> {
        events.into_iter().map(|event| (event.text, event.piece)).collect()
    }

    #[test]
    fn pieces_that_were_not_taken_are_joined() {
        let feed = Feed::new(3);
        for (text, piece) in [(1, "a"), (0, "x"), (1, "b"), (1, "")] {
            feed.add_piece(text, piece);
        }
        assert_eq!(pieces(feed.lock().take()), [(1, "ab".to_owned()), (0, "x".to_owned())]);
        assert!(feed.lock().take().is_empty());
        feed.add_piece(1, "c");
        feed.end(1, Err(Failure::Deadline));
        assert_eq!(
            feed.lock().take(),
            [StreamEvent { text: 1, piece: "c".into(), outcome: Some(Err(Failure::Deadline)) }]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_reader_is_woken_and_loses_nothing_by_cancelling() {
        use std::time::Duration;
        let feed = Arc::new(Feed::new(1));
        let writer = feed.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            writer.add_piece(0, "at last");
        });
        assert!(tokio::time::timeout(Duration::from_secs(1), feed.next()).await.is_err());
        assert_eq!(pieces(feed.next().await), [(0, "at last".to_owned())]);
    }

    #[test]
    fn a_kept_value_is_dropped_when_all_texts_have_ended_even_if_nothing_is_read() {
        let held = Arc::new(());
        let is_held = || Arc::strong_count(&held) > 1;
        let feed = Feed::new(2);
        feed.hold(held.clone());
        feed.end(1, Err(Failure::Deadline));
        assert!(is_held());
        feed.end(0, Err(Failure::Deadline));
        assert!(!is_held());
        feed.hold(held.clone());
        assert!(!is_held(), "all texts have ended");
        let feed = Feed::new(1);
        feed.hold(held.clone());
        feed.close();
        assert!(!is_held(), "the feed is closed");
    }

    #[test]
    fn a_closed_feed_keeps_no_output() {
        let feed = Feed::new(1);
        feed.close();
        feed.add_piece(0, "a");
        assert!(feed.is_closed() && feed.lock().take().is_empty());
    }
}
