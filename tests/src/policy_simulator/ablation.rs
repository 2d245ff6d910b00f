//! Measures what each part of the policy is worth: simulates every load with the whole policy, and with each part of it
//! switched off in turn.

use std::sync::Mutex;

use super::{Load, Mechanism, Report, Setting, simulate};

/// A smaller change than this is shown as none.
const SMALL: f64 = 0.01;
/// A change of this size or more is printed in bold.
const LARGE: f64 = 0.05;
/// The number of figures that are compared: tokens a second, the mean latency, and the 99th percentile of the latency.
const FIGURES: usize = 3;

/// How much a figure changes when a mechanism is switched off: 0.05 means 5 % more. The change is zero if it does not
/// have the same sign with every seed.
type Change = f64;

/// Returns a table in Markdown, with a row for each load and a column for each mechanism. Each load runs with the seeds
/// 1 to `seeds`, and runs with the same seed are compared.
pub fn ablation(loads: &[Load], seeds: u64) -> String {
    let rows = on_all_processors(loads, |load| {
        let whole = reports(&load.setting, None, seeds);
        let without = |mechanism| changes(&whole, &reports(&load.setting, Some(mechanism), seeds));
        Mechanism::ALL.map(without)
    });
    let mut lines = vec![
        line("load, without:", &Mechanism::ALL.map(|mechanism| mechanism.name().to_owned())),
        line("---", &Mechanism::ALL.map(|_| "---".to_owned())),
    ];
    lines.extend(
        loads.iter().zip(&rows).map(|(load, changes)| line(&load.name, &changes.map(|changes| shown(&changes)))),
    );
    for (name, is_worse) in [("loads where it is worth 5 %", true), ("loads where it costs 5 %", false)] {
        let cells = std::array::from_fn(|nth| counts(rows.iter().map(|row| &row[nth]), is_worse));
        lines.push(line(name, &cells));
    }
    lines.concat()
}

/// A line of the table.
fn line(name: &str, cells: &[String; Mechanism::ALL.len()]) -> String {
    format!("| {name} | {} |\n", cells.join(" | "))
}

fn reports(setting: &Setting, without: Option<Mechanism>, seeds: u64) -> Vec<Report> {
    (1..=seeds).map(|seed| simulate(&Setting { without, seed, ..setting.clone() })).collect()
}

/// The change of each figure: the geometric mean over the seeds.
#[allow(clippy::cast_precision_loss, reason = "few seeds")]
fn changes(whole: &[Report], without: &[Report]) -> [Change; FIGURES] {
    let figures = |report: &Report| [report.tokens, report.mean.as_secs_f64(), report.p99.as_secs_f64()];
    std::array::from_fn(|figure| {
        let ratios =
            whole.iter().zip(without).map(|(whole, without)| figures(without)[figure] / figures(whole)[figure]);
        let logs: Vec<f64> = ratios.map(f64::ln).collect();
        let agree = logs.iter().all(|log| *log > 0.0) || logs.iter().all(|log| *log < 0.0);
        if agree { (logs.iter().sum::<f64>() / logs.len() as f64).exp() - 1.0 } else { 0.0 }
    })
}

fn shown(changes: &[Change; FIGURES]) -> String {
    if changes.iter().all(|change| change.abs() < SMALL) {
        return "·".to_owned();
    }
    let one = |change: &Change| match change.abs() {
        size if size < SMALL => "0".to_owned(),
        size if size < LARGE => format!("{:+.0}", change * 100.0),
        _ => format!("**{:+.0}**", change * 100.0),
    };
    changes.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// Counts, for each figure, the loads at which it is worse by at least [`LARGE`] without the mechanism. If `is_worse`
/// is false, counts those at which it is better.
fn counts<'a>(of_loads: impl Iterator<Item = &'a [Change; FIGURES]>, is_worse: bool) -> String {
    let mut counts = [0; FIGURES];
    for changes in of_loads {
        for (figure, change) in changes.iter().enumerate() {
            // The first figure is throughput: less of it is worse. The others are times: more is worse.
            let worse = if figure == 0 { -change } else { *change };
            counts[figure] += usize::from(if is_worse { worse >= LARGE } else { worse <= -LARGE });
        }
    }
    counts.map(|count| count.to_string()).join(" ")
}

/// Computes a result for each load, on all processors. The results are in the order of the loads.
fn on_all_processors<T: Send>(loads: &[Load], of: impl Fn(&Load) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, done) = (Mutex::new(loads.iter().enumerate()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some((nth, load)) = next.lock().expect("nothing panics").next() else { return };
                    let result = of(load);
                    done.lock().expect("nothing panics").push((nth, result));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("nothing panics");
    done.sort_by_key(|(nth, _)| *nth);
    done.into_iter().map(|(_, result)| result).collect()
}
