//! Follows whether the engines make progress, for heartbeats and to end a worker whose engine is stuck.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pillion_protocol::frame::Heartbeat;

use crate::pace::Pace;

/// The shortest time that an engine may go without a step.
const SHORTEST_SILENCE: Duration = Duration::from_secs(30);
/// How many times longer than predicted a call may take before it counts as stuck.
const TOLERANCE: u32 = 10;
/// If two checks are further apart than this, the whole process stood still in between, for example after SIGSTOP.
const STANDSTILL: Duration = Duration::from_secs(3);

/// The progress of all engine threads, which they record themselves.
#[derive(Debug)]
pub struct Liveness {
    start: Instant,
    steps: AtomicU64,
    threads: Vec<Progress>,
    /// The number of calls that run at once.
    slots: usize,
    /// The threads that are in a call, in the order in which they made it. The engine begins calls in that order: as many as
    /// there are slots run, and the others wait.
    calls: Mutex<Vec<usize>>,
    /// When the threads were last checked, in milliseconds since the start.
    checked: AtomicU64,
    /// Since when the checks had no gap, in milliseconds since the start.
    awake: AtomicU64,
}

/// The progress of one engine thread. Times are milliseconds since the start.
#[derive(Debug, Default)]
struct Progress {
    last_step: AtomicU64,
    /// The longest that the call may go without a step; 0 while the thread is in no call.
    silence: AtomicU64,
    /// Whether the engine has begun the call. A call that still waits cannot be stuck.
    runs: AtomicBool,
}

impl Progress {
    fn begins(&self, now: u64) {
        self.last_step.store(now, Relaxed);
        self.runs.store(true, Relaxed);
    }

    fn waits(&self) {
        self.runs.store(false, Relaxed);
    }
}

/// An engine that made no step for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// The engine thread.
    pub thread: usize,
    /// The time without a step.
    pub silent: Duration,
}

impl Liveness {
    /// The progress of `threads` engine threads that are all idle at `now`. The engine runs `slots` calls at once.
    pub fn new(threads: usize, slots: usize, now: Instant) -> Self {
        Self {
            start: now,
            steps: AtomicU64::new(0),
            threads: (0..threads).map(|_| Progress::default()).collect(),
            slots,
            calls: Mutex::default(),
            checked: AtomicU64::new(0),
            awake: AtomicU64::new(0),
        }
    }

    /// Records that a thread makes a call. Once the engine has begun it, it may go without a step for `silence`.
    pub fn call(&self, thread: usize, now: Instant, silence: Duration) {
        if let Some(engine) = self.threads.get(thread) {
            let mut calls = self.calls();
            calls.push(thread);
            engine.silence.store(millis(silence).max(1), Relaxed);
            if calls.len() <= self.slots {
                engine.begins(self.millis(now));
            }
        }
    }

    /// Records steps of a call, which also shows that the engine has begun it.
    pub fn step(&self, thread: usize, now: Instant, steps: u64) {
        self.steps.fetch_add(steps, Relaxed);
        let Some(engine) = self.threads.get(thread) else { return };
        if engine.runs.load(Relaxed) {
            engine.last_step.store(self.millis(now), Relaxed);
            return;
        }
        // The engine began this call before one that was made earlier.
        let mut calls = self.calls();
        if let Some(place) = calls.iter().position(|other| *other == thread) {
            calls.remove(place);
            calls.insert(0, thread);
            engine.begins(self.millis(now));
            calls.iter().skip(self.slots).filter_map(|other| self.threads.get(*other)).for_each(Progress::waits);
        }
    }

    /// Records that a call has ended. The next call that waits begins.
    pub fn idle(&self, thread: usize, now: Instant) {
        let mut calls = self.calls();
        calls.retain(|other| *other != thread);
        let next = calls.iter().take(self.slots).filter_map(|next| self.threads.get(*next));
        next.filter(|next| !next.runs.load(Relaxed)).for_each(|next| next.begins(self.millis(now)));
        if let Some(engine) = self.threads.get(thread) {
            engine.waits();
            engine.silence.store(0, Relaxed);
        }
    }

    fn calls(&self) -> MutexGuard<'_, Vec<usize>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any thread is in a call.
    pub fn busy(&self) -> bool {
        self.threads.iter().any(|engine| engine.silence.load(Relaxed) > 0)
    }

    /// The heartbeat to send to the proxy.
    pub fn heartbeat(&self) -> Heartbeat {
        let silence = self.threads.iter().map(|engine| engine.silence.load(Relaxed)).max().unwrap_or(0);
        Heartbeat { steps: self.steps.load(Relaxed), silence_ms: silence.max(millis(SHORTEST_SILENCE)) }
    }

