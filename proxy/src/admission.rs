//! What is let in: the queue is bounded in texts, and the memory of prompts in bytes.
//!
//! Both are reserved before anything is done for a request, and given back by dropping what was reserved. Texts count
//! while they wait; bytes count until the request has ended, because a prompt is kept until then.
//!
//! A body takes its room as it comes, and most of it only in a part of all room: many that come slowly, or not to their
//! end, leave room for those that are small, and for those that are whole.
//!
//! Who is sent away is told when to come back, and a part of the queue is then kept for those who do (`promises`).

mod promises;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use self::promises::{Backlog, Promises};
use crate::job::Held;
use crate::metrics::{Metrics, count};

/// A refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The texts would not fit the queue.
    #[error("the queue is full")]
    QueueFull {
        /// When a place will be free, in whole seconds.
        retry_after: Duration,
    },
    /// The bytes would not fit the memory set aside for prompts.
    #[error("the memory for waiting requests is full")]
    QueueBytes {
        /// When there will be room, in whole seconds.
        retry_after: Duration,
    },
    /// The proxy is shutting down.
    #[error("the server is shutting down")]
    Draining,
}

/// The bounds.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Texts that may wait.
    pub texts: usize,
    /// Bytes that requests may hold.
    pub bytes: usize,
}

/// The door. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admission {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    bounds: Bounds,
    texts: AtomicUsize,
    bytes: AtomicUsize,
    /// Of them, those of bodies that are not whole, without the first of each.
    coming: AtomicUsize,
    arriving: AtomicUsize,
    /// Nanoseconds of the engines' time that a text takes, lately; 0 while unknown.
    each: AtomicU64,
    start: Instant,
    promises: Mutex<Promises>,
    /// Whether anything may have been promised: while nothing is, nobody looks.
    has_promised: AtomicBool,
    metrics: Arc<Metrics>,
}

/// What a client that was refused was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// When to come back.
    pub due: Instant,
    /// With so many texts, or fewer.
    pub texts: usize,
}

/// The longest that a request's body may take to arrive, whatever the request's own timeout is.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a body that may be anywhere in the room: as many connections as a proxy has by default fit beside what else
/// comes.
const FIRST: usize = 2048;
/// All bodies that are coming may have one part in so many of the room, beside the first bytes of each.
const MOST_COMING: usize = 2;
/// Of the queue's bound at most one part in so many is kept for those who were told to come back.
const MOST_KEPT: usize = 2;
/// What a text is taken to need of the engines' time while nothing is known of it.
const UNKNOWN: Duration = Duration::from_millis(10);

impl Admission {
    /// An open door.
    pub fn new(bounds: Bounds, metrics: Arc<Metrics>) -> Self {
        Self {
            state: Arc::new(State {
                bounds,
                texts: AtomicUsize::new(0),
                bytes: AtomicUsize::new(0),
                coming: AtomicUsize::new(0),
                arriving: AtomicUsize::new(0),
                each: AtomicU64::new(0),
                start: Instant::now(),
                promises: Mutex::new(Promises::new()),
                has_promised: AtomicBool::new(false),
                metrics,
            }),
        }
    }

    /// Places for `n` texts, all or none. `promised` is when the client was told to come back, and with how many texts it
    /// had come, if it was refused.
    ///
    /// # Errors
    /// There are fewer.
    pub fn texts(&self, n: usize, promised: Option<Promise>, now: Instant) -> Result<Vec<QueueSlot>, Rejected> {
        let bound = self.state.bounds.texts;
        let most = if self.state.has_promised.load(Relaxed) { bound - self.kept_from(n, promised, now) } else { bound };
        // While nobody waits nothing is kept from anybody.
        let room = |taken: usize| taken.checked_add(n).filter(|&sum| sum <= if taken == 0 { bound } else { most });
        if self.state.texts.fetch_update(Relaxed, Relaxed, room).is_err() {
            self.state.metrics.rejected_queue_full.increment(1);
            return Err(Rejected::QueueFull { retry_after: self.promise(n, now) });
        }
        self.state.metrics.queue_depth.increment(count(n));
        Ok((0..n).map(|_| QueueSlot { state: self.state.clone() }).collect())
    }

    /// Places that these texts may not take, since they are kept for others.
    fn kept_from(&self, n: usize, promised: Option<Promise>, now: Instant) -> usize {
        let mut account = self.promises();
        let since = |instant: Instant| instant.saturating_duration_since(self.state.start);
        if promised.is_some_and(|Promise { due, texts }| n <= texts && account.claim(n, since(due), since(now))) {
            return 0;
        }
        let kept = account.kept(since(now));
        if kept == 0 && account.is_empty() {
            self.state.has_promised.store(false, Relaxed);
        }
        kept.min(self.state.bounds.texts / MOST_KEPT)
    }

    fn promise(&self, n: usize, now: Instant) -> Duration {
        // Newcomers may have taken what is not kept, and what is foreseen is a little wrong.
        let room = self.state.bounds.texts / MOST_KEPT * 3 / 4;
        let backlog = Backlog { waiting: self.state.texts.load(Relaxed), each: self.each(), room };
        let now = now.saturating_duration_since(self.state.start);
        let seconds = self.promises().make(n, now, &backlog);
        self.state.has_promised.store(true, Relaxed);
        Duration::from_secs(seconds)
    }

