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

/// A worker's progress.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    steps: u64,
    /// When it last got on.
    since: Instant,
    /// For how long it may make no step.
    silence: Duration,
}

impl Progress {
    /// Of a worker that has just connected.
    pub fn new(now: Instant) -> Self {
        Self { steps: 0, since: now, silence: FIRST }
    }

    /// Its heartbeat.
    pub fn heard(&mut self, heartbeat: &Heartbeat, now: Instant) {
        if heartbeat.steps != self.steps {
            (self.steps, self.since) = (heartbeat.steps, now);
        }
        self.silence = Duration::from_millis(heartbeat.silence_ms).min(LONGEST);
    }

    /// Members got tokens or ended, or it has work after it had none.
    pub fn got_on(&mut self, now: Instant) {
        self.since = now;
    }

    /// For how long it has been silent, where that is longer than it may while it has work.
    pub fn stuck(&self, now: Instant) -> Option<Duration> {
        let silent = now.saturating_duration_since(self.since);
        (silent > self.silence + LATE).then_some(silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn heartbeats_without_steps_are_no_progress() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        for second in 0..=7 {
            progress.heard(&Heartbeat { steps: 9, silence_ms: 5000 }, start + SECOND * second);
        }
        assert_eq!(progress.stuck(start + 7 * SECOND), None);
        assert_eq!(progress.stuck(start + 8 * SECOND), Some(8 * SECOND));
        progress.heard(&Heartbeat { steps: 10, silence_ms: 5000 }, start + 8 * SECOND);
        assert_eq!(progress.stuck(start + 15 * SECOND), None);
        progress.got_on(start + 15 * SECOND);
        assert_eq!(progress.stuck(start + 22 * SECOND), None);
        assert!(progress.stuck(start + 23 * SECOND).is_some());
    }

    #[test]
    fn whoever_never_says_anything_is_found_and_no_promise_is_believed_for_ever() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        assert!(progress.stuck(start + FIRST + LATE).is_none());
        assert!(progress.stuck(start + FIRST + LATE + SECOND).is_some());
        progress.heard(&Heartbeat { steps: 0, silence_ms: u64::MAX }, start);
        assert!(progress.stuck(start + LONGEST + LATE).is_none());
        assert!(progress.stuck(start + LONGEST + LATE + SECOND).is_some());
    }
}
