//! What became of the requests.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Latencies are told to three digits, and those beyond an hour as an hour.
const DIGITS: u8 = 3;
const LONGEST: Duration = Duration::from_secs(3600);

/// The time that is counted: requests whose intended start lies in it.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Its first instant: the end of the warm-up.
    pub start: Instant,
    /// The first instant after it.
    pub end: Instant,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With status 200, and what was expected of the body.
    Right,
    /// With status 200, and another body.
    Wrong,
    /// With another status.
    Refused,
    /// There was no connection, or it broke.
    NoAnswer,
}

/// Counts while requests come and go.
#[derive(Debug)]
pub struct Tally {
    window: Window,
    sent: u32,
    failed: u32,
    wrong: u32,
    in_time: u32,
    // Nanoseconds.
    latencies: Histogram<u32>,
}

/// What is told at the end.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Requests with their intended start in the counted time, whether or not they had a connection before the end:
    /// the sum of `answered`, `failed` and `unfinished`.
    pub sent: u32,
    /// Those with status 200.
    pub answered: u32,
    /// Those with another status, or none because a connection failed.
    pub failed: u32,
    /// Those without an answer when the driver stopped waiting.
    pub unfinished: u32,
    /// Those of `answered` that lack the expected field.
    pub wrong: u32,
    /// The counted time.
    pub duration: Duration,
    /// Answers with status 200 that came within the counted time, a second: throughput. An answer counts when it
    /// comes, also to a request of the warm-up; one that comes after the end does not. So a server that is
    /// overloaded, and answers the rest when nobody asks any more, is not told faster than it is.
    pub rate: f64,
    /// Of `answered`, from the intended start to the end of the body; `None` where there is none.
    pub latency: Option<Latency>,
}

/// How latencies are spread, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// The mean.
    pub mean: f64,
    /// Half were not longer.
    pub p50: f64,
    /// 90 % were not longer.
    pub p90: f64,
    /// 99 % were not longer.
    pub p99: f64,
    /// 99.9 % were not longer.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl Window {
    fn has(self, instant: Instant) -> bool {
        (self.start..self.end).contains(&instant)
    }
}

impl Tally {
    /// Counts nothing yet.
    pub fn new(window: Window) -> Self {
        let longest = u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX);
        let latencies = Histogram::new_with_bounds(1, longest, DIGITS).expect("the bounds are good");
        Self { window, sent: 0, failed: 0, wrong: 0, in_time: 0, latencies }
    }

    /// A request is due.
    pub fn begin(&mut self, intended: Instant) {
        self.sent += u32::from(self.window.has(intended));
    }

    /// A request has ended.
    pub fn end(&mut self, intended: Instant, ended: Instant, outcome: Outcome) {
        let answered = matches!(outcome, Outcome::Right | Outcome::Wrong);
        self.in_time += u32::from(answered && self.window.has(ended));
        if !self.window.has(intended) {
            return;
        }
        self.wrong += u32::from(outcome == Outcome::Wrong);
        if answered {
            let latency = ended.saturating_duration_since(intended);
            self.latencies.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        } else {
            self.failed += 1;
        }
    }

    /// What there is to tell.
    pub fn report(&self) -> Report {
        let answered = u32::try_from(self.latencies.len()).unwrap_or(u32::MAX);
        let duration = self.window.end - self.window.start;
        let quantile = |share| milliseconds(self.latencies.value_at_quantile(share));
        let latency = Latency {
            mean: self.latencies.mean() / 1e6,
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: milliseconds(self.latencies.max()),
        };
        Report {
            sent: self.sent,
            answered,
            failed: self.failed,
            unfinished: self.sent - answered - self.failed,
            wrong: self.wrong,
            duration,
            rate: f64::from(self.in_time) / duration.as_secs_f64(),
            latency: (answered > 0).then_some(latency),
        }
    }
}

impl Report {
    /// As JSON; times in milliseconds to the microsecond, null where nothing was answered.
    pub fn to_json(&self) -> Value {
        let of = |get: fn(&Latency) -> f64| self.latency.as_ref().map(|latency| rounded(get(latency)));
        json!({
            "sent": self.sent,
            "answered": self.answered,
            "failed": self.failed,
            "unfinished": self.unfinished,
            "wrong": self.wrong,
            "duration_s": self.duration.as_secs_f64(),
            "rate": rounded(self.rate),
            "latency_ms": {
                "mean": of(|latency| latency.mean),
                "p50": of(|latency| latency.p50),
                "p90": of(|latency| latency.p90),
                "p99": of(|latency| latency.p99),
                "p999": of(|latency| latency.p999),
                "max": of(|latency| latency.max),
            },
        })
    }
}

fn milliseconds(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64() * 1e3
}

fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn tally() -> (Tally, Instant) {
        let start = Instant::now();
        (Tally::new(Window { start: start + SECOND, end: start + 3 * SECOND }), start)
    }

    #[test]
    fn the_warm_up_is_not_counted_and_what_is_open_is_unfinished() {
        let (mut tally, start) = tally();
        for half_seconds in 0..6 {
            let intended = start + SECOND / 2 * half_seconds;
            tally.begin(intended);
            if half_seconds < 5 {
                tally.end(intended, intended + SECOND / 4, Outcome::Right);
            }
        }
        let report = tally.report();
        assert_eq!((report.sent, report.answered, report.failed, report.unfinished), (4, 3, 0, 1));
        assert_eq!(report.duration, 2 * SECOND);
        let latency = report.latency.unwrap();
        assert!((latency.mean - 250.0).abs() < 0.5 && (latency.max - 250.0).abs() < 0.5, "{latency:?}");
    }

    #[test]
    fn a_failure_has_no_latency_and_a_wrong_answer_has() {
        let (mut tally, start) = tally();
        let intended = start + SECOND;
        for outcome in [Outcome::Refused, Outcome::NoAnswer] {
            tally.begin(intended);
            tally.end(intended, intended, outcome);
        }
        assert_eq!(tally.report().latency, None);
        assert!(tally.report().to_json()["latency_ms"]["p50"].is_null());
        tally.begin(intended);
        tally.end(intended, intended + SECOND, Outcome::Wrong);
        let report = tally.report();
        assert_eq!((report.sent, report.answered, report.failed, report.wrong), (3, 1, 2, 1));
        assert!(report.latency.is_some());
    }

    #[test]
    fn the_rate_is_of_answers_that_come_within_the_counted_time() {
        let (mut tally, start) = tally();
        let mut once = |intended, ended, outcome| {
            tally.begin(start + intended);
            tally.end(start + intended, start + ended, outcome);
        };
        once(SECOND / 2, SECOND * 3 / 2, Outcome::Right);
        once(SECOND, 2 * SECOND, Outcome::Right);
        once(2 * SECOND, 2 * SECOND, Outcome::Refused);
        once(2 * SECOND, 3 * SECOND, Outcome::Right);
        assert!((tally.report().rate - 1.0).abs() < 1e-9, "{}", tally.report().rate);
        assert_eq!(tally.report().answered, 2);
    }
}
