//! What happens on a connection, and when that has been too little for too long.
//!
//! A connection costs a place, a descriptor and memory. So it is closed if no request comes, if a request's head is begun
//! and not ended, or if an answer is not read. (A body has a time limit of its own, since its request can still be answered
//! with an error.)

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// What an HTTP/2 client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The longest time without a request.
const IDLE: Duration = Duration::from_secs(75);
/// The same while few places are left; and the longest time from a head's first byte to its last.
const BRIEF: Duration = Duration::from_secs(10);
/// The longest time in which a client takes nothing of an answer.
const UNREAD: Duration = Duration::from_secs(60);

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CloseReason {
    #[error("no request came")]
    Idle,
    #[error("a request's head was begun and not ended in time")]
    Head,
    #[error("an answer was not read")]
    Unread,
}

/// What happens on one connection. All times are milliseconds since its start.
#[derive(Debug)]
pub(super) struct Activity {
    start: Instant,
    /// Bytes read so far that are those of HTTP/2's preface.
    preface: AtomicUsize,
    /// Whether other bytes were read before the preface was complete.
    is_http1: AtomicBool,
    /// When there was progress last.
    last: AtomicU64,
    /// When the head that is being read was begun, plus one; 0 while there is none.
    head: AtomicU64,
    /// Requests in flight.
    requests: AtomicU32,
    /// Those of them whose client has something to read.
    unread: AtomicU32,
}

impl Activity {
    pub(super) fn new(start: Instant) -> Self {
        Self {
            start,
            preface: AtomicUsize::new(0),
            is_http1: AtomicBool::new(false),
            last: AtomicU64::new(0),
            head: AtomicU64::new(0),
            requests: AtomicU32::new(0),
            unread: AtomicU32::new(0),
        }
    }

    /// Whether the connection is known to speak HTTP/2. Its bytes say nothing then: it carries frames of its own (settings,
    /// pings), and many requests at once.
    fn is_http2(&self) -> bool {
        self.preface.load(Relaxed) == PREFACE.len()
    }

    /// Called on every read. With no request in flight, the bytes start a new request's head and its timer.
    pub(super) fn on_read(&self, bytes: &[u8]) {
        if bytes.is_empty() || self.is_http2() {
            return;
        }
        if self.requests.load(Relaxed) == 0 && self.head.load(Relaxed) == 0 {
            self.head.store(self.millis(Instant::now()) + 1, Relaxed);
        }
        if !self.is_http1.load(Relaxed) {
            let seen = self.preface.load(Relaxed);
            let compared = (PREFACE.len() - seen).min(bytes.len());
            if PREFACE[seen..seen + compared] == bytes[..compared] {
                self.preface.store(seen + compared, Relaxed);
            } else {
                self.is_http1.store(true, Relaxed);
            }
            if self.is_http2() {
                self.head_ended();
            }
        }
    }

    /// Called on every write: over HTTP/1.1 the client has taken a part of an answer.
    pub(super) fn on_write(&self) {
        if !self.is_http2() {
            self.progressed();
        }
    }

    /// The client took a part of an answer, or an answer ended.
    fn progressed(&self) {
        self.last.store(self.millis(Instant::now()), Relaxed);
    }

    /// A request's head is complete. The request is in flight until the guard is dropped.
    pub(super) fn request(self: &Arc<Self>) -> InFlightGuard {
        self.head_ended();
        self.requests.fetch_add(1, Relaxed);
        InFlightGuard { activity: self.clone(), is_unread: false }
    }

    /// No head is being read.
    fn head_ended(&self) {
        self.head.store(0, Relaxed);
    }

    /// Resolves when the connection is to be closed; `crowded` says whether few places are left.
    pub(super) async fn overdue(&self, crowded: impl Fn() -> bool) -> CloseReason {
        loop {
            match self.check(Instant::now(), crowded()) {
                Ok(next) => sleep(next).await,
                Err(reason) => return reason,
            }
        }
    }

    /// When to check again, or why the connection is to be closed.
    fn check(&self, now: Instant, crowded: bool) -> Result<Duration, CloseReason> {
        let now = self.millis(now);
        let silent = Duration::from_millis(now.saturating_sub(self.last.load(Relaxed)));
        let head = self.head.load(Relaxed).checked_sub(1).map(|head| Duration::from_millis(now.saturating_sub(head)));
        let (reason, passed, limit) = match (self.requests.load(Relaxed), head) {
            (0, Some(head)) => (CloseReason::Head, head, BRIEF),
            (0, None) => (CloseReason::Idle, silent, if crowded { BRIEF } else { IDLE }),
            _ if self.unread.load(Relaxed) > 0 => (CloseReason::Unread, silent, UNREAD),
            _ => return Ok(BRIEF),
        };
        // Something else may begin at any time, and the shortest limit is this.
        limit.checked_sub(passed).filter(|left| !left.is_zero()).map(|left| left.min(BRIEF)).ok_or(reason)
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX / 2)
    }
}

