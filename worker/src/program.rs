//! The program: settings in, exit code out.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use crate::config::{Command, Config};
use crate::engine::Engine;
use crate::{Error, app, check, environment, inspect, leave, log};

/// What becomes of the engine once it is warm. The worker leaves it as it is; tests put something around it.
pub type Patch = fn(Arc<dyn Engine>) -> Arc<dyn Engine>;

/// Runs a worker as the command line asks.
pub fn run(patch: Patch) -> ExitCode {
    if let Some(code) = leave::handed_over(std::env::args_os()) {
        return ExitCode::from(code);
    }
    if let Some(code) = check::asked(std::env::args_os()).or_else(|| inspect::asked(std::env::args_os())) {
        return ExitCode::from(code);
    }
    match Config::read(std::env::args_os()) {
        Ok(Command::Print(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Command::Serve(config)) => {
            environment::prepare(std::env::args_os());
            log::start(config.log_format);
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
    // The exit code says it too, where this cannot be written.
    let _ = writeln!(std::io::stderr(), "pillion-worker: {error}");
    error.exit_code()
}
