//! The program, from the command line to the exit code.

use std::io::Write;
use std::process::ExitCode;

use pillion_process::log;

use crate::app::Patch;
use crate::config::{Command, Config};
use crate::error::Error;
use crate::{app, check, environment, inspect, leave};

/// Runs what the command line asks for: a worker, or one of the commands `check` and `inspect`.
pub fn run(patch: Patch) -> ExitCode {
    if let Some(code) = leave::handed_over(std::env::args_os()) {
        return ExitCode::from(code);
    }
    if let Some(code) = check::run(std::env::args_os()).or_else(|| inspect::run(std::env::args_os())) {
        return ExitCode::from(code);
    }
    match Config::read(std::env::args_os()) {
        Ok(Command::Print(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Command::Serve(config)) => {
            environment::prepare(std::env::args_os());
            log::start(config.log_format, false);
            leave::on_panic();
            let end = app::run(*config, patch);
            let code = end.result.map_or_else(|error| report(&error), |()| 0);
            if end.engine_runs {
                leave::at_once(code);
            }
            ExitCode::from(code)
        }
        Err(error) => ExitCode::from(report(&error.into())),
    }
}

fn report(error: &Error) -> u8 {
    // If standard error cannot be written, the exit code still tells the reason.
    let _ = writeln!(std::io::stderr(), "pillion-worker: {error}");
    error.exit_code()
}
