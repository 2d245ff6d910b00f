//! Runs the fault campaign and prints its table.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use pillion_tests::campaign::{Scale, machine, scenes};
use pillion_tests::scenes::Scenes;

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
    let mut all = Scenes::only(flags.only);
    all.run("kills-of-two", scenes::kills_of_two(scale)).await;
    all.run("kills-of-one", scenes::kills_of_one(scale)).await;
    if let Some(model) = flags.model.as_ref().and_then(|model| model.to_str()) {
        all.run("kills-of-real", scenes::kills_of_real(scale, model)).await;
    }
    all.run("proxy-restarts", scenes::proxy_restarts(scale)).await;
    all.run("model-swaps", scenes::model_swaps(scale)).await;
    all.run("rolling-restarts", scenes::rolling_restarts(scale)).await;
    all.run("poison", scenes::poison(scale)).await;
    all.run("stops", scenes::stops(scale)).await;
    all.run("liars", scenes::liars(scale)).await;
    all.run("crowds", scenes::crowds(scale)).await;
    all.run("unread-logs", machine::unread_logs(scale)).await;
    all.run("proxy-stops", machine::proxy_stops(scale)).await;
    all.run("folder-removed", machine::folder_removed(scale)).await;
    all.run("descriptors", machine::descriptors(scale)).await;
    all.run("clock", machine::clock(scale)).await;
    if let Some(model) = flags.model.as_ref().and_then(|model| model.to_str()) {
        all.run("memory", machine::memory(scale, model)).await;
    }
    all.end()
}
