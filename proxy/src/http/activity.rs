//! What goes on on a connection, and when that has been too little for too long.
//!
//! A connection costs a place, a descriptor and memory, so nobody may keep one for nothing: who sends nothing, who begins
//! a head and does not end it, and who does not read an answer, is hung up on. (A body has a time of its own, since its
//! request can still be told.)

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, sleep};

use super::AnswerBody;
use super::connection::Counted;

/// A connection may have no request for so long.
const IDLE: Duration = Duration::from_secs(75);
/// The same where few places are left; and the longest from a head's first byte to its last.
const BRIEF: Duration = Duration::from_secs(10);
/// A client may take nothing of an answer for so long.
const UNREAD: Duration = Duration::from_secs(60);

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overstayed {
    /// It had no request.
    Idle,
    /// A request's head was begun and not ended.
    Head,
    /// An answer was not read.
    Unread,
}

impl fmt::Display for Overstayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "no request came",
            Self::Head => "a request's head came too slowly",
            Self::Unread => "an answer was not read",
        })
    }
}

/// What goes on on a connection.
#[derive(Debug)]
pub(super) struct Activity {
    start: Instant,
    /// Milliseconds from the start to when something last went on.
    last: AtomicU64,
    /// The same to a head's first byte, and one more; 0 while there is none.
    head: AtomicU64,
    /// Requests that are being answered.
    requests: AtomicU32,
    /// Of them, those whose client is to take something.
    unread: AtomicU32,
}

impl Activity {
    pub(super) fn new(start: Instant) -> Self {
        let (last, head) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { start, last, head, requests: AtomicU32::new(0), unread: AtomicU32::new(0) }
    }

    /// Something came. Between two requests it is the next one's head.
    pub(super) fn heard(&self) {
        if self.requests.load(Relaxed) == 0 && self.head.load(Relaxed) == 0 {
            self.head.store(self.millis(Instant::now()) + 1, Relaxed);
        }
    }

    /// The client took something.
    pub(super) fn took(&self) {
        self.last.store(self.millis(Instant::now()), Relaxed);
    }

    /// A request's head is there; it is being answered until the guard is dropped.
    pub(super) fn request(self: &Arc<Self>) -> Attended {
        self.head_ended();
        self.requests.fetch_add(1, Relaxed);
        Attended { activity: self.clone(), is_unread: false }
    }

    /// No head is awaited: what comes is no request's alone.
    pub(super) fn head_ended(&self) {
        self.head.store(0, Relaxed);
    }

    /// Resolves when it has been too little for too long; `crowded` says whether few places are left.
    pub(super) async fn overstayed(&self, crowded: impl Fn() -> bool) -> Overstayed {
        loop {
            match self.look(Instant::now(), crowded()) {
                Ok(next) => sleep(next).await,
                Err(overstayed) => return overstayed,
            }
        }
    }

    /// Resolves when an answer has not been read for too long.
    pub(super) async fn is_left_unread(&self) {
        while self.overstayed(|| false).await != Overstayed::Unread {
            sleep(BRIEF).await;
        }
    }

    /// When to look again, or why the connection is to be closed.
    fn look(&self, now: Instant, crowded: bool) -> Result<Duration, Overstayed> {
        let now = self.millis(now);
        let silent = Duration::from_millis(now.saturating_sub(self.last.load(Relaxed)));
        let head = self.head.load(Relaxed).checked_sub(1).map(|head| Duration::from_millis(now.saturating_sub(head)));
        let (why, passed, limit) = match (self.requests.load(Relaxed), head) {
            (0, Some(head)) => (Overstayed::Head, head, BRIEF),
            (0, None) => (Overstayed::Idle, silent, if crowded { BRIEF } else { IDLE }),
            _ if self.unread.load(Relaxed) > 0 => (Overstayed::Unread, silent, UNREAD),
            _ => return Ok(BRIEF),
        };
        // Something else may begin at any time, and the shortest limit is this.
        limit.checked_sub(passed).filter(|left| !left.is_zero()).map(|left| left.min(BRIEF)).ok_or(why)
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX / 2)
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct Attended {
    activity: Arc<Activity>,
    is_unread: bool,
}

impl Attended {
    fn set_unread(&mut self, is_unread: bool) {
        if is_unread != self.is_unread {
            self.is_unread = is_unread;
            self.activity.took();
            if is_unread {
                self.activity.unread.fetch_add(1, Relaxed);
            } else {
                self.activity.unread.fetch_sub(1, Relaxed);
            }
        }
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.set_unread(false);
        self.activity.took();
        self.activity.requests.fetch_sub(1, Relaxed);
    }
}

/// An answer's body whose reading is watched.
#[derive(Debug)]
pub(super) struct Watched {
    body: AnswerBody,
    attended: Attended,
    _counted: Option<Counted>,
}

impl Watched {
    pub(super) fn new(body: AnswerBody, attended: Attended, counted: Option<Counted>) -> Self {
        Self { body, attended, _counted: counted }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        // Whoever asks has room for more.
        self.attended.set_unread(false);
        let frame = Pin::new(&mut self.body).poll_frame(context);
        self.attended.set_unread(matches!(frame, Poll::Ready(Some(_))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Time is paused: what is asked is asked so many seconds later.
    async fn after(seconds: u32, activity: &Activity) -> Result<Duration, Overstayed> {
        tokio::time::advance(seconds * SECOND).await;
        activity.look(Instant::now(), false)
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_closed_and_sooner_where_places_are_few() {
        let activity = Activity::new(Instant::now());
        assert_eq!(after(70, &activity).await, Ok(5 * SECOND));
        assert_eq!(activity.look(Instant::now(), true), Err(Overstayed::Idle));
        assert_eq!(after(5, &activity).await, Err(Overstayed::Idle));
        activity.took();
        assert_eq!(after(74, &activity).await, Ok(SECOND));
        assert_eq!(activity.overstayed(|| false).await, Overstayed::Idle);
        assert_eq!(activity.start.elapsed(), 150 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_a_time_that_its_bytes_do_not_prolong() {
        let activity = Arc::new(Activity::new(Instant::now()));
        assert!(after(60, &activity).await.is_ok());
        activity.heard();
        assert_eq!(after(9, &activity).await, Ok(SECOND));
        activity.heard();
        assert_eq!(after(1, &activity).await, Err(Overstayed::Head));
        drop(activity.request());
        assert_eq!(after(60, &activity).await, Ok(BRIEF), "the next one's has not begun");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_be_long_in_coming_and_not_long_unread() {
        let activity = Arc::new(Activity::new(Instant::now()));
        let mut first = activity.request();
        activity.heard();
        assert_eq!(after(600, &activity).await, Ok(BRIEF), "what comes meanwhile is its body, or waits its turn");
        let mut second = activity.request();
        second.set_unread(true);
        assert!(after(59, &activity).await.is_ok());
        first.set_unread(true);
        assert_eq!(after(59, &activity).await, Ok(SECOND));
        assert_eq!(after(1, &activity).await, Err(Overstayed::Unread));
        first.set_unread(false);
        drop(second);
        assert!(after(600, &activity).await.is_ok());
        drop(first);
        assert!(after(74, &activity).await.is_ok());
        assert_eq!(after(1, &activity).await, Err(Overstayed::Idle));
    }
}