    /// When what waits will have been served, in whole seconds; nothing is promised.
    fn drained(&self) -> Duration {
        let waiting = u32::try_from(self.state.texts.load(Relaxed)).unwrap_or(u32::MAX);
        let backlog = self.each().saturating_mul(waiting);
        let seconds = u64::try_from(backlog.as_millis().div_ceil(1000)).unwrap_or(promises::LONGEST);
        Duration::from_secs(seconds.clamp(1, promises::LONGEST))
    }

    fn each(&self) -> Duration {
        match self.state.each.load(Relaxed) {
            0 => UNKNOWN,
            nanos => Duration::from_nanos(nanos),
        }
    }

    /// Held for a few instructions, and only where somebody was sent away.
    fn promises(&self) -> MutexGuard<'_, Promises> {
        self.state.promises.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a text that was admitted before and comes back from a worker. It is never refused, so the bound may
    /// be passed by as many texts as workers hold.
    pub fn readmit(&self) -> QueueSlot {
        self.state.texts.fetch_add(1, Relaxed);
        self.state.metrics.queue_depth.increment(1.0);
        QueueSlot { state: self.state.clone() }
    }

    /// A body of which `announced` bytes are known to come, or more.
    ///
    /// # Errors
    /// There is no room for as many now.
    pub fn body(&self, announced: usize) -> Result<Coming, Rejected> {
        let state = self.state.clone();
        let mut coming = Coming { bytes: Bytes { state, held: 0 }, late: 0 };
        // They are not kept for it: it may not come to its end.
        coming.grow(announced)?;
        coming.shrink();
        Ok(coming)
    }

    /// Says that a request is being read, until the guard is dropped.
    pub fn arriving(&self) -> Arriving {
        self.state.arriving.fetch_add(1, Relaxed);
        Arriving { state: self.state.clone() }
    }

    /// Requests that are being read at this moment.
    pub fn count_arriving(&self) -> usize {
        self.state.arriving.load(Relaxed)
    }

    /// What a text takes of the engines' time, as measured.
    pub fn set_pace(&self, each: Duration) {
        self.state.each.store(u64::try_from(each.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }
}

/// A text's place in the queue's bound.
#[derive(Debug)]
pub struct QueueSlot {
    state: Arc<State>,
}

impl Drop for QueueSlot {
    fn drop(&mut self) {
        self.state.texts.fetch_sub(1, Relaxed);
        self.state.metrics.queue_depth.decrement(1.0);
    }
}

/// Bytes of a body that is not whole.
#[derive(Debug)]
pub struct Coming {
    bytes: Bytes,
    /// Those beyond the first.
    late: usize,
}

impl Coming {
    /// Room for `n` bytes more.
    ///
    /// # Errors
    /// There is less; what was held is still held.
    pub fn grow(&mut self, n: usize) -> Result<(), Rejected> {
        let state = &self.bytes.state;
        let late = self.bytes.held.saturating_add(n).saturating_sub(FIRST) - self.late;
        // One alone may have all of it.
        let most = |taken: usize| if taken == self.late { usize::MAX } else { state.bounds.bytes / MOST_COMING };
        let room = |taken: usize| taken.checked_add(late).filter(|&sum| late == 0 || sum <= most(taken));
        if state.coming.fetch_update(Relaxed, Relaxed, room).is_err() {
            return Err(self.bytes.refused());
        }
        self.late += late;
        self.bytes.grow(n)
    }

    fn shrink(&mut self) {
        self.bytes.state.coming.fetch_sub(std::mem::take(&mut self.late), Relaxed);
        self.bytes.state.bytes.fetch_sub(std::mem::take(&mut self.bytes.held), Relaxed);
    }

    /// It is whole.
    pub fn whole(mut self) -> Bytes {
        let held = std::mem::take(&mut self.bytes.held);
        Bytes { state: self.bytes.state.clone(), held }
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.bytes.state.coming.fetch_sub(self.late, Relaxed);
    }
}

/// Bytes of a request.
#[derive(Debug)]
pub struct Bytes {
    state: Arc<State>,
    held: usize,
}

impl Bytes {
    /// Room for `n` bytes more.
    ///
    /// # Errors
    /// There is less; what was held is still held.
    pub fn grow(&mut self, n: usize) -> Result<(), Rejected> {
        let room = |taken: usize| taken.checked_add(n).filter(|&sum| sum <= self.state.bounds.bytes);
        if self.state.bytes.fetch_update(Relaxed, Relaxed, room).is_err() {
            return Err(self.refused());
        }
        self.held += n;
        Ok(())
    }

    fn refused(&self) -> Rejected {
        self.state.metrics.rejected_queue_bytes.increment(1);
        Rejected::QueueBytes { retry_after: Admission { state: self.state.clone() }.drained() }
    }
}

impl Held for Bytes {}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.state.bytes.fetch_sub(self.held, Relaxed);
    }
}

