//! Whether the engines make progress: what heartbeats say, and when a stuck worker gives itself up.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pillion_protocol::frame::Heartbeat;

use crate::pace::Pace;

/// The least silence that is granted to an engine.
const SHORTEST_SILENCE: Duration = Duration::from_secs(30);
/// How much slower than measured a call may be before it counts as stuck.
const GENEROSITY: u32 = 10;
/// Between two looks that are further apart the whole process stood still, as when it was stopped and goes on.
const ABSENT: Duration = Duration::from_secs(3);

/// The progress of all engines, written by their threads.
#[derive(Debug)]
pub struct Liveness {
    start: Instant,
    steps: AtomicU64,
    engines: Vec<Progress>,
    /// Calls that run at once.
    slots: usize,
    /// The callers that are in a call, in the order in which they made it. The engine begins calls in that order: the first
    /// run, as many as there are slots, and the others wait for them.
    calls: Mutex<Vec<usize>>,
    /// When they were last looked at, and since when that has been done without a gap. Milliseconds since the start.
    looked: AtomicU64,
    awake: AtomicU64,
}

/// One engine's. Times are milliseconds since the start.
#[derive(Debug, Default)]
struct Progress {
    last_step: AtomicU64,
    /// How long it may go without a step; 0 while it is idle.
    silence: AtomicU64,
    /// Whether the engine has begun its call: until then it owes nothing.
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

/// An engine that has been silent for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// Which.
    pub caller: usize,
    /// For how long.
    pub silent: Duration,
}

impl Liveness {
    /// So many threads that call engines, all idle, at `now`; so many calls run at once.
    pub fn new(callers: usize, slots: usize, now: Instant) -> Self {
        Self {
            start: now,
            steps: AtomicU64::new(0),
            engines: (0..callers).map(|_| Progress::default()).collect(),
            slots,
            calls: Mutex::default(),
            looked: AtomicU64::new(0),
            awake: AtomicU64::new(0),
        }
    }

    /// A caller makes a call, which may be silent for so long at a time once the engine has begun it.
    pub fn call(&self, caller: usize, now: Instant, silence: Duration) {
        if let Some(engine) = self.engines.get(caller) {
            let mut calls = self.calls();
            calls.push(caller);
            engine.silence.store(millis(silence).max(1), Relaxed);
            if calls.len() <= self.slots {
                engine.begins(self.millis(now));
            }
        }
    }

    /// A call made so many steps, so that it has begun.
    pub fn step(&self, caller: usize, now: Instant, steps: u64) {
        self.steps.fetch_add(steps, Relaxed);
        let Some(engine) = self.engines.get(caller) else { return };
        if engine.runs.load(Relaxed) {
            engine.last_step.store(self.millis(now), Relaxed);
            return;
        }
        // It has come into the engine before one that was called earlier.
        let mut calls = self.calls();
        if let Some(place) = calls.iter().position(|other| *other == caller) {
            calls.remove(place);
            calls.insert(0, caller);
            engine.begins(self.millis(now));
            calls.iter().skip(self.slots).filter_map(|other| self.engines.get(*other)).for_each(Progress::waits);
        }
    }

    /// A call has ended. The next that waits begins.
    pub fn idle(&self, caller: usize, now: Instant) {
        let mut calls = self.calls();
        calls.retain(|other| *other != caller);
        let next = calls.iter().take(self.slots).filter_map(|next| self.engines.get(*next));
        next.filter(|next| !next.runs.load(Relaxed)).for_each(|next| next.begins(self.millis(now)));
        if let Some(engine) = self.engines.get(caller) {
            engine.waits();
            engine.silence.store(0, Relaxed);
        }
    }

    fn calls(&self) -> MutexGuard<'_, Vec<usize>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an engine is in a call.
    pub fn busy(&self) -> bool {
        self.engines.iter().any(|engine| engine.silence.load(Relaxed) > 0)
    }

    /// What to tell the proxy.
    pub fn heartbeat(&self) -> Heartbeat {
        let silence = self.engines.iter().map(|engine| engine.silence.load(Relaxed)).max().unwrap_or(0);
        Heartbeat { steps: self.steps.load(Relaxed), silence_ms: silence.max(millis(SHORTEST_SILENCE)) }
    }

