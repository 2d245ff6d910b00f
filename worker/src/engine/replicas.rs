//! When each replica of the engine last did something, so that a call's time counts from its real beginning: a call may have
//! waited inside the engine for those before it.
//!
//! Calls go into one queue, and whichever replica is free takes the next, so a call does not know whose it is until its first
//! token comes: on the replica's own thread. Where there is one replica, every thread speaks for it.

use std::sync::{Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// The replicas of an engine.
#[derive(Debug)]
pub(super) struct Replicas {
    is_one: bool,
    started: Instant,
    /// A few at most, found by looking at all of them.
    active: Mutex<Vec<(Option<ThreadId>, Instant)>>,
}

/// A call's time on its replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReplicaTime {
    /// When the replica began it: at once, or as soon as it was free.
    pub(super) began: Instant,
    /// For how long the replica was idle before.
    pub(super) idle: Duration,
    /// How long it took.
    pub(super) busy: Duration,
}

impl Replicas {
    /// So many replicas that have done nothing before `now`.
    pub(super) fn new(replicas: usize, now: Instant) -> Self {
        Self { is_one: replicas == 1, started: now, active: Mutex::default() }
    }

    /// The replica whose thread this is does something; when it did something before that.
    pub(super) fn is_active(&self, now: Instant) -> Instant {
        self.replace((!self.is_one).then(|| thread::current().id()), now)
    }

    /// The time of a call, made at `called`, that ended without a word from a replica.
    pub(super) fn silent(&self, called: Instant, now: Instant) -> ReplicaTime {
        // Of several it could be any.
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
    /// A call that was made at `called` and ended at `ended`; its replica had been active until `before`.
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
    fn a_call_that_waited_for_the_one_before_counts_from_its_end() {
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
        // Tokens of two calls that run side by side, every ten milliseconds, the one's five after the other's.
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
