//! Floods: very many clients that mean no good, beside clients that do. What that costs the proxy and the others is
//! measured and written down as a table.
//!
//! - [`hostile`]: what the ones do; [`honest`]: what the others see of it; [`scenes`]: both together.

pub mod honest;
pub mod hostile;
pub mod scenes;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use crate::campaign::load::Tally;
use crate::process::Process;

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Connections of hostile clients.
    pub hostile: usize,
    /// Connections of honest ones, each of which asks every five seconds.
    pub honest: usize,
    /// How long honest ones are watched, undisturbed and under a flood.
    pub watch: Duration,
    /// Requests that are reset, and as many honest ones beside which their cost is held.
    pub resets: usize,
    /// Whether times, costs and memory are held against what is promised: of few clients they say nothing.
    pub judges: bool,
}

impl Scale {
    /// As the project's promises are worded.
    pub const FULL: Self =
        Self { hostile: 9000, honest: 1000, watch: Duration::from_secs(30), resets: 100_000, judges: true };
    /// For every change.
    pub const SHORT: Self =
        Self { hostile: 450, honest: 50, watch: Duration::from_secs(4), resets: 10_000, judges: false };
}

/// A process's share of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Memory that it has, in bytes.
    pub resident: u64,
    /// The most that it ever had.
    pub most: u64,
    /// Seconds of a processor that it has used.
    pub cpu: f64,
}

impl Usage {
    /// Of a running process.
    ///
    /// # Panics
    /// It has ended.
    pub fn of(process: &Process) -> Self {
        let folder = Path::new("/proc").join(process.pid().expect("it runs").to_string());
        let status = std::fs::read_to_string(folder.join("status")).expect("its status can be read");
        let kib = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of each");
            line.trim_matches([':', '\t', ' ', 'k', 'B']).parse().expect("a number")
        };
        let stat = std::fs::read_to_string(folder.join("stat")).expect("its times can be read");
        // After the name, which may hold anything: user's and system's time are the 12th and 13th, in hundredths.
        let (_, fields) = stat.rsplit_once(')').expect("a name");
        let hundredths = |nth: usize| fields.split_whitespace().nth(nth).and_then(|field| field.parse::<f64>().ok());
        let cpu: f64 = [11, 12].into_iter().filter_map(hundredths).sum::<f64>() / 100.0;
        Self { resident: kib("VmRSS") << 10, most: kib("VmHWM") << 10, cpu }
    }
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

/// The table's head.
pub const HEAD: &str = "| flood | promise | honest requests | failed or wrong | p50, p99, ms: before, under it | memory, MiB: before, most, after | seen | kept |\n\
    | --- | --- | --- | --- | --- | --- | --- | --- |";

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