    /// The first engine that has been silent for longer than it may. To be asked every second: time in which the whole
    /// process stood still is no engine's silence.
    pub fn stuck(&self, now: Instant) -> Option<Stuck> {
        let now = self.millis(now);
        if now.saturating_sub(self.looked.swap(now, Relaxed)) > millis(ABSENT) {
            self.awake.store(now, Relaxed);
        }
        let awake = now.saturating_sub(self.awake.load(Relaxed));
        // So that no call begins or ends meanwhile.
        let _calls = self.calls();
        self.engines.iter().enumerate().find_map(|(caller, engine)| {
            let silence = engine.silence.load(Relaxed);
            let silent = now.saturating_sub(engine.last_step.load(Relaxed)).min(awake);
            (engine.runs.load(Relaxed) && silent > silence)
                .then_some(Stuck { caller, silent: Duration::from_millis(silent) })
        })
    }

    fn millis(&self, now: Instant) -> u64 {
        millis(now.saturating_duration_since(self.start))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// How long a call may be silent that feeds `fed` tokens in bulk and then has up to `forced` steps in which nobody may be
/// heard: half a minute, and many times what was measured.
pub fn allowed_silence(pace: &Pace, fed: u64, forced: u64) -> Duration {
    let step = u64::try_from(pace.step().as_nanos()).unwrap_or(u64::MAX);
    let expected = pace.feeding(fed).saturating_add(Duration::from_nanos(step.saturating_mul(forced)));
    SHORTEST_SILENCE.saturating_add(expected.saturating_mul(GENEROSITY))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks once a second; what is seen last.
    fn look(liveness: &Liveness, start: Instant, seconds: std::ops::RangeInclusive<u64>) -> Option<Stuck> {
        seconds.map(|second| liveness.stuck(start + Duration::from_secs(second))).last().flatten()
    }

    #[test]
    fn an_idle_engine_may_be_silent_for_ever() {
        let start = Instant::now();
        let liveness = Liveness::new(2, 2, start);
        assert_eq!(look(&liveness, start, 0..=9_999), None);
    }

    #[test]
    fn a_process_that_stood_still_gives_its_engines_their_time_again() {
        let start = Instant::now();
        let liveness = Liveness::new(1, 1, start);
        liveness.call(0, start, Duration::from_secs(40));
        assert_eq!(look(&liveness, start, 0..=39), None);
        assert_eq!(look(&liveness, start, 500..=540), None);
        assert!(look(&liveness, start, 541..=541).is_some());
    }

    #[test]
    fn a_busy_engine_is_stuck_after_the_silence_it_was_promised() {
        let start = Instant::now();
        let liveness = Liveness::new(2, 2, start);
        liveness.call(1, start, Duration::from_secs(40));
        assert_eq!(look(&liveness, start, 0..=40), None);
        liveness.step(1, start + Duration::from_secs(40), 1);
        assert_eq!(look(&liveness, start, 41..=80), None);
        let stuck = Stuck { caller: 1, silent: Duration::from_secs(41) };
        assert_eq!(look(&liveness, start, 81..=81), Some(stuck));
        assert_eq!(liveness.heartbeat(), Heartbeat { steps: 1, silence_ms: 40_000 });
        liveness.idle(1, start + Duration::from_secs(81));
        assert_eq!(look(&liveness, start, 82..=999), None);
        assert_eq!(liveness.heartbeat(), Heartbeat { steps: 1, silence_ms: 30_000 });
    }

    #[test]
    fn a_call_that_waits_for_another_owes_nothing_until_it_begins() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let liveness = Liveness::new(2, 1, start);
        // A long prompt whose client is gone; then, of a proxy that has come back, a short one.
        liveness.call(0, start, Duration::from_secs(100));
        liveness.call(1, at(10), Duration::from_secs(30));
        assert_eq!(look(&liveness, start, 0..=90), None);
        liveness.idle(0, at(90));
        assert_eq!(look(&liveness, start, 91..=120), None);
        assert!(liveness.busy());
        assert_eq!(look(&liveness, start, 121..=121).map(|stuck| stuck.caller), Some(1));
        liveness.idle(1, at(121));
        assert_eq!(look(&liveness, start, 122..=999), None);
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
            assert_eq!(look(&liveness, start, second..=second), None);
        });
        liveness.idle(1, at(100));
        assert_eq!(look(&liveness, start, 100..=130), None);
        assert_eq!(look(&liveness, start, 131..=131).map(|stuck| stuck.caller), Some(0));
    }

    #[test]
    fn long_prompts_are_granted_more() {
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
