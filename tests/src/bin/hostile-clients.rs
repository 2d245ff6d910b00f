//! Lets hostile clients at a proxy, and prints a table of what that did to it and to honest clients.

use std::process::ExitCode;

use clap::Parser;
use pillion_proxy::descriptors;
use pillion_tests::floods::{HEAD, Row, Scale, scenes};
use pillion_tests::say;

/// A proxy under floods of hostile clients, beside honest ones.
#[derive(Debug, Parser)]
#[command(version)]
struct Flags {
    /// A twentieth of the clients, for a short time.
    #[arg(long)]
    short: bool,
    /// Only scenes whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    let scale = if flags.short { Scale::SHORT } else { Scale::FULL };
    let descriptors = descriptors::raise().unwrap_or(0);
    let needed = u64::try_from(scale.hostile + scale.honest).unwrap_or(u64::MAX) + 500;
    if descriptors < needed {
        eprintln!("error: {needed} open files are needed, and {descriptors} allowed (ulimit -n)");
        return ExitCode::from(69);
    }
    let mut rows: Vec<Row> = Vec::new();
    macro_rules! scene {
        ($name:literal, $run:expr) => {
            if $name.contains(&*flags.only) {
                say(&format!("{}: begins", $name));
                let row: Row = $run.await;
                say(&row.to_string());
                for tally in [&row.before, &row.under] {
                    tally.failed.iter().chain(&tally.wrong).take(3).for_each(|what| say(what));
                }
                rows.push(row);
            }
        };
    }
    scene!("tricklers", scenes::tricklers(scale));
    scene!("idlers", scenes::idlers(scale));
    scene!("large-heads", scenes::large_heads(scale));
    scene!("large-bodies", scenes::large_bodies(scale));
    scene!("unread", scenes::unread(scale));
    scene!("streams", scenes::streams(scale));
    scene!("rapid-resets", scenes::rapid_resets(scale));
    scene!("slow-heads", scenes::slow_heads(scale));
    println!("{HEAD}");
    rows.iter().for_each(|row| println!("{row}"));
    if rows.iter().all(|row| row.kept) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
