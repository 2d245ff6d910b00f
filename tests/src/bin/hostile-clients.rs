//! Lets hostile clients at a proxy, and prints a table of what that did to it and to honest clients.

use std::process::ExitCode;

use clap::Parser;
use pillion_proxy::descriptors;
use pillion_tests::floods::{Scale, scenes};
use pillion_tests::scenes::Scenes;

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
    let mut all = Scenes::only(flags.only);
    all.run("tricklers", scenes::tricklers(scale)).await;
    all.run("idlers", scenes::idlers(scale)).await;
    all.run("large-heads", scenes::large_heads(scale)).await;
    all.run("large-bodies", scenes::large_bodies(scale)).await;
    all.run("unread", scenes::unread(scale)).await;
    all.run("streams", scenes::streams(scale)).await;
    all.run("rapid-resets", scenes::rapid_resets(scale)).await;
    all.run("slow-heads", scenes::slow_heads(scale)).await;
    all.end()
}
