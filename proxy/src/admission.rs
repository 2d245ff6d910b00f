//! What is let in: the queue is bounded in texts, and the memory of prompts in bytes.
//!
//! Both are reserved before anything is done for a request, and given back by dropping what was reserved. Texts count
//! while they wait; bytes count until the request has ended, because a prompt is kept until then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crate::metrics::{Metrics, count};

/// A refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The texts would not fit the queue.
    #[error("the queue is full")]
    QueueFull {
        /// When a place may be free, computed from the measured rate.
        retry_after: Duration,
    },
    /// The bytes would not fit the memory set aside for prompts.
    #[error("the memory for waiting requests is full")]
    QueueBytes {
        /// When there may be room, computed from the measured rate.
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
    arriving: AtomicUsize,
    /// Thousandths of texts answered a second, lately; 0 while unknown.
    rate: AtomicU64,
    metrics: Arc<Metrics>,
}

/// The longest that a client is asked to wait, in seconds.
const LONGEST_RETRY: u64 = 60;

impl Admission {
    /// An open door.
    pub fn new(bounds: Bounds, metrics: Arc<Metrics>) -> Self {
        Self {
            state: Arc::new(State {
                bounds,
                texts: AtomicUsize::new(0),
                bytes: AtomicUsize::new(0),
                arriving: AtomicUsize::new(0),
                rate: AtomicU64::new(0),
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
            return Err(Rejected::QueueFull { retry_after: self.retry_after() });
        }
        self.state.metrics.queue_depth.increment(count(n));
        Ok((0..n).map(|_| QueueSlot { state: self.state.clone() }).collect())
    }

    /// A place for a text that was admitted before and comes back from a worker. It is never refused, so the bound may
    /// be passed by as many texts as workers hold.
    pub fn readmit(&self) -> QueueSlot {
        self.state.texts.fetch_add(1, Relaxed);
        self.state.metrics.queue_depth.increment(1.0);
        QueueSlot { state: self.state.clone() }
    }

    /// Room for `n` bytes.
    ///
    /// # Errors
    /// There is less.
    pub fn bytes(&self, n: usize) -> Result<Bytes, Rejected> {
        let mut bytes = Bytes { state: self.state.clone(), held: 0 };
        bytes.grow(n)?;
        Ok(bytes)
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

    /// The texts answered a second, as measured.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float's cast to an integer saturates"
    )]
    pub fn set_rate(&self, texts_per_second: f64) {
        self.state.rate.store((texts_per_second * 1000.0) as u64, Relaxed);
    }

    /// When a queue as long as the present one will have been served: whole seconds, at least 1.
    fn retry_after(&self) -> Duration {
        let rate = self.state.rate.load(Relaxed);
        let waiting = self.state.texts.load(Relaxed) as u64;
        let seconds = if rate == 0 { 1 } else { (waiting * 1000).div_ceil(rate) };
        Duration::from_secs(seconds.clamp(1, LONGEST_RETRY))
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
            self.state.metrics.rejected_queue_bytes.increment(1);
            let retry_after = Admission { state: self.state.clone() }.retry_after();
            return Err(Rejected::QueueBytes { retry_after });
        }
        self.held += n;
        Ok(())
    }
}

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
        let mut held = door.bytes(4).unwrap();
        held.grow(6).unwrap();
        assert!(matches!(held.grow(1), Err(Rejected::QueueBytes { .. })));
        drop(held);
        assert!(door.bytes(10).is_ok());
        assert!(door.bytes(usize::MAX).is_err());
    }

    #[test]
    fn retry_after_follows_the_measured_rate() {
        let door = door(100, 0);
        let _waiting = door.texts(100).unwrap();
        let refused = |door: &Admission| match door.texts(1) {
            Err(Rejected::QueueFull { retry_after }) => retry_after.as_secs(),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(&door), 1, "nothing has been measured yet");
        door.set_rate(30.0);
        assert_eq!(refused(&door), 4);
        door.set_rate(0.001);
        assert_eq!(refused(&door), LONGEST_RETRY);
    }
}