    /// The first engine that made no step for longer than it may. The caller must check every second: a longer gap means that
    /// the whole process stood still, and that time does not count.
    pub fn stuck(&self, now: Instant) -> Option<Stuck> {
        let now = self.millis(now);
        if now.saturating_sub(self.checked.swap(now, Relaxed)) > millis(STANDSTILL) {
            self.awake.store(now, Relaxed);
        }
        let awake = now.saturating_sub(self.awake.load(Relaxed));
        // With the lock held, no call begins or ends meanwhile.
        let _calls = self.calls();
        self.threads.iter().enumerate().find_map(|(thread, engine)| {
            let silence = engine.silence.load(Relaxed);
            let silent = now.saturating_sub(engine.last_step.load(Relaxed)).min(awake);
            (engine.runs.load(Relaxed) && silent > silence)
                .then_some(Stuck { thread, silent: Duration::from_millis(silent) })
        })
    }

    fn millis(&self, now: Instant) -> u64 {
        millis(now.saturating_duration_since(self.start))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The longest that a call may go without a step if it feeds `fed` tokens in bulk and then makes up to `forced` steps that may
/// have no callback: half a minute plus many times the predicted time.
pub fn allowed_silence(pace: &Pace, fed: u64, forced: u64) -> Duration {
    let step = u64::try_from(pace.step().as_nanos()).unwrap_or(u64::MAX);
    let expected = pace.feeding(fed).saturating_add(Duration::from_nanos(step.saturating_mul(forced)));
    SHORTEST_SILENCE.saturating_add(expected.saturating_mul(TOLERANCE))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks once a second and returns the last result.
    fn check(liveness: &Liveness, start: Instant, seconds: std::ops::RangeInclusive<u64>) -> Option<Stuck> {
        seconds.map(|second| liveness.stuck(start + Duration::from_secs(second))).last().flatten()
    }

    #[test]
    fn an_idle_engine_is_never_stuck() {
        let start = Instant::now();
        let liveness = Liveness::new(2, 2, start);
        assert_eq!(check(&liveness, start, 0..=9_999), None);
    }

    #[test]
    fn time_in_which_the_process_stood_still_does_not_count() {
        let start = Instant::now();
        let liveness = Liveness::new(1, 1, start);
        liveness.call(0, start, Duration::from_secs(40));
        assert_eq!(check(&liveness, start, 0..=39), None);
        assert_eq!(check(&liveness, start, 500..=540), None);
        assert!(check(&liveness, start, 541..=541).is_some());
    }

    #[test]
    fn a_busy_engine_is_stuck_after_its_allowed_silence() {
        let start = Instant::now();
        let liveness = Liveness::new(2, 2, start);
        liveness.call(1, start, Duration::from_secs(40));
        assert_eq!(check(&liveness, start, 0..=40), None);
        liveness.step(1, start + Duration::from_secs(40), 1);
        assert_eq!(check(&liveness, start, 41..=80), None);
        let stuck = Stuck { thread: 1, silent: Duration::from_secs(41) };
        assert_eq!(check(&liveness, start, 81..=81), Some(stuck));
        assert_eq!(liveness.heartbeat(), Heartbeat { steps: 1, silence_ms: 40_000 });
        liveness.idle(1, start + Duration::from_secs(81));
        assert_eq!(check(&liveness, start, 82..=999), None);
        assert_eq!(liveness.heartbeat(), Heartbeat { steps: 1, silence_ms: 30_000 });
    }

    #[test]
    fn a_call_that_waits_for_another_is_not_stuck() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let liveness = Liveness::new(2, 1, start);
        // A long prompt whose client is gone; then a short one, from a proxy that has reconnected.
        liveness.call(0, start, Duration::from_secs(100));
        liveness.call(1, at(10), Duration::from_secs(30));
        assert_eq!(check(&liveness, start, 0..=90), None);
        liveness.idle(0, at(90));
        assert_eq!(check(&liveness, start, 91..=120), None);
        assert!(liveness.busy());
        assert_eq!(check(&liveness, start, 121..=121).map(|stuck| stuck.thread), Some(1));
        liveness.idle(1, at(121));
        assert_eq!(check(&liveness, start, 122..=999), None);
    }

    #[test]
    fn a_call_that_is_begun_out_of_turn_makes_the_other_wait() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let liveness = Liveness::new(2, 1, start);
        liveness.call(0, start, Duration::from_secs(30));
        liveness.call(1, start, Duration::from_secs(30));
        (1..100).for_each(|second| {
            liveness.step(1, at(second), 1);
            assert_eq!(check(&liveness, start, second..=second), None);
        });
        liveness.idle(1, at(100));
        assert_eq!(check(&liveness, start, 100..=130), None);
        assert_eq!(check(&liveness, start, 131..=131).map(|stuck| stuck.thread), Some(0));
    }

    #[test]
    fn long_prompts_may_take_longer() {
        let pace = Pace::default();
        assert_eq!(allowed_silence(&pace, 1_000_000, 1000), SHORTEST_SILENCE);
        pace.called(crate::pace::CallTime {
            first: Duration::from_secs(2),
            rest: Duration::from_secs(1),
            steps: 1,
            fed: 1000,
            member_steps: 2,
        });
        assert_eq!(allowed_silence(&pace, 2000, 5), SHORTEST_SILENCE + Duration::from_secs(10 * (2 + 5)));
    }
}
