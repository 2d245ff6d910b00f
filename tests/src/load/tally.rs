//! Counts how requests end, and measures latencies.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// The number of significant digits of latencies. A latency of more than [`LONGEST`] is reported as [`LONGEST`].
const DIGITS: u8 = 3;
const LONGEST: Duration = Duration::from_secs(3600);

/// The counted time. A request counts if its intended start lies in this time.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// The first instant of the counted time, which is the end of the warm-up.
    pub start: Instant,
    /// The first instant after the counted time.
    pub end: Instant,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The status was 200, and the body had the expected field.
    Right,
    /// The status was 200, but the body did not have the expected field.
    Wrong,
    /// The status was another one.
    Refused {
        /// The time after which to ask again, if the server gave it in seconds.
        again_in: Option<Duration>,
    },
    /// The request got no connection, or its connection broke.
    NoAnswer,
    /// The client went away.
    Abandoned,
}

/// The counts so far.
#[derive(Debug)]
pub struct Tally {
    window: Window,
    sent: u32,
    failed: u32,
    abandoned: u32,
    wrong: u32,
    in_time: u32,
    asked_again: u32,
    served_then: u32,
    // The values are in nanoseconds.
    latencies: Histogram<u32>,
    kinds: Vec<(String, Histogram<u32>)>,
    first: Histogram<u32>,
    gaps: Histogram<u32>,
}

/// The figures at the end of a load.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The number of requests whose intended start lies in the counted time, even if they never got a connection. It is
    /// the sum of `answered`, `failed`, `abandoned` and `unfinished`.
    pub sent: u32,
    /// The number of requests that were answered with status 200.
    pub answered: u32,
    /// The number of requests that got another status, or none because a connection failed.
    pub failed: u32,
    /// The number of requests whose client went away before the answer came.
    pub abandoned: u32,
    /// The number of requests that had no answer when the driver stopped waiting.
    pub unfinished: u32,
    /// How many of `answered` lack the expected field.
    pub wrong: u32,
    /// The length of the counted time.
    pub duration: Duration,
    /// The throughput: answers with status 200 a second. An answer counts if it comes within the counted time, even if
    /// its request was sent in the warm-up. An answer that comes after the end does not count. Otherwise an overloaded
    /// server, which answers many requests after the end, would seem faster than it is.
    pub rate: f64,
    /// The latencies of `answered`, from the intended start to the end of the body. `None` if nothing was answered.
    pub latency: Option<Latency>,
    /// How many of `failed` were told when to ask again, and asked again.
    pub asked_again: u32,
    /// How many of `asked_again` were then answered with status 200.
    pub served_then: u32,
    /// For each kind of requests: the kind's name, how many of `answered` were of this kind, and their latencies.
    pub kinds: Vec<(String, u32, Option<Latency>)>,
    /// For streamed answers, the times from the intended start to the first piece. `None` if no answer was streamed.
    pub first: Option<Latency>,
    /// For streamed answers, the times from each piece to the next.
    pub gap: Option<Latency>,
}

/// The distribution of latencies, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// The mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The 99.9th percentile.
    pub p999: f64,
    /// The longest latency.
    pub max: f64,
}

impl Window {
    fn has(self, instant: Instant) -> bool {
        (self.start..self.end).contains(&instant)
    }
}

