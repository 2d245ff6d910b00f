//! Tracks the activity on a connection, and decides when to close it.
//!
//! A connection costs a place, a file descriptor and memory. So it is closed if no request comes, if a request's head is not
//! completed, or if an answer is not read. (A body has a time limit of its own, since its request can still be answered with
//! an error.)

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// The first bytes that an HTTP/2 client sends (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The longest time without a request.
const IDLE: Duration = Duration::from_secs(75);
/// The longest time without a request while few places are left. Also the longest time that a head may take, from its first
/// byte to its last.
const SHORT: Duration = Duration::from_secs(10);
/// The longest time in which a client takes nothing of an answer.
const UNREAD: Duration = Duration::from_secs(60);

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CloseReason {
    #[error("no request came")]
    Idle,
    #[error("the head of a request was not completed in time")]
    Head,
    #[error("the client did not read an answer")]
    Unread,
}

/// The activity on one connection.
#[derive(Debug)]
pub(super) struct Activity(Mutex<State>);

#[derive(Debug)]
struct State {
    /// How many bytes of HTTP/2's preface were read.
    preface: usize,
    /// Whether other bytes were read before the preface was complete.
    is_http1: bool,
    /// When the client last made progress: it took a part of an answer, or an answer ended.
    progressed: Instant,
    /// When the head that is being read began.
    head: Option<Instant>,
    /// The number of requests in flight.
    requests: usize,
    /// The number of requests in flight for which the client has something to read.
    unread: usize,
}

