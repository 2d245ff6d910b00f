//! Mixes of several kinds of requests, and the random order in which the kinds come.

use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::target::{Expected, Target};
use crate::random::SplitMix64;

/// A mix was not given as JSON lines of the right form.
#[derive(Debug, thiserror::Error)]
pub enum MixError {
    /// A line is not JSON of the right form.
    #[error("line {line}: {cause}")]
    Line {
        /// The line's number, counted from 1.
        line: usize,
        /// What is wrong with the line.
        cause: serde_json::Error,
    },
    /// A field of a line has a wrong value.
    #[error("line {line}: {cause}")]
    Field {
        /// The line's number, counted from 1.
        line: usize,
        /// What is wrong with the field.
        cause: &'static str,
    },
    /// The mix has no line.
    #[error("it has no line")]
    Empty,
}

/// Kinds of requests, read from JSON lines such as `{"name": "short", "weight": 9, "body": {"text": "…"}, "expect":
/// "usage.completion_tokens=10", "abandon_ms": 50}`. Kinds with the same name are counted together. Without `weight`,
/// the weight is 1. Without `expect`, no field is checked. Without `abandon_ms`, clients wait until the answer comes.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix(Vec<Line>);

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    name: String,
    #[serde(default = "one")]
    weight: f64,
    body: Value,
    expect: Option<String>,
    abandon_ms: Option<u64>,
}

fn one() -> f64 {
    1.0
}

impl FromStr for Mix {
    type Err = MixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lines = text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()).map(|(nth, text)| {
            let line = nth + 1;
            let parsed: Line = serde_json::from_str(text).map_err(|cause| MixError::Line { line, cause })?;
            if !(parsed.weight > 0.0 && parsed.weight.is_finite()) {
                return Err(MixError::Field { line, cause: "weight is not more than 0" });
            }
            if parsed.expect.as_ref().is_some_and(|expect| expect.parse::<Expected>().is_err()) {
                return Err(MixError::Field { line, cause: "expect is not of the form PATH=VALUE" });
            }
            Ok(parsed)
        });
        let lines: Vec<Line> = lines.collect::<Result<_, _>>()?;
        if lines.is_empty() { Err(MixError::Empty) } else { Ok(Self(lines)) }
    }
}

impl Mix {
    /// Adds these kinds of requests to a target.
    #[must_use]
    pub fn of(&self, target: Target) -> Target {
        self.0.iter().fold(target, |target, line| {
            let expected = line.expect.as_ref().and_then(|expect| expect.parse().ok());
            let patience = line.abandon_ms.map(Duration::from_millis);
            target.or(&line.name, line.weight, line.body.to_string(), expected).with_patience(patience)
        })
    }
}

/// Draws kinds at random, each as often as its weight says.
#[derive(Clone, Debug)]
pub struct Draw {
    /// For each kind, the sum of its weight and the weights before it.
    sums: Vec<f64>,
    random: SplitMix64,
}

impl Draw {
    /// Draws from kinds with these weights.
    pub fn new(weights: impl IntoIterator<Item = f64>, seed: u64) -> Self {
        let sums = weights.into_iter().scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        // The arrivals may be drawn from the same seed. The inverted seed gives other random numbers than theirs.
        Self { sums: sums.collect(), random: SplitMix64(!seed) }
    }

    /// Draws the next kind. Returns its place.
    pub fn kind(&mut self) -> usize {
        let at = self.random.unit() * self.sums.last().copied().unwrap_or(0.0);
        self.sums.partition_point(|&sum| sum <= at).min(self.sums.len().saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_drawn_as_often_as_their_weights_say() {
        let mut draw = Draw::new([9.0, 1.0], 1);
        let seconds = (0..10_000).filter(|_| draw.kind() == 1).count();
        assert!((900..1_100).contains(&seconds), "{seconds}");
        assert_eq!(Draw::new([1.0], 1).kind(), 0);
    }

    #[test]
    fn a_mix_is_read_line_by_line() {
        let text = r#"{"name": "a", "body": {"text": "x"}}

            {"name": "b", "weight": 0.5, "body": {}, "expect": "text=ok"}"#;
        let target = text.parse::<Mix>().unwrap().of(Target::new("http://127.0.0.1/").unwrap());
        let kinds: Vec<_> = target.kinds().iter().map(|kind| (&*kind.name, kind.weight, kind.expects())).collect();
        assert_eq!(kinds, [("a", 1.0, false), ("b", 0.5, true)]);
    }

    #[test]
    fn a_bad_line_is_named() {
        for (text, said) in [
            ("", "it has no line"),
            ("{}", "line 1: missing field"),
            ("\n{\"name\": \"a\", \"body\": 1, \"other\": 2}", "line 2: unknown field"),
            ("{\"name\": \"a\", \"body\": 1, \"weight\": 0}", "line 1: weight"),
            ("{\"name\": \"a\", \"body\": 1, \"expect\": \"x\"}", "line 1: expect"),
        ] {
            let error = text.parse::<Mix>().unwrap_err().to_string();
            assert!(error.starts_with(said), "{text}: {error}");
        }
    }
}
