//! What a request's texts have produced and its client has not taken yet.
//!
//! A link says what there is and never waits; a client takes all of it at once. So if a client reads slowly, its pieces grow
//! together, and what is kept for it is never more than its answer.

use std::any::Any;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::outcome::Outcome;

/// One request's.
pub struct Feed {
    state: Mutex<State>,
    changes: Notify,
}

struct State {
    /// By text.
    texts: Vec<Fresh>,
    /// Texts of which there is something new, in the order in which it came.
    changed: Vec<usize>,
    /// Nobody takes it any more.
    closed: bool,
    /// Texts that have not ended.
    open: usize,
    /// What the request needs until its last text has ended, whether or not its client reads.
    held: Option<Box<dyn Any + Send>>,
}

#[derive(Debug, Default)]
struct Fresh {
    piece: String,
    outcome: Option<Outcome>,
    is_listed: bool,
}

/// What is new of one text.
#[derive(Debug, PartialEq)]
pub struct StreamEvent {
    /// Which text, by its place in the request.
    pub text: usize,
    /// More of its answer; may be empty if it has ended.
    pub piece: String,
    /// How it ended, if it has ended.
    pub outcome: Option<Outcome>,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("open", &self.lock().open).finish_non_exhaustive()
    }
}

impl Feed {
    /// For a request of so many texts.
    pub fn new(texts: usize) -> Self {
        let (open, texts) = (texts, (0..texts).map(|_| Fresh::default()).collect());
        let state = State { texts, changed: Vec::new(), closed: false, open, held: None };
        Self { state: Mutex::new(state), changes: Notify::new() }
    }

    /// More of a text's answer.
    pub(super) fn say(&self, text: usize, piece: &str) {
        if !piece.is_empty() {
            self.change(text, |fresh| fresh.piece.push_str(piece));
        }
    }

    /// A text has ended.
    pub(super) fn end(&self, text: usize, outcome: Outcome) {
        self.change(text, |fresh| fresh.outcome = Some(outcome));
        let mut state = self.lock();
        state.open = state.open.saturating_sub(1);
        let held = if state.open == 0 { state.held.take() } else { None };
        drop(state);
        drop(held);
    }

    /// Holds something until the last text has ended, or the feed is closed.
    pub fn hold(&self, held: impl Any + Send) {
        let mut state = self.lock();
        if state.open > 0 && !state.closed {
            state.held = Some(Box::new(held));
        }
    }

    fn change(&self, text: usize, change: impl FnOnce(&mut Fresh)) {
        let mut state = self.lock();
        let State { texts, changed, closed, .. } = &mut *state;
        if let Some(fresh) = texts.get_mut(text).filter(|_| !*closed) {
            change(fresh);
            if !std::mem::replace(&mut fresh.is_listed, true) {
                changed.push(text);
            }
            drop(state);
            self.changes.notify_one();
        }
    }

    /// What is new, at least one text's. Safe to drop: nothing is taken before it is returned.
    pub async fn next(&self) -> Vec<StreamEvent> {
        loop {
            let events = self.take();
            if !events.is_empty() {
                return events;
            }
            self.changes.notified().await;
        }
    }

    /// What is new now.
    pub(super) fn take(&self) -> Vec<StreamEvent> {
        let mut state = self.lock();
        let State { texts, changed, .. } = &mut *state;
        changed
            .drain(..)
            .map(|text| {
                let Fresh { piece, outcome, .. } = std::mem::take(&mut texts[text]);
                StreamEvent { text, piece, outcome }
            })
            .collect()
    }

    /// Nobody takes anything any more.
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

    /// Held for a few instructions, by the link and by the one connection that the feed is for.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::Failure;

    fn told(events: Vec<StreamEvent>) -> Vec<(usize, String)> {
        events.into_iter().map(|event| (event.text, event.piece)).collect()
    }

    #[test]
    fn pieces_that_nobody_took_grow_together() {
        let feed = Feed::new(3);
        for (text, piece) in [(1, "a"), (0, "x"), (1, "b"), (1, "")] {
            feed.say(text, piece);
        }
        assert_eq!(told(feed.take()), [(1, "ab".to_owned()), (0, "x".to_owned())]);
        assert!(feed.take().is_empty());
        feed.say(1, "c");
        feed.end(1, Err(Failure::Deadline));
        assert_eq!(feed.take(), [StreamEvent { text: 1, piece: "c".into(), outcome: Some(Err(Failure::Deadline)) }]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_is_woken_and_loses_nothing_by_giving_up() {
        use std::time::Duration;
        let feed = Arc::new(Feed::new(1));
        let late = feed.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            late.say(0, "at last");
        });
        assert!(tokio::time::timeout(Duration::from_secs(1), feed.next()).await.is_err());
        assert_eq!(told(feed.next().await), [(0, "at last".to_owned())]);
    }

    #[test]
    fn what_is_held_is_dropped_when_all_texts_have_ended_though_nobody_reads() {
        let held = Arc::new(());
        let is_held = || Arc::strong_count(&held) > 1;
        let feed = Feed::new(2);
        feed.hold(held.clone());
        feed.end(1, Err(Failure::Deadline));
        assert!(is_held());
        feed.end(0, Err(Failure::Deadline));
        assert!(!is_held());
        feed.hold(held.clone());
        assert!(!is_held(), "it comes late");
        let feed = Feed::new(1);
        feed.hold(held.clone());
        feed.close();
        assert!(!is_held(), "given up");
    }

    #[test]
    fn nothing_is_kept_for_who_has_gone_away() {
        let feed = Feed::new(1);
        feed.close();
        feed.say(0, "a");
        assert!(feed.is_closed() && feed.take().is_empty());
    }
}
