//! Floods: very many clients that mean no good, beside clients that do. What that costs the proxy and the others is
//! measured and written down as a table.
//!
//! - [`hostile`]: what the ones do; [`honest`]: what the others see of it; [`scenes`]: both together.

pub mod honest;
pub mod hostile;
pub mod scenes;

use std::fmt;
use std::time::Duration;

use crate::campaign::load::Tally;

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Connections of hostile clients.
    pub hostile: usize,
    /// Connections of honest ones, each of which asks every five seconds.
    pub honest: usize,
    /// How long honest ones are watched, undisturbed and under a flood.
    pub watch: Duration,
    /// How long the proxy has to give back what a flood took.
    pub calm: Duration,
    /// Requests that are reset, and as many honest ones beside which their cost is held.
    pub resets: usize,
    /// Whether times, costs and memory are held against what is promised: of few clients they say nothing.
    pub judges: bool,
}

impl Scale {
    /// As the project's promises are worded.
    pub const FULL: Self = Self {
        hostile: 9000,
        honest: 1000,
        watch: Duration::from_secs(30),
        calm: Duration::from_secs(10),
        resets: 100_000,
        judges: true,
    };
    /// For every change.
    pub const SHORT: Self = Self {
        hostile: 450,
        honest: 50,
        watch: Duration::from_secs(4),
        calm: Duration::from_secs(1),
        resets: 10_000,
        judges: false,
    };
}

/// One row of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// What hostile clients did.
    pub flood: String,
    /// What was promised.
    pub promise: &'static str,
    /// What honest clients saw without it.
    pub before: Tally,
    /// What they saw under it.
    pub under: Tally,
    /// Memory of the proxy in MiB: before, the most, and after.
    pub memory: [u64; 3],
    /// What else was seen.
    pub seen: String,
    /// Whether the promise was kept.
    pub kept: bool,
}

impl crate::scenes::Row for Row {
    const HEAD: &'static str = "| flood | promise | honest requests | failed or wrong | p50, p99, ms: before, under it | memory, MiB: before, most, after | seen | kept |\n\
    | --- | --- | --- | --- | --- | --- | --- | --- |";

    fn is_kept(&self) -> bool {
        self.kept
    }

    fn tallies(&self) -> Vec<&Tally> {
        vec![&self.before, &self.under]
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [before, under] = [&self.before, &self.under].map(|tally| {
            let [p50, p99, _] = tally.percentiles();
            format!("{p50:.0}, {p99:.0}")
        });
        let times = if self.before.asked == 0 { "–".to_owned() } else { format!("{before}; {under}") };
        let asked = self.before.asked + self.under.asked;
        let bad: usize = [&self.before, &self.under].map(|tally| tally.failed.len() + tally.wrong.len()).iter().sum();
        let [before, most, after] = self.memory;
        let kept = if self.kept { "yes" } else { "**no**" };
        let Self { flood, promise, seen, .. } = self;
        write!(f, "| {flood} | {promise} | {asked} | {bad} | {times} | {before}, {most}, {after} | {seen} | {kept} |")
    }
}
