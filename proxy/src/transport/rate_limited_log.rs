//! Limits how often a repeated event is logged, and counts the events in between. Plain data; the instant is passed in.

use std::time::Duration;

use tokio::time::Instant;

/// The shortest time between two log lines.
const INTERVAL: Duration = Duration::from_secs(10);

/// The limiter for one kind of event.
#[derive(Debug, Default)]
pub(super) struct RateLimitedLog {
    unlogged: u64,
    logged_at: Option<Instant>,
}

impl RateLimitedLog {
    /// Counts one event. Returns how many there were since the last log line, if it is time for another.
    pub(super) fn count(&mut self, now: Instant) -> Option<u64> {
        self.unlogged += 1;
        let is_due = self.logged_at.is_none_or(|at| now.saturating_duration_since(at) >= INTERVAL);
        is_due.then(|| {
            self.logged_at = Some(now);
            std::mem::take(&mut self.unlogged)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_logged_at_most_once_an_interval_and_all_are_counted() {
        let start = Instant::now();
        let mut log = RateLimitedLog::default();
        let logged: Vec<_> = (0..250).map(|tenth| log.count(start + INTERVAL / 100 * tenth)).collect();
        assert_eq!(logged.iter().flatten().collect::<Vec<_>>(), [&1, &100, &100]);
        assert_eq!((logged[0], logged[100], logged[200]), (Some(1), Some(100), Some(100)));
    }
}
