//! What a simulated load came to.

use std::fmt;
use std::time::Duration;

/// Figures of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Texts answered a second.
    pub rate: f64,
    /// From a request's sending to its answer: half of them took no longer.
    pub p50: Duration,
    /// The same of 99 in a hundred.
    pub p99: Duration,
    /// Mean members of a batch.
    pub batch: f64,
    /// The engines' idle share.
    pub idle: f64,
    /// The longest that the policy held a batch back.
    pub longest_hold: Duration,
}

impl Report {
    #[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    pub(super) fn new(
        mut latencies: Vec<Duration>,
        batches: usize,
        span: Duration,
        idle: f64,
        longest_hold: Duration,
    ) -> Self {
        latencies.sort_unstable();
        let at = |share: usize| latencies.get((latencies.len() * share / 100).min(latencies.len().saturating_sub(1)));
        Self {
            rate: latencies.len() as f64 / span.as_secs_f64(),
            p50: at(50).copied().unwrap_or_default(),
            p99: at(99).copied().unwrap_or_default(),
            batch: latencies.len() as f64 / batches.max(1) as f64,
            idle,
            longest_hold,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        write!(
            f,
            "{:8.1}/s  p50 {:8.2} ms  p99 {:8.2} ms  batch {:5.1}  idle {:4.1} %  longest hold {:6.2} ms",
            self.rate,
            millis(self.p50),
            millis(self.p99),
            self.batch,
            self.idle * 100.0,
            millis(self.longest_hold)
        )
    }
}
