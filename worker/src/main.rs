//! The worker's process.

use std::process::ExitCode;

fn main() -> ExitCode {
    pillion_worker::program::run(|engine| engine)
}
