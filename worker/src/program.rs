//! The program, from the command line to the exit code.

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
    let (result, engine_runs) = match Config::read(std::env::args_os()) {
        Ok(Command::Print(text)) => {
            print!("{text}");
            (Ok(()), false)
        }
        Ok(Command::Serve(config)) => {
            environment::prepare(std::env::args_os());
            log::start(config.log_format, false);
            leave::on_panic();
            let end = app::run(*config, patch);
            (end.result, end.engine_runs)
        }
        Err(error) => (Err(error.into()), false),
    };
    let code = result.as_ref().map_or_else(Error::exit_code, |()| 0);
    if let Err(error) = result {
        log::print(&format!("pillion-worker: {error}"));
    }
    if engine_runs {
        leave::at_once(code);
    }
    log::flush();
    ExitCode::from(code)
}
