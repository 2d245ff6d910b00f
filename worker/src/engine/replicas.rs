//! Records when each replica of the engine was last active, so that a call's time counts from its real beginning: a call may
//! wait inside the engine for earlier calls.
//!
//! All calls go into one queue, and a free replica takes the next one. A call's replica is known when its first token comes,
//! since the token comes on the replica's own thread. If there is only one replica, every token is from it.

use std::sync::{Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// The replicas of an engine.
#[derive(Debug)]
pub(super) struct Replicas {
    is_one: bool,
    started: Instant,
    /// The last activity of each replica: a short list that is searched in full.
    active: Mutex<Vec<(Option<ThreadId>, Instant)>>,
}

/// A call's time on its replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReplicaTime {
    /// When the replica began the call: at once, or as soon as it was free.
    pub(super) began: Instant,
    /// How long the replica was idle before the call.
    pub(super) idle: Duration,
    /// How long the call took.
    pub(super) busy: Duration,
}

impl Replicas {
    /// Replicas that have done nothing before `now`.
    pub(super) fn new(replicas: usize, now: Instant) -> Self {
        Self { is_one: replicas == 1, started: now, active: Mutex::default() }
    }

    /// Records that the replica of this thread is active. Returns when it was active before.
    pub(super) fn is_active(&self, now: Instant) -> Instant {
        self.replace((!self.is_one).then(|| thread::current().id()), now)
    }

    /// The time of a call, made at `called`, that ended without a token.
    pub(super) fn silent(&self, called: Instant, now: Instant) -> ReplicaTime {
        // If there are several replicas, it is unknown which one had the call.
        let before = if self.is_one { self.replace(None, now) } else { called };
        ReplicaTime::new(called, before, now)
    }

    fn replace(&self, replica: Option<ThreadId>, now: Instant) -> Instant {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, last)) = active.iter_mut().find(|(other, _)| *other == replica) {
            return std::mem::replace(last, now);
        }
        active.push((replica, now));
        self.started
    }
}

impl ReplicaTime {
    /// The time of a call made at `called` that ended at `ended`, on a replica that had been active until `before`.
    pub(super) fn new(called: Instant, before: Instant, ended: Instant) -> Self {
        let began = called.max(before).min(ended);
        Self { began, idle: called.saturating_duration_since(before), busy: ended.saturating_duration_since(began) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_call_that_waited_for_another_counts_from_the_end_of_that() {
        let start = Instant::now();
        let replicas = Replicas::new(1, start);
        let time = |called, ended| {
            let before = replicas.is_active(start + millis(ended));
            ReplicaTime::new(start + millis(called), before, start + millis(ended))
        };
        let first = time(3, 10);
        assert_eq!(first, ReplicaTime { began: start + millis(3), idle: millis(3), busy: millis(7) });
        let second = time(8, 14);
        assert_eq!(second, ReplicaTime { began: start + millis(10), idle: Duration::ZERO, busy: millis(4) });
        let third = time(15, 16);
        assert_eq!(third, ReplicaTime { began: start + millis(15), idle: millis(1), busy: millis(1) });
    }

    #[test]
    fn of_two_replicas_each_counts_its_own_calls() {
        let start = Instant::now();
        let replicas = Replicas::new(2, start);
        // Two calls run side by side. Each has a token every ten milliseconds, five milliseconds apart.
        let run = |called: u64, ended: u64| {
            let mut before = None;
            for now in (called + 10..=ended).step_by(10) {
                let seen = replicas.is_active(start + millis(now));
                before.get_or_insert(seen);
            }
            ReplicaTime::new(start + millis(called), before.unwrap(), start + millis(ended))
        };
        thread::scope(|scope| {
            assert_eq!(run(0, 100).busy, millis(100));
            let other = scope.spawn(|| (run(5, 105), run(115, 135)));
            let (first, second) = other.join().unwrap();
            assert_eq!((first.busy, first.idle), (millis(100), millis(5)));
            assert_eq!((second.busy, second.idle), (millis(20), millis(10)));
        });
        assert_eq!((run(90, 120).busy, run(130, 140).idle), (millis(20), millis(10)));
        assert_eq!(replicas.silent(start + millis(150), start + millis(160)).busy, millis(10));
    }
}
