//! Runs the fault campaign and prints its table.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use pillion_tests::campaign::{HEAD, Row, Scale, machine, scenes};
use pillion_tests::say;

/// Real processes under load, to which something happens again and again.
#[derive(Debug, Parser)]
#[command(version)]
struct Flags {
    /// Everything happens a few times only.
    #[arg(long)]
    short: bool,
    /// The model for the scenes with real workers; without it they are left out.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Only scenes whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    let scale = if flags.short { Scale::SHORT } else { Scale::FULL };
    let mut rows: Vec<Row> = Vec::new();
    macro_rules! scene {
        ($name:literal, $run:expr) => {
            if $name.contains(&*flags.only) {
                say(&format!("{}: begins", $name));
                let row: Row = $run.await;
                say(&row.to_string());
                row.tally.failed.iter().chain(&row.tally.wrong).take(3).for_each(|what| say(what));
                rows.push(row);
            }
        };
    }
    scene!("kills-of-two", scenes::kills_of_two(scale));
    scene!("kills-of-one", scenes::kills_of_one(scale));
    if let Some(model) = flags.model.as_ref().and_then(|model| model.to_str()) {
        scene!("kills-of-real", scenes::kills_of_real(scale, model));
    }
    scene!("proxy-restarts", scenes::proxy_restarts(scale));
    scene!("model-swaps", scenes::model_swaps(scale));
    scene!("rolling-restarts", scenes::rolling_restarts(scale));
    scene!("poison", scenes::poison(scale));
    scene!("stops", scenes::stops(scale));
    scene!("liars", scenes::liars(scale));
    scene!("proxy-stops", machine::proxy_stops(scale));
    scene!("folder-removed", machine::folder_removed(scale));
    scene!("descriptors", machine::descriptors(scale));
    scene!("clock", machine::clock(scale));
    if let Some(model) = flags.model.as_ref().and_then(|model| model.to_str()) {
        scene!("memory", machine::memory(scale, model));
    }
    println!("{HEAD}");
    rows.iter().for_each(|row| println!("{row}"));
    if rows.iter().all(|row| row.kept) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
