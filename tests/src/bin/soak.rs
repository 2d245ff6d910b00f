//! Soaks real processes, and prints what was seen.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use pillion_tests::soak::soak;

/// Mixed load for long, with a fault every few seconds.
#[derive(Debug, Parser)]
#[command(version)]
struct Flags {
    /// How long.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
    /// The model of the workers.
    #[arg(long)]
    model: String,
    /// Says what happens when.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to draw what was seen, as SVG.
    #[arg(long)]
    picture: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    let soaked = soak(Duration::from_secs(60 * flags.minutes), &flags.model, flags.seed).await;
    println!("Seed {}. {}", flags.seed, soaked.table());
    for what in soaked.tally.failed.iter().chain(&soaked.tally.wrong).take(10) {
        eprintln!("{what}");
    }
    if let Some(path) = flags.picture
        && let Err(error) = std::fs::write(&path, soaked.picture())
    {
        eprintln!("error: {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    if soaked.is_kept() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
