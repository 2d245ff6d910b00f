//! What was seen of the processes, as a table and as a picture.

use std::fmt::Write;

use super::{Sample, Soaked};
use crate::usage::Usage;

/// One of the two.
type Of = fn(&Sample) -> &Usage;
/// One of the figures.
type Figure = fn(&Usage) -> u64;

/// What is looked at: its name, and how it is read.
const FIGURES: [(&str, Figure); 3] = [
    ("resident memory, MiB", |usage| usage.resident >> 20),
    ("descriptors", |usage| usage.descriptors),
    ("threads", |usage| usage.threads),
];
/// The proxy and the worker.
const PROCESSES: [(&str, Of, &str); 2] =
    [("proxy", |sample| &sample.proxy, "#c2410c"), ("worker", |sample| &sample.worker, "#1d4ed8")];
/// What is flat: the mean of the last quarter is at most so many times that of the second, or so much more.
const FLAT: (f64, f64) = (1.1, 3.0);

impl Soaked {
    /// Whether nothing was lost or crossed, and nothing grew.
    pub fn is_kept(&self) -> bool {
        let flat = |(_, usage, _): (&str, Of, &str)| {
            FIGURES.iter().all(|(_, figure)| {
                let [_, second, _, last] = self.quarters(usage, *figure);
                last <= (second * FLAT.0).max(second + FLAT.1)
            })
        };
        self.tally.is_clean() && PROCESSES.into_iter().all(flat)
    }

    /// The mean of each quarter.
    fn quarters(&self, usage: Of, figure: Figure) -> [f64; 4] {
        let all = self.samples.len();
        std::array::from_fn(|nth| mean(&self.samples[all * nth / 4..all * (nth + 1) / 4], usage, figure))
    }

    /// The table.
    pub fn table(&self) -> String {
        let [p50, p99, longest] = self.tally.percentiles();
        let minutes = self.samples.last().map_or(0, |sample| sample.at.as_secs().div_ceil(60));
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{minutes} minutes, {} faults: {} requests, {} of them streams, {} failed, {} wrong or crossed; p50 {p50:.0} ms, \
             p99 {p99:.0} ms, longest {longest:.0} ms. {}\n",
            self.faults,
            self.tally.asked,
            self.tally.streams,
            self.tally.failed.len(),
            self.tally.wrong.len(),
            if self.is_kept() { "Nothing grew." } else { "**Not as promised.**" },
        );
        out.push_str("| mean of each quarter | first | second | third | last |\n| --- | --- | --- | --- | --- |\n");
        for (process, usage, _) in PROCESSES {
            for (name, figure) in FIGURES {
                let quarters = self.quarters(usage, figure).map(|mean| format!("{mean:.1}")).join(" | ");
                let _ = writeln!(out, "| {process}: {name} | {quarters} |");
            }
        }
        out
    }

    /// The picture, as SVG: a panel for each figure.
    pub fn picture(&self) -> String {
        const WIDTH: f64 = 760.0;
        const PANEL: f64 = 130.0;
        const LEFT: f64 = 60.0;
        const STEP: f64 = PANEL + 50.0;
        let span = self.samples.last().map_or(1.0, |sample| sample.at.as_secs_f64());
        let mut out = String::from(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 840 590\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"840\" height=\"590\" fill=\"white\"/>\n",
        );
        for (nth, (name, figure)) in FIGURES.into_iter().enumerate() {
            let top = 40.0 + STEP * f64::from(u32::try_from(nth).unwrap_or(0));
            let seen = |sample: &Sample| PROCESSES.map(|(_, usage, _)| figure(usage(sample)));
            let most = self.samples.iter().flat_map(seen).max().unwrap_or(1).max(1);
            let bottom = top + PANEL;
            let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{name}</text>", top - 8.0);
            for (y, label) in [(top, most), (bottom, 0)] {
                let right = LEFT + WIDTH;
                let _ = writeln!(
                    out,
                    "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y}\" y2=\"{y}\" stroke=\"#d4d4d4\"/>\
                     <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{label}</text>",
                    LEFT - 6.0,
                    y + 4.0
                );
            }
            for (process, usage, colour) in PROCESSES {
                let points: Vec<_> = self
                    .samples
                    .iter()
                    .map(|sample| {
                        let x = LEFT + WIDTH * sample.at.as_secs_f64() / span;
                        format!("{x:.1},{:.1}", bottom - PANEL * float(figure(usage(sample))) / float(most))
                    })
                    .collect();
                let _ = writeln!(
                    out,
                    "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"><title>{process}</title></polyline>",
                    points.join(" ")
                );
            }
        }
        for (nth, (process, _, colour)) in (0_u32..).zip(PROCESSES) {
            let x = 640.0 + 90.0 * f64::from(nth);
            let _ = writeln!(out, "<text x=\"{x}\" y=\"20\" fill=\"{colour}\">{process}</text>");
        }
        let _ = writeln!(
            out,
            "<text x=\"{LEFT}\" y=\"575\">0</text><text x=\"{}\" y=\"575\" text-anchor=\"end\">{:.0} minutes</text>\n</svg>",
            LEFT + WIDTH,
            span / 60.0
        );
        out
    }
}

fn mean(samples: &[Sample], usage: Of, figure: Figure) -> f64 {
    let sum: u64 = samples.iter().map(|sample| figure(usage(sample))).sum();
    float(sum) / float(u64::try_from(samples.len()).unwrap_or(1).max(1))
}

#[allow(clippy::cast_precision_loss, reason = "figures of a process are small enough")]
fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::campaign::load::{Question, Tally};

    fn soaked(resident: impl Fn(u64) -> u64) -> Soaked {
        let samples = (0..40).map(|nth| {
            let proxy = Usage { resident: resident(nth) << 20, descriptors: 20, threads: 2, ..Usage::default() };
            Sample { at: Duration::from_secs(10 * nth), proxy, worker: proxy }
        });
        let mut tally = Tally::default();
        let question = Question { body: serde_json::Value::Null, expected: "a".to_owned(), is_stream: false };
        tally.add(&question, Ok("a".to_owned()), Duration::ZERO);
        Soaked { tally, faults: 0, samples: samples.collect() }
    }

    #[test]
    fn what_grows_is_told_from_what_wavers_and_from_what_takes_long_to_be_warm() {
        assert!(soaked(|nth| 100 + nth % 7).is_kept());
        assert!(soaked(|nth| 50 + 10 * nth.min(9)).is_kept());
        assert!(!soaked(|nth| 100 + nth).is_kept());
        let mut wrong = soaked(|_| 100);
        wrong.tally.wrong.push(String::new());
        assert!(!wrong.is_kept());
    }
}
