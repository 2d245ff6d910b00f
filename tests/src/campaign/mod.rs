//! The fault campaign: real processes under load, to which something happens again and again. What clients saw of it is
//! counted and written down as a table.
//!
//! - [`load`]: clients, each of whose answers is compared with what it must be.
//! - [`scenes`]: what happens to processes; [`machine`]: to the machine under them.

pub mod load;
pub mod machine;
pub mod scenes;
pub(crate) mod setting;

use std::fmt;
use std::time::Duration;

use load::Tally;

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// How long workers are killed for.
    pub kills: Duration,
    /// How often everything else happens.
    pub times: usize,
}

impl Scale {
    /// As the project's promises are worded.
    pub const FULL: Self = Self { kills: Duration::from_secs(300), times: 20 };
    /// For every change.
    pub const SHORT: Self = Self { kills: Duration::from_secs(16), times: 3 };
}

/// One row of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// What happened.
    pub fault: &'static str,
    /// What was promised.
    pub promise: &'static str,
    /// How often it happened.
    pub times: String,
    /// What the clients saw.
    pub tally: Tally,
    /// What else was seen.
    pub seen: String,
    /// Whether the promise was kept.
    pub kept: bool,
}

impl crate::scenes::Row for Row {
    const HEAD: &'static str = "| fault | promise | tried | requests | of them streams | failed | wrong or crossed | p50, p99, longest, ms | seen | kept |\n\
    | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |";

    fn is_kept(&self) -> bool {
        self.kept
    }

    fn tallies(&self) -> Vec<&Tally> {
        vec![&self.tally]
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { asked, streams, failed, wrong, .. } = &self.tally;
        let [p50, p99, longest] = self.tally.percentiles();
        let kept = if self.kept { "yes" } else { "**no**" };
        write!(
            f,
            "| {} | {} | {} | {asked} | {streams} | {} | {} | {p50:.0}, {p99:.0}, {longest:.0} | {} | {kept} |",
            self.fault,
            self.promise,
            self.times,
            failed.len(),
            wrong.len(),
            self.seen,
        )
    }
}
