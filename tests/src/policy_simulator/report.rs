//! The results of a simulated load.

use std::fmt;
use std::time::Duration;

use super::Request;

/// The figures of one simulated load. A latency is the time from when a request is sent until its answer has come.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The number of requests answered a second.
    pub rate: f64,
    /// The number of tokens produced a second.
    pub tokens: f64,
    /// The mean latency.
    pub mean: Duration,
    /// The median latency.
    pub p50: Duration,
    /// The 99th percentile of the latency.
    pub p99: Duration,
    /// The median latency of each kind of requests.
    pub kinds: Vec<Duration>,
    /// The mean number of members of a batch.
    pub batch: f64,
    /// The share of the time in which the engines were idle.
    pub idle: f64,
    /// The longest time that the policy held a batch back.
    pub longest_hold: Duration,
    /// The longest time that a request of each kind waited in the queue. If a request was interrupted, its time starts
    /// again.
    pub longest_waits: Vec<Duration>,
    /// For each kind, the longest time that a request had waited when it was the oldest of all and younger ones left
    /// before it.
    pub longest_passings: Vec<Duration>,
    /// How often a member was interrupted in favour of others.
    pub preempted: usize,
}

/// An answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) latency: Duration,
    /// The place of the request's kind among the kinds.
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
