//! What a simulated load came to.

use std::fmt;
use std::time::Duration;

use super::Request;

/// Figures of one run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Texts answered a second.
    pub rate: f64,
    /// Tokens produced a second.
    pub tokens: f64,
    /// From a request's sending to its answer: the mean.
    pub mean: Duration,
    /// The same: half of them took no longer.
    pub p50: Duration,
    /// The same of 99 in a hundred.
    pub p99: Duration,
    /// Half of the answers of each kind of requests took no longer.
    pub kinds: Vec<Duration>,
    /// Mean members of a batch.
    pub batch: f64,
    /// The engines' idle share.
    pub idle: f64,
    /// The longest that the policy held a batch back.
    pub longest_hold: Duration,
    /// The longest that a request of each kind waited for its turn, counted anew where it gave way.
    pub longest_waits: Vec<Duration>,
    /// The longest that a request of each kind had waited while younger ones went before it and it was the oldest of all.
    pub longest_passings: Vec<Duration>,
    /// Members that gave way to others.
    pub preempted: usize,
}

/// An answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) latency: Duration,
    /// Of which kind the request was.
    pub(super) kind: usize,
}

impl Report {
    #[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    pub(super) fn new(answers: &[Answer], requests: &[Request], batches: usize, span: Duration) -> Self {
        let sorted = |kind: Option<usize>| {
            let of_kind = answers.iter().filter(|answer| kind.is_none_or(|kind| kind == answer.kind));
            let mut latencies: Vec<Duration> = of_kind.map(|answer| answer.latency).collect();
            latencies.sort_unstable();
            latencies
        };
        let at = |latencies: &[Duration], share: usize| {
            let place = (latencies.len() * share / 100).min(latencies.len().saturating_sub(1));
            latencies.get(place).copied().unwrap_or_default()
        };
        let all = sorted(None);
        let tokens: u64 = answers.iter().map(|answer| u64::from(requests[answer.kind].answer)).sum();
        Self {
            rate: all.len() as f64 / span.as_secs_f64(),
            tokens: tokens as f64 / span.as_secs_f64(),
            mean: all.iter().sum::<Duration>() / u32::try_from(all.len().max(1)).unwrap_or(u32::MAX),
            p50: at(&all, 50),
            p99: at(&all, 99),
            kinds: (0..requests.len()).map(|kind| at(&sorted(Some(kind)), 50)).collect(),
            batch: all.len() as f64 / batches.max(1) as f64,
            ..Self::default()
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
        )?;
        if self.kinds.len() > 1 {
            let kinds: Vec<String> = self.kinds.iter().map(|time| format!("{:.2}", millis(*time))).collect();
            write!(f, "  {:.0} tokens/s  p50 by kind {} ms", self.tokens, kinds.join(", "))?;
            let waits: Vec<String> = self.longest_waits.iter().map(|time| format!("{:.1}", millis(*time))).collect();
            write!(f, "  longest waits {} ms  gave way {}", waits.join(", "), self.preempted)?;
        }
        Ok(())
    }
}