impl Activity {
    pub(super) fn new(start: Instant) -> Self {
        let (preface, is_http1, head, requests, unread) = (0, false, None, 0, 0);
        Self(Mutex::new(State { preface, is_http1, progressed: start, head, requests, unread }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called on every read. With no request in flight, the bytes start a new request's head and its timer.
    pub(super) fn on_read(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if bytes.is_empty() || state.is_http2() {
            return;
        }
        if state.requests == 0 {
            state.head.get_or_insert_with(Instant::now);
        }
        if state.is_http1 {
            return;
        }
        let rest = &PREFACE[state.preface..];
        let compared = rest.len().min(bytes.len());
        state.is_http1 = rest[..compared] != bytes[..compared];
        state.preface += if state.is_http1 { 0 } else { compared };
        if state.is_http2() {
            state.head = None;
        }
    }

    /// Called on every write. Over HTTP/1.1, a write shows that the client has taken a part of an answer.
    pub(super) fn on_write(&self) {
        let mut state = self.lock();
        if !state.is_http2() {
            state.progressed = Instant::now();
        }
    }

    /// Records that a request's head is complete. The request is in flight until the guard is dropped.
    pub(super) fn begin_request(self: &Arc<Self>) -> InFlightGuard {
        let mut state = self.lock();
        state.head = None;
        state.requests += 1;
        InFlightGuard { activity: self.clone(), is_unread: false }
    }

    /// Resolves with the reason when the connection must be closed. `crowded` says whether few places are left.
    pub(super) async fn overdue(&self, crowded: impl Fn() -> bool) -> CloseReason {
        loop {
            let checked = self.lock().check(Instant::now(), crowded());
            match checked {
                Ok(next) => sleep(next).await,
                Err(reason) => return reason,
            }
        }
    }
}

impl State {
    /// Whether the connection is known to speak HTTP/2. Then reads and writes are no sign of activity, because HTTP/2 has
    /// frames of its own (settings, pings) and many requests at once.
    fn is_http2(&self) -> bool {
        self.preface == PREFACE.len()
    }

    /// Returns the time until the next check, or why the connection must be closed.
    fn check(&self, now: Instant, crowded: bool) -> Result<Duration, CloseReason> {
        let (reason, since, limit) = match (self.requests, self.head) {
            (0, Some(head)) => (CloseReason::Head, head, SHORT),
            (0, None) => (CloseReason::Idle, self.progressed, if crowded { SHORT } else { IDLE }),
            _ if self.unread > 0 => (CloseReason::Unread, self.progressed, UNREAD),
            _ => return Ok(SHORT),
        };
        // A head or an answer may begin meanwhile. No limit is shorter than `SHORT`, so the next check comes by then.
        let left = (since + limit).saturating_duration_since(now);
        if left.is_zero() { Err(reason) } else { Ok(left.min(SHORT)) }
    }
}

/// A request in flight. Dropping it records that its answer has ended.
#[derive(Debug)]
pub(super) struct InFlightGuard {
    activity: Arc<Activity>,
    is_unread: bool,
}

impl InFlightGuard {
    /// Sets whether the client has something left to read.
    pub(super) fn set_unread(&mut self, is_unread: bool) {
        if is_unread != self.is_unread {
            let mut state = self.activity.lock();
            state.unread = state.unread + usize::from(is_unread) - usize::from(self.is_unread);
            state.progressed = Instant::now();
            self.is_unread = is_unread;
        }
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        let mut state = self.activity.lock();
        state.unread -= usize::from(self.is_unread);
        state.requests -= 1;
        // Of an answer that is unread, the last part was handed over just now.
        if !self.is_unread {
            state.progressed = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Advances the paused clock, and checks the connection.
    async fn after(seconds: u32, activity: &Activity) -> Result<Duration, CloseReason> {
        tokio::time::advance(seconds * SECOND).await;
        activity.lock().check(Instant::now(), false)
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_closed_and_sooner_if_places_are_few() {
        let start = Instant::now();
        let activity = Arc::new(Activity::new(start));
        assert_eq!(after(70, &activity).await, Ok(5 * SECOND));
        assert_eq!(activity.lock().check(Instant::now(), true), Err(CloseReason::Idle));
        assert_eq!(after(5, &activity).await, Err(CloseReason::Idle));
        drop(activity.begin_request());
        assert_eq!(after(74, &activity).await, Ok(SECOND));
        assert_eq!(activity.overdue(|| false).await, CloseReason::Idle);
        assert_eq!(start.elapsed(), 150 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn more_bytes_of_a_head_do_not_extend_its_time_limit() {
        let activity = Arc::new(Activity::new(Instant::now()));
        assert!(after(60, &activity).await.is_ok());
        activity.on_read(b"GET");
        assert_eq!(after(9, &activity).await, Ok(SECOND));
        activity.on_read(b"GET");
        assert_eq!(after(1, &activity).await, Err(CloseReason::Head));
        drop(activity.begin_request());
        assert_eq!(after(60, &activity).await, Ok(SHORT), "the next head has not begun");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_take_long_to_come_but_must_be_read() {
        let activity = Arc::new(Activity::new(Instant::now()));
        let mut first = activity.begin_request();
        activity.on_read(b"GET");
        assert_eq!(after(600, &activity).await, Ok(SHORT), "these bytes belong to the body or the next request");
        let mut second = activity.begin_request();
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
    async fn the_http_version_is_known_however_the_bytes_are_split() {
        let speaks_http2 = |pieces: &[&[u8]]| {
            let activity = Activity::new(Instant::now());
            pieces.iter().for_each(|piece| activity.on_read(piece));
            activity.lock().is_http2()
        };
        let http2 = [PREFACE, b"frames"].concat();
        for cut in 0..http2.len() {
            assert!(speaks_http2(&[&http2[..cut], &http2[cut..]]), "cut at {cut}");
        }
        for http1 in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PRI * HTTP/1.1\r\n\r\n", b"PRI", b"P"] {
            assert!(!speaks_http2(&[http1]));
            assert!(!speaks_http2(&[http1, PREFACE]), "a preface after other bytes does not count");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn frames_of_http2_count_neither_as_a_head_nor_as_progress() {
        let activity = Activity::new(Instant::now());
        activity.on_read(PREFACE);
        activity.on_read(b"a frame");
        assert!(after(74, &activity).await.is_ok());
        activity.on_write();
        assert_eq!(after(1, &activity).await, Err(CloseReason::Idle));
    }
}
