//! What each part of the policy is worth: every load with each of them switched off in turn, beside the whole policy.

use std::sync::Mutex;

use super::{Load, Mechanism, Report, Setting, simulate};

/// A change of less than this is not shown.
const SMALL: f64 = 0.01;
/// One of at least so much is set in bold.
const LARGE: f64 = 0.05;
/// The figures that are compared: tokens a second, mean and 99th percentile of the time to an answer.
const FIGURES: usize = 3;

/// A change of one figure where a mechanism is switched off: 0.05 is 5 % more. Zero where seeds do not agree on its sign.
type Change = f64;

/// A table in Markdown: a row for each load, a column for each mechanism. Each pair of runs has the same seed, 1 to `seeds`.
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

/// The geometric mean of each figure's change over the seeds.
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

/// At how many loads each figure is worse by the large part without the mechanism, or better.
fn counts<'a>(of_loads: impl Iterator<Item = &'a [Change; FIGURES]>, is_worse: bool) -> String {
    let mut counts = [0; FIGURES];
    for changes in of_loads {
        for (figure, change) in changes.iter().enumerate() {
            // Less throughput is worse, and so is more time.
            let worse = if figure == 0 { -change } else { *change };
            counts[figure] += usize::from(if is_worse { worse >= LARGE } else { worse <= -LARGE });
        }
    }
    counts.map(|count| count.to_string()).join(" ")
}

/// The results in the order of the loads.
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