impl Tally {
    /// Empty counts for requests of kinds with these names.
    pub fn new<'a>(window: Window, names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut kinds: Vec<(String, Histogram<u32>)> = Vec::new();
        for name in names {
            if kinds.iter().all(|(known, _)| known != name) {
                kinds.push((name.to_owned(), latencies()));
            }
        }
        let latencies = latencies();
        Self {
            window,
            sent: 0,
            failed: 0,
            abandoned: 0,
            wrong: 0,
            in_time: 0,
            asked_again: 0,
            served_then: 0,
            latencies,
            kinds,
            first: self::latencies(),
            gaps: self::latencies(),
        }
    }

    /// Counts a request that is due.
    pub fn begin(&mut self, intended: Instant) {
        self.sent += u32::from(self.window.has(intended));
    }

    /// Counts the end of a request, whose kind has this name.
    pub fn end(&mut self, intended: Instant, ended: Instant, outcome: Outcome, name: &str) {
        let answered = matches!(outcome, Outcome::Right | Outcome::Wrong);
        self.in_time += u32::from(answered && self.window.has(ended));
        if !self.window.has(intended) {
            return;
        }
        self.wrong += u32::from(outcome == Outcome::Wrong);
        if answered {
            let latency = ended.saturating_duration_since(intended);
            let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
            self.latencies.saturating_record(nanos);
            if let Some((_, latencies)) = self.kinds.iter_mut().find(|(known, _)| known == name) {
                latencies.saturating_record(nanos);
            }
        } else if outcome == Outcome::Abandoned {
            self.abandoned += 1;
        } else {
            self.failed += 1;
        }
    }

    /// Counts a streamed answer whose pieces came at these times.
    pub fn streamed(&mut self, intended: Instant, pieces: &[Instant]) {
        if !self.window.has(intended) {
            return;
        }
        let nanos = |from: Instant, to: Instant| u64::try_from((to - from).as_nanos()).unwrap_or(u64::MAX);
        if let Some(&first) = pieces.first() {
            self.first.saturating_record(nanos(intended, first));
        }
        for pair in pieces.windows(2) {
            self.gaps.saturating_record(nanos(pair[0], pair[1]));
        }
    }

    /// Counts a client that was refused and asked again when it was told to.
    pub fn again(&mut self, intended: Instant, outcome: Outcome) {
        if self.window.has(intended) {
            self.asked_again += 1;
            self.served_then += u32::from(matches!(outcome, Outcome::Right | Outcome::Wrong));
        }
    }

    /// The report of the counts so far.
    pub fn report(&self) -> Report {
        let answered = u32::try_from(self.latencies.len()).unwrap_or(u32::MAX);
        let duration = self.window.end - self.window.start;
        let kind = |(name, latencies): &(String, Histogram<u32>)| {
            (name.clone(), u32::try_from(latencies.len()).unwrap_or(u32::MAX), Latency::of(latencies))
        };
        Report {
            sent: self.sent,
            answered,
            failed: self.failed,
            abandoned: self.abandoned,
            unfinished: self.sent - answered - self.failed - self.abandoned,
            wrong: self.wrong,
            duration,
            rate: f64::from(self.in_time) / duration.as_secs_f64(),
            latency: Latency::of(&self.latencies),
            asked_again: self.asked_again,
            served_then: self.served_then,
            kinds: self.kinds.iter().map(kind).collect(),
            first: Latency::of(&self.first),
            gap: Latency::of(&self.gaps),
        }
    }
}

impl Latency {
    fn of(latencies: &Histogram<u32>) -> Option<Self> {
        let quantile = |share| milliseconds(latencies.value_at_quantile(share));
        (!latencies.is_empty()).then(|| Self {
            mean: latencies.mean() / 1e6,
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: milliseconds(latencies.max()),
        })
    }

    fn to_json(latency: Option<&Self>) -> Value {
        let of = |get: fn(&Latency) -> f64| latency.map(|latency| rounded(get(latency)));
        json!({
            "mean": of(|latency| latency.mean),
            "p50": of(|latency| latency.p50),
            "p90": of(|latency| latency.p90),
            "p99": of(|latency| latency.p99),
            "p999": of(|latency| latency.p999),
            "max": of(|latency| latency.max),
        })
    }
}

impl Report {
    /// The report as JSON. Times are in milliseconds with microseconds as decimals, or null if nothing was answered.
    pub fn to_json(&self) -> Value {
        let kind = |(name, answered, latency): &(String, u32, Option<Latency>)| {
            (name.clone(), json!({"answered": answered, "latency_ms": Latency::to_json(latency.as_ref())}))
        };
        json!({
            "sent": self.sent,
            "answered": self.answered,
            "failed": self.failed,
            "abandoned": self.abandoned,
            "unfinished": self.unfinished,
            "wrong": self.wrong,
            "asked_again": self.asked_again,
            "served_then": self.served_then,
            "duration_s": self.duration.as_secs_f64(),
            "rate": rounded(self.rate),
            "latency_ms": Latency::to_json(self.latency.as_ref()),
            "first_ms": Latency::to_json(self.first.as_ref()),
            "gap_ms": Latency::to_json(self.gap.as_ref()),
            "kinds": self.kinds.iter().map(kind).collect::<serde_json::Map<_, _>>(),
        })
    }
}

