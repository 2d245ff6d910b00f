//! What is let in: the queue is bounded in texts, and the memory of prompts in bytes.
//!
//! Both are reserved before anything is done for a request, and given back by dropping what was reserved. Texts count
//! while they wait; bytes count until the request has ended, because a prompt is kept until then.
//!
//! A body takes its room as it comes, and most of it only in a part of all room: many that come slowly, or not to their
//! end, leave room for those that are small, and for those that are whole.
//!
//! A refused client is told when the queue is forecast to have room, spread over a span of time so that a refused crowd
//! does not come back at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

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
    /// Refusals so far: they spread the times at which refused clients are told to come back.
    refusals: AtomicU64,
    metrics: Arc<Metrics>,
}

/// The longest that a request's body may take to arrive, whatever the request's own timeout is.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a body that may be anywhere in the room: as many connections as a proxy has by default fit beside what else
/// comes.
const FIRST: usize = 2048;
/// All bodies that are coming may have one part in so many of the room, beside the first bytes of each.
const MOST_COMING: usize = 2;
/// The longest that a refused client is told to wait, in seconds.
const LONGEST_RETRY: u64 = 60;
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
                refusals: AtomicU64::new(0),
                metrics,
            }),
        }
    }

    /// Places for `n` texts, all or none.
    ///
    /// # Errors
    /// There are fewer.
    pub fn texts(&self, n: usize) -> Result<Vec<QueueSlot>, Rejected> {
        let room = |taken: usize| taken.checked_add(n).filter(|&sum| sum <= self.state.bounds.texts);
        if self.state.texts.fetch_update(Relaxed, Relaxed, room).is_err() {
            self.state.metrics.rejected_queue_full.increment(1);
            return Err(Rejected::QueueFull { retry_after: self.retry_after(self.backlog()) });
        }
        self.state.metrics.queue_depth.increment(count(n));
        Ok((0..n).map(|_| QueueSlot { state: self.state.clone() }).collect())
    }

    /// How long the engines will take for the texts that wait now.
    fn backlog(&self) -> Duration {
        let waiting = u32::try_from(self.state.texts.load(Relaxed)).unwrap_or(u32::MAX);
        self.each().saturating_mul(waiting)
    }

    /// When to tell a refused client to come back, in whole seconds from 1 to 60, where what waits before it is forecast to
    /// take the engines `backlog`: when half of that is done, and up to as long again, so that a refused crowd comes back
    /// spread over the time in which the queue drains.
    ///
    /// Successive refusals are spread evenly by the golden ratio (an additive recurrence: Roberts, The unreasonable
    /// effectiveness of quasirandom sequences, 2018), which needs no source of chance.
    pub fn retry_after(&self, backlog: Duration) -> Duration {
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let forecast = u64::try_from((backlog / 2).as_millis().div_ceil(1000)).unwrap_or(LONGEST_RETRY).max(1);
        let place = self.state.refusals.fetch_add(1, Relaxed).wrapping_mul(GOLDEN);
        let jitter = (u128::from(place) * u128::from(forecast.min(LONGEST_RETRY) + 1)) >> 64;
        let seconds = forecast.saturating_add(u64::try_from(jitter).unwrap_or(0));
        Duration::from_secs(seconds.min(LONGEST_RETRY))
    }

    fn each(&self) -> Duration {
        match self.state.each.load(Relaxed) {
            0 => UNKNOWN,
            nanos => Duration::from_nanos(nanos),
        }
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
        let admission = Admission { state: self.state.clone() };
        Rejected::QueueBytes { retry_after: admission.retry_after(admission.backlog()) }
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

    #[test]
    fn a_list_is_admitted_whole_or_refused_whole() {
        let door = door(3, 0);
        let first = door.texts(2).unwrap();
        assert!(matches!(door.texts(2), Err(Rejected::QueueFull { .. })));
        drop(first);
        assert_eq!(door.texts(3).unwrap().len(), 3);
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
    fn retry_after_follows_the_measured_pace_and_spreads_a_crowd() {
        let door = door(100, 0);
        let _waiting = door.texts(100).unwrap();
        let refused = || match door.texts(1) {
            Err(Rejected::QueueFull { retry_after }) => retry_after.as_secs(),
            other => panic!("{other:?}"),
        };
        let counts = |pace: Duration| {
            door.set_pace(pace);
            let mut counts = std::collections::BTreeMap::new();
            (0..1000).for_each(|_| *counts.entry(refused()).or_insert(0) += 1);
            counts
        };
        let even = |counts: &std::collections::BTreeMap<u64, i32>, seconds: std::ops::RangeInclusive<u64>| {
            let each = 1000 / i32::try_from(counts.len()).unwrap();
            counts.keys().copied().eq(seconds) && counts.values().all(|count| (count - each).abs() <= 3)
        };
        let quick = counts(Duration::from_millis(1));
        assert!(even(&quick, 1..=2), "{quick:?}");
        let slow = counts(Duration::from_millis(80));
        assert!(even(&slow, 4..=8), "half of 8 s, and up to as long again: {slow:?}");
        let stuck = counts(Duration::from_secs(100));
        assert_eq!(stuck.into_iter().collect::<Vec<_>>(), [(60, 1000)]);
    }
}
