//! Whether a worker's engine gets on, by what its heartbeats say of it. Plain data; the instant is passed in.
//!
//! A heartbeat alone proves nothing: the thread that sends it may live while the engine is stuck. So it carries how many
//! steps were made, and for how long there may be none. A worker that is stopped sends none at all, and the same watch
//! finds it.

use std::time::Duration;

use pillion_protocol::frame::Heartbeat;
use tokio::time::Instant;

/// What a worker that has said nothing yet may take.
const FIRST: Duration = Duration::from_secs(60);
/// No promise of silence is believed beyond this.
const LONGEST: Duration = Duration::from_secs(600);
/// Heartbeats come once a second: what they say may be so old, and a little more.
const LATE: Duration = Duration::from_secs(2);
/// Between two looks that are further apart this process itself stood still, as when it was stopped and goes on: what the
/// worker said meanwhile has not been read.
const ABSENT: Duration = Duration::from_secs(1);

/// A worker's progress.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    steps: u64,
    /// When it last got on.
    since: Instant,
    /// For how long it may make no step.
    silence: Duration,
    /// When it was last looked at.
    looked: Instant,
}

impl Progress {
    /// Of a worker that has just connected.
    pub fn new(now: Instant) -> Self {
        Self { steps: 0, since: now, silence: FIRST, looked: now }
    }

    /// Its heartbeat.
    pub fn heard(&mut self, heartbeat: &Heartbeat, now: Instant) {
        if heartbeat.steps != self.steps {
            (self.steps, self.since) = (heartbeat.steps, now);
        }
        self.silence = Duration::from_millis(heartbeat.silence_ms).min(LONGEST);
    }

    /// Members got tokens or ended.
    pub fn got_on(&mut self, now: Instant) {
        self.since = now;
    }

    /// It is looked at from now on, often: it has work after it had none.
    pub fn begins(&mut self, now: Instant) {
        (self.since, self.looked) = (now, now);
    }

    /// For how long it has been silent, where that is longer than it may while it has work. Time in which nobody listened is
    /// none of its silence.
    pub fn stuck(&mut self, now: Instant) -> Option<Duration> {
        let absent = now.saturating_duration_since(std::mem::replace(&mut self.looked, now));
        if absent > ABSENT {
            self.since = (self.since + absent).min(now);
        }
        let silent = now.saturating_duration_since(self.since);
        (silent > self.silence + LATE).then_some(silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Looks once a second; what is seen last.
    fn look(progress: &mut Progress, start: Instant, seconds: std::ops::RangeInclusive<u32>) -> Option<Duration> {
        seconds.map(|second| progress.stuck(start + second * SECOND)).last().flatten()
    }

    #[test]
    fn heartbeats_without_steps_are_no_progress() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        for second in 0..=7 {
            progress.heard(&Heartbeat { steps: 9, silence_ms: 5000 }, start + SECOND * second);
        }
        assert_eq!(look(&mut progress, start, 0..=7), None);
        assert_eq!(look(&mut progress, start, 8..=8), Some(8 * SECOND));
        progress.heard(&Heartbeat { steps: 10, silence_ms: 5000 }, start + 8 * SECOND);
        assert_eq!(look(&mut progress, start, 9..=15), None);
        progress.got_on(start + 15 * SECOND);
        assert_eq!(look(&mut progress, start, 16..=22), None);
        assert!(look(&mut progress, start, 23..=23).is_some());
    }

    #[test]
    fn nobody_is_stuck_for_what_was_not_heard_while_this_process_stood_still() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        progress.heard(&Heartbeat { steps: 1, silence_ms: 1000 }, start);
        assert_eq!(look(&mut progress, start, 0..=1), None);
        assert_eq!(look(&mut progress, start, 90..=92), None);
        assert_eq!(look(&mut progress, start, 93..=93), Some(4 * SECOND));
        progress.begins(start + 200 * SECOND);
        assert_eq!(look(&mut progress, start, 201..=203), None);
        assert_eq!(look(&mut progress, start, 204..=204), Some(4 * SECOND));
    }

    #[test]
    fn whoever_never_says_anything_is_found_and_no_promise_is_believed_for_ever() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        assert_eq!(look(&mut progress, start, 0..=62), None);
        assert!(look(&mut progress, start, 63..=63).is_some());
        progress.begins(start);
        progress.heard(&Heartbeat { steps: 0, silence_ms: u64::MAX }, start);
        assert_eq!(look(&mut progress, start, 0..=602), None);
        assert!(look(&mut progress, start, 603..=603).is_some());
    }
}