fn latencies() -> Histogram<u32> {
    let longest = u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX);
    Histogram::new_with_bounds(1, longest, DIGITS).expect("the bounds are good")
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
    const REFUSED: Outcome = Outcome::Refused { again_in: None };

    fn tally() -> (Tally, Instant) {
        let start = Instant::now();
        (Tally::new(Window { start: start + SECOND, end: start + 3 * SECOND }, ["a", "b", "a"]), start)
    }

    #[test]
    fn the_warm_up_is_not_counted_and_what_is_open_is_unfinished() {
        let (mut tally, start) = tally();
        for half_seconds in 0..6 {
            let intended = start + SECOND / 2 * half_seconds;
            tally.begin(intended);
            if half_seconds < 5 {
                tally.end(intended, intended + SECOND / 4, Outcome::Right, "a");
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
        for outcome in [REFUSED, Outcome::NoAnswer] {
            tally.begin(intended);
            tally.end(intended, intended, outcome, "a");
        }
        assert_eq!(tally.report().latency, None);
        assert!(tally.report().to_json()["latency_ms"]["p50"].is_null());
        tally.begin(intended);
        tally.end(intended, intended + SECOND, Outcome::Wrong, "b");
        let report = tally.report();
        assert_eq!((report.sent, report.answered, report.failed, report.wrong), (3, 1, 2, 1));
        assert!(report.latency.is_some());
    }

    #[test]
    fn the_rate_is_of_answers_that_come_within_the_counted_time() {
        let (mut tally, start) = tally();
        let mut once = |intended, ended, outcome| {
            tally.begin(start + intended);
            tally.end(start + intended, start + ended, outcome, "a");
        };
        once(SECOND / 2, SECOND * 3 / 2, Outcome::Right);
        once(SECOND, 2 * SECOND, Outcome::Right);
        once(2 * SECOND, 2 * SECOND, REFUSED);
        once(2 * SECOND, 3 * SECOND, Outcome::Right);
        assert!((tally.report().rate - 1.0).abs() < 1e-9, "{}", tally.report().rate);
        assert_eq!(tally.report().answered, 2);
    }

    #[test]
    fn kinds_are_counted_apart_and_those_of_one_name_together() {
        let (mut tally, start) = tally();
        for (name, seconds) in [("a", 1), ("b", 2), ("a", 1)] {
            tally.begin(start + SECOND);
            tally.end(start + SECOND, start + SECOND + SECOND * seconds, Outcome::Right, name);
        }
        let kinds: Vec<_> = tally
            .report()
            .kinds
            .into_iter()
            .map(|(name, answered, latency)| (name, answered, (latency.unwrap().p50 / 1e3).round()))
            .collect();
        assert_eq!(kinds, [("a".to_owned(), 2, 1.0), ("b".to_owned(), 1, 2.0)]);
        assert_eq!(tally.report().to_json()["kinds"]["b"]["answered"], 1);
    }

    #[test]
    fn the_pieces_of_a_streamed_answer_are_timed() {
        let (mut tally, start) = tally();
        let at = |millis: u32| start + SECOND + SECOND / 1000 * millis;
        tally.streamed(start, &[at(0), at(500)]);
        assert_eq!(tally.report().first, None, "the warm-up");
        tally.streamed(at(0), &[at(10), at(12), at(16)]);
        let report = tally.report();
        assert!((report.first.unwrap().p50 - 10.0).abs() < 0.1);
        let gap = report.gap.unwrap();
        assert!((gap.mean - 3.0).abs() < 0.1 && (gap.max - 4.0).abs() < 0.1, "{gap:?}");
    }

    #[test]
    fn who_goes_away_has_not_failed() {
        let (mut tally, start) = tally();
        tally.begin(start + SECOND);
        tally.end(start + SECOND, start + SECOND, Outcome::Abandoned, "a");
        let report = tally.report();
        assert_eq!((report.sent, report.failed, report.abandoned, report.unfinished), (1, 0, 1, 0));
    }

    #[test]
    fn who_asks_again_has_failed_all_the_same() {
        let (mut tally, start) = tally();
        for outcome in [REFUSED, Outcome::Right] {
            tally.begin(start + SECOND);
            tally.end(start + SECOND, start + SECOND, REFUSED, "a");
            tally.again(start + SECOND, outcome);
        }
        let report = tally.report();
        assert_eq!((report.sent, report.failed, report.asked_again, report.served_then), (2, 2, 2, 1));
    }
}
