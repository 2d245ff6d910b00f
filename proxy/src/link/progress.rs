//! Whether a worker's engine makes progress, as its heartbeats show. Plain data; the instant is passed in.
//!
//! A heartbeat alone proves nothing: the thread that sends it may live while the engine is stuck. So a heartbeat
//! carries the number of steps made so far, and how long the engine may take for the next one. A process that is
//! stopped sends no heartbeats and is found in the same way.

use std::time::Duration;

use pillion_protocol::frame::Heartbeat;
use tokio::time::Instant;

/// How long a worker may make no step before its first heartbeat.
const FIRST_SILENCE: Duration = Duration::from_secs(60);
/// The longest time without a step that a heartbeat can allow.
const LONGEST_SILENCE: Duration = Duration::from_secs(600);
/// How old the latest heartbeat may be: heartbeats come once a second, and a second is added.
const HEARTBEAT_AGE: Duration = Duration::from_secs(2);
/// If two checks are further apart than this, the proxy's process stood still in between, for example after SIGSTOP.
/// Then the worker's frames of that time have not been read yet.
const STANDSTILL: Duration = Duration::from_secs(1);

/// A worker's progress.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    steps: u64,
    /// When it last made progress.
    since: Instant,
    /// How long it may make no step.
    silence: Duration,
    /// When it was last checked.
    checked: Instant,
}

impl Progress {
    /// The progress of a worker that has connected at `now`.
    pub fn new(now: Instant) -> Self {
        Self { steps: 0, since: now, silence: FIRST_SILENCE, checked: now }
    }

    /// Records a heartbeat.
    pub fn on_heartbeat(&mut self, heartbeat: &Heartbeat, now: Instant) {
        if heartbeat.steps != self.steps {
            (self.steps, self.since) = (heartbeat.steps, now);
        }
        self.silence = Duration::from_millis(heartbeat.silence_ms).min(LONGEST_SILENCE);
    }

    /// Records that members got tokens or ended.
    pub fn on_output(&mut self, now: Instant) {
        self.since = now;
    }

    /// Records that the worker has work after it had none. From now on it is checked often.
    pub fn starts_work(&mut self, now: Instant) {
        (self.since, self.checked) = (now, now);
    }

    /// How long a worker that has work has made no progress, if that is longer than it may. Time in which the proxy's
    /// process stood still does not count.
    pub fn stuck(&mut self, now: Instant) -> Option<Duration> {
        let unchecked = now.saturating_duration_since(std::mem::replace(&mut self.checked, now));
        if unchecked > STANDSTILL {
            self.since = (self.since + unchecked).min(now);
        }
        let silent = now.saturating_duration_since(self.since);
        (silent > self.silence + HEARTBEAT_AGE).then_some(silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Checks once a second, and returns the result of the last check.
    fn check(progress: &mut Progress, start: Instant, seconds: std::ops::RangeInclusive<u32>) -> Option<Duration> {
        seconds.map(|second| progress.stuck(start + second * SECOND)).last().flatten()
    }

    #[test]
    fn heartbeats_without_steps_are_no_progress() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        for second in 0..=7 {
            progress.on_heartbeat(&Heartbeat { steps: 9, silence_ms: 5000 }, start + SECOND * second);
        }
        assert_eq!(check(&mut progress, start, 0..=7), None);
        assert_eq!(check(&mut progress, start, 8..=8), Some(8 * SECOND));
        progress.on_heartbeat(&Heartbeat { steps: 10, silence_ms: 5000 }, start + 8 * SECOND);
        assert_eq!(check(&mut progress, start, 9..=15), None);
        progress.on_output(start + 15 * SECOND);
        assert_eq!(check(&mut progress, start, 16..=22), None);
        assert!(check(&mut progress, start, 23..=23).is_some());
    }

    #[test]
    fn time_in_which_the_proxys_process_stood_still_does_not_count() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        progress.on_heartbeat(&Heartbeat { steps: 1, silence_ms: 1000 }, start);
        assert_eq!(check(&mut progress, start, 0..=1), None);
        assert_eq!(check(&mut progress, start, 90..=92), None);
        assert_eq!(check(&mut progress, start, 93..=93), Some(4 * SECOND));
        progress.starts_work(start + 200 * SECOND);
        assert_eq!(check(&mut progress, start, 201..=203), None);
        assert_eq!(check(&mut progress, start, 204..=204), Some(4 * SECOND));
    }

    #[test]
    fn a_worker_without_heartbeats_is_found_and_the_allowed_silence_is_bounded() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        assert_eq!(check(&mut progress, start, 0..=62), None);
        assert!(check(&mut progress, start, 63..=63).is_some());
        progress.starts_work(start);
        progress.on_heartbeat(&Heartbeat { steps: 0, silence_ms: u64::MAX }, start);
        assert_eq!(check(&mut progress, start, 0..=602), None);
        assert!(check(&mut progress, start, 603..=603).is_some());
    }
}