/// A request in flight. Dropping it says that its answer has ended.
#[derive(Debug)]
pub(super) struct InFlightGuard {
    activity: Arc<Activity>,
    is_unread: bool,
}

impl InFlightGuard {
    /// Whether there is something that the client has not taken.
    pub(super) fn set_unread(&mut self, is_unread: bool) {
        if is_unread != self.is_unread {
            self.is_unread = is_unread;
            self.activity.progressed();
            if is_unread {
                self.activity.unread.fetch_add(1, Relaxed);
            } else {
                self.activity.unread.fetch_sub(1, Relaxed);
            }
        }
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.set_unread(false);
        self.activity.progressed();
        self.activity.requests.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Time is paused: what is asked is asked so many seconds later.
    async fn after(seconds: u32, activity: &Activity) -> Result<Duration, CloseReason> {
        tokio::time::advance(seconds * SECOND).await;
        activity.check(Instant::now(), false)
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_closed_and_sooner_where_places_are_few() {
        let activity = Activity::new(Instant::now());
        assert_eq!(after(70, &activity).await, Ok(5 * SECOND));
        assert_eq!(activity.check(Instant::now(), true), Err(CloseReason::Idle));
        assert_eq!(after(5, &activity).await, Err(CloseReason::Idle));
        activity.progressed();
        assert_eq!(after(74, &activity).await, Ok(SECOND));
        assert_eq!(activity.overdue(|| false).await, CloseReason::Idle);
        assert_eq!(activity.start.elapsed(), 150 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_a_time_that_its_bytes_do_not_prolong() {
        let activity = Arc::new(Activity::new(Instant::now()));
        assert!(after(60, &activity).await.is_ok());
        activity.on_read(b"GET");
        assert_eq!(after(9, &activity).await, Ok(SECOND));
        activity.on_read(b"GET");
        assert_eq!(after(1, &activity).await, Err(CloseReason::Head));
        drop(activity.request());
        assert_eq!(after(60, &activity).await, Ok(BRIEF), "the next one's has not begun");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_be_long_in_coming_and_not_long_unread() {
        let activity = Arc::new(Activity::new(Instant::now()));
        let mut first = activity.request();
        activity.on_read(b"GET");
        assert_eq!(after(600, &activity).await, Ok(BRIEF), "what comes meanwhile is its body, or waits its turn");
        let mut second = activity.request();
        second.set_unread(true);
        assert!(after(59, &activity).await.is_ok());
        first.set_unread(true);
        assert_eq!(after(59, &activity).await, Ok(SECOND));
        assert_eq!(after(1, &activity).await, Err(CloseReason::Unread));
        first.set_unread(false);
        drop(second);
        assert!(after(600, &activity).await.is_ok());
        drop(first);
        assert!(after(74, &activity).await.is_ok());
        assert_eq!(after(1, &activity).await, Err(CloseReason::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn the_version_is_told_however_the_bytes_arrive() {
        let speaks_http2 = |pieces: &[&[u8]]| {
            let activity = Activity::new(Instant::now());
            pieces.iter().for_each(|piece| activity.on_read(piece));
            activity.is_http2()
        };
        let http2 = [PREFACE, b"frames"].concat();
        for cut in 0..http2.len() {
            assert!(speaks_http2(&[&http2[..cut], &http2[cut..]]), "cut at {cut}");
        }
        for http1 in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PRI * HTTP/1.1\r\n\r\n", b"PRI", b"P"] {
            assert!(!speaks_http2(&[http1]));
            assert!(!speaks_http2(&[http1, PREFACE]), "no preface stands behind other bytes");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_frames_of_an_http2_connection_are_no_head_and_no_progress() {
        let activity = Activity::new(Instant::now());
        activity.on_read(PREFACE);
        activity.on_read(b"a frame");
        assert!(after(74, &activity).await.is_ok());
        activity.on_write();
        assert_eq!(after(1, &activity).await, Err(CloseReason::Idle));
    }
}
