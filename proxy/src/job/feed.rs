//! What the texts of a streamed request have produced and its client has not taken yet.
//!
//! A link says what there is and never waits; a client takes all of it at once. So where a client reads slowly, its pieces
//! grow together, and what is kept for it is never more than its answer.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::reply::End;

/// One request's.
#[derive(Debug)]
pub struct Feed {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Debug)]
struct State {
    /// By text.
    texts: Vec<Fresh>,
    /// Texts of which there is something new, in the order in which it came.
    changed: Vec<usize>,
    /// Nobody takes it any more.
    closed: bool,
}

#[derive(Debug, Default)]
struct Fresh {
    piece: String,
    end: Option<End>,
    is_listed: bool,
}

/// What is new of one text.
#[derive(Debug, PartialEq)]
pub struct News {
    /// Which text, by its place in the request.
    pub text: usize,
    /// More of its answer; may be empty where it has ended.
    pub piece: String,
    /// Its end, if it has ended.
    pub end: Option<End>,
}

impl Feed {
    /// For a request of so many texts.
    pub fn new(texts: usize) -> Self {
        let texts = (0..texts).map(|_| Fresh::default()).collect();
        Self { state: Mutex::new(State { texts, changed: Vec::new(), closed: false }), news: Notify::new() }
    }

    /// More of a text's answer.
    pub(super) fn say(&self, text: usize, piece: &str) {
        if !piece.is_empty() {
            self.change(text, |fresh| fresh.piece.push_str(piece));
        }
    }

    /// A text has ended.
    pub(super) fn end(&self, text: usize, end: End) {
        self.change(text, |fresh| fresh.end = Some(end));
    }

    fn change(&self, text: usize, change: impl FnOnce(&mut Fresh)) {
        let mut state = self.lock();
        let State { texts, changed, closed } = &mut *state;
        if let Some(fresh) = texts.get_mut(text).filter(|_| !*closed) {
            change(fresh);
            if !std::mem::replace(&mut fresh.is_listed, true) {
                changed.push(text);
            }
            drop(state);
            self.news.notify_one();
        }
    }

    /// What is new, at least one text's. Safe to drop: nothing is taken before it is returned.
    pub async fn news(&self) -> Vec<News> {
        loop {
            let news = self.take();
            if !news.is_empty() {
                return news;
            }
            self.news.notified().await;
        }
    }

    /// What is new now.
    pub(super) fn take(&self) -> Vec<News> {
        let mut state = self.lock();
        let State { texts, changed, .. } = &mut *state;
        changed
            .drain(..)
            .map(|text| {
                let Fresh { piece, end, .. } = std::mem::take(&mut texts[text]);
                News { text, piece, end }
            })
            .collect()
    }

    /// Nobody takes anything any more.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.texts = Vec::new();
        state.changed = Vec::new();
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
    use super::super::reply::Failure;
    use super::*;

    fn told(news: Vec<News>) -> Vec<(usize, String)> {
        news.into_iter().map(|news| (news.text, news.piece)).collect()
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
        assert_eq!(feed.take(), [News { text: 1, piece: "c".into(), end: Some(Err(Failure::Deadline)) }]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_is_woken_and_loses_nothing_by_giving_up() {
        use std::time::Duration;
        let feed = std::sync::Arc::new(Feed::new(1));
        let late = feed.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            late.say(0, "at last");
        });
        assert!(tokio::time::timeout(Duration::from_secs(1), feed.news()).await.is_err());
        assert_eq!(told(feed.news().await), [(0, "at last".to_owned())]);
    }

    #[test]
    fn nothing_is_kept_for_who_has_gone_away() {
        let feed = Feed::new(1);
        feed.close();
        feed.say(0, "a");
        assert!(feed.is_closed() && feed.take().is_empty());
    }
}
