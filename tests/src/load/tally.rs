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
    Refused {
        /// When to ask again, if the server said it in seconds.
        again_in: Option<Duration>,
    },
    /// There was no connection, or it broke.
    NoAnswer,
    /// Its client went away.
    Abandoned,
}

/// Counts while requests come and go.
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
    // Nanoseconds.
    latencies: Histogram<u32>,
    kinds: Vec<(String, Histogram<u32>)>,
    first: Histogram<u32>,
    gaps: Histogram<u32>,
}

/// What is told at the end.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Requests with their intended start in the counted time, whether or not they had a connection before the end:
    /// the sum of `answered`, `failed`, `abandoned` and `unfinished`.
    pub sent: u32,
    /// Those with status 200.
    pub answered: u32,
    /// Those with another status, or none because a connection failed.
    pub failed: u32,
    /// Those whose client went away before the answer came.
    pub abandoned: u32,
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
    /// Of `failed`, those that were told when to ask again, and did.
    pub asked_again: u32,
    /// Of `asked_again`, those that were then answered with status 200.
    pub served_then: u32,
    /// Each kind of requests: its name, how many of `answered` were of it, and their latency.
    pub kinds: Vec<(String, u32, Option<Latency>)>,
    /// Of answers that were streamed, from the intended start to the first piece; `None` where none was.
    pub first: Option<Latency>,
    /// Of answers that were streamed, from each piece to the next.
    pub gap: Option<Latency>,
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
    /// Counts nothing yet, of requests of kinds with these names.
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

    /// A request is due.
    pub fn begin(&mut self, intended: Instant) {
        self.sent += u32::from(self.window.has(intended));
    }

    /// A request of the kind of this name has ended.
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

    /// The pieces of an answer came at these times.
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

    /// A request that was refused has asked again when it was told to.
    pub fn again(&mut self, intended: Instant, outcome: Outcome) {
        if self.window.has(intended) {
            self.asked_again += 1;
            self.served_then += u32::from(matches!(outcome, Outcome::Right | Outcome::Wrong));
        }
    }

    /// What there is to tell.
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
    /// As JSON; times in milliseconds to the microsecond, null where nothing was answered.
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