/// A request that is being read.
#[derive(Debug)]
pub struct Arriving {
    state: Arc<State>,
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.state.arriving.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(texts: usize, bytes: usize) -> Admission {
        Admission::new(Bounds { texts, bytes }, Arc::new(Metrics::new().unwrap()))
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_list_is_admitted_whole_or_refused_whole() {
        let (door, now) = (door(3, 0), Instant::now());
        let first = door.texts(2, None, now).unwrap();
        assert!(matches!(door.texts(2, None, now), Err(Rejected::QueueFull { .. })));
        drop(first);
        assert_eq!(door.texts(3, None, now).unwrap().len(), 3);
    }

    #[test]
    fn bytes_are_held_until_dropped() {
        let door = door(0, 10);
        let body = |bytes| {
            let mut body = door.body(bytes)?;
            body.grow(bytes).map(|()| body)
        };
        let mut held = body(4).unwrap().whole();
        held.grow(6).unwrap();
        assert!(matches!(held.grow(1), Err(Rejected::QueueBytes { .. })));
        drop(held);
        assert!(body(10).is_ok());
        assert!(body(11).is_err());
        assert!(body(usize::MAX).is_err());
        assert!(body(10).is_ok(), "nothing is left of those");
    }

    #[test]
    fn what_is_announced_and_does_not_come_takes_no_room() {
        let door = door(0, 2 * FIRST);
        let announced: Vec<_> = (0..100).map(|_| door.body(FIRST + 100).unwrap()).collect();
        assert!(door.body(2 * FIRST + 1).is_err());
        drop(announced);
        assert_eq!((door.state.bytes.load(Relaxed), door.state.coming.load(Relaxed)), (0, 0));
    }

    #[test]
    fn a_large_body_may_have_all_room_where_it_is_alone() {
        let door = door(0, 4 * FIRST);
        let mut body = door.body(4 * FIRST).unwrap();
        (0..4).for_each(|_| body.grow(FIRST).unwrap());
    }

    #[test]
    fn large_bodies_that_do_not_come_to_their_end_leave_room_for_others() {
        let door = door(0, 20 * FIRST);
        let large: Vec<_> = std::iter::from_fn(|| {
            let mut body = door.body(0).ok()?;
            body.grow(3 * FIRST).ok().map(|()| body)
        })
        .collect();
        assert_eq!(large.len(), 5, "two in three bytes of each count");
        let small = || door.body(FIRST).and_then(|mut body| body.grow(FIRST).map(|()| body.whole()));
        let mut others: Vec<_> = (0..5).map(|_| small().unwrap()).collect();
        assert!(small().is_err(), "all of it is taken");
        others.clear();
        let mut whole: Vec<_> = large.into_iter().map(Coming::whole).collect();
        let mut next = door.body(3 * FIRST).unwrap();
        next.grow(3 * FIRST).expect("those before are whole, and in nobody's way");
        whole.clear();
        drop(next);
        assert_eq!((door.state.bytes.load(Relaxed), door.state.coming.load(Relaxed)), (0, 0));
    }

    #[test]
    fn retry_after_follows_the_measured_pace() {
        let (door, now) = (door(100, 0), Instant::now());
        let _waiting = door.texts(100, None, now).unwrap();
        let refused = |texts: usize, at| match door.texts(texts, None, at) {
            Err(Rejected::QueueFull { retry_after }) => retry_after.as_secs(),
            other => panic!("{other:?}"),
        };
        // The better part of the queue is to be free.
        assert_eq!(refused(1, now), 1, "nothing has been measured yet");
        door.set_pace(Duration::from_millis(33));
        assert_eq!(refused(1, now), 3);
        assert_eq!(refused(60, now), 4, "after the ones before");
        assert_eq!(refused(1, now + seconds(500)), 3);
    }

    #[test]
    fn a_place_is_kept_for_who_comes_back_when_told() {
        let (door, now) = (door(4, 0), Instant::now());
        door.set_pace(Duration::from_secs(1));
        let waiting = door.texts(4, None, now).unwrap();
        let Err(Rejected::QueueFull { retry_after }) = door.texts(2, None, now) else { panic!("it is full") };
        drop(waiting);
        let due = now + retry_after;
        let _others = door.texts(2, None, due).unwrap();
        assert!(door.texts(1, None, due).is_err(), "the rest is kept");
        assert!(door.texts(2, Some(Promise { due, texts: 1 }), due).is_err(), "more than was promised");
        assert_eq!(door.texts(2, Some(Promise { due, texts: 2 }), due).unwrap().len(), 2);
    }

    #[test]
    fn what_nobody_comes_back_for_is_not_kept_for_long() {
        let (door, now) = (door(4, 0), Instant::now());
        let mut waiting = door.texts(4, None, now).unwrap();
        assert!(door.texts(2, None, now).is_err());
        waiting.truncate(1);
        assert!(door.texts(3, None, now + seconds(1)).is_err(), "two are kept");
        assert_eq!(door.texts(3, None, now + seconds(10)).unwrap().len(), 3);
    }
}
