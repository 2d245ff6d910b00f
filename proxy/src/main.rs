//! `pillion-proxy`: reads its configuration, runs, and says by its exit code how it ended.

use std::process::ExitCode;

use pillion_process::{exit, log};
use pillion_proxy::app::{self, AppError};
use pillion_proxy::check;
use pillion_proxy::config::{Config, ConfigError};

/// Gives memory back soon after a flood, which the C library's does not. `.cargo/config.toml` says how soon.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The most threads that parse large bodies.
const PARSERS: usize = 4;

fn main() -> ExitCode {
    if let Some(code) = check::run(std::env::args_os()) {
        return ExitCode::from(code);
    }
    let config = match Config::read(std::env::args_os()) {
        Ok(config) => config,
        Err(ConfigError::Flags(error)) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::BAD_FLAG } else { 0 });
        }
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(exit::BAD_FLAG);
        }
    };
    log::start(config.log_format, true);
    config.log();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(PARSERS).build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(app::run(config)),
        Err(error) => Err(AppError::Internal(format!("cannot start the runtime: {error}"))),
    };
    let code = match &ended {
        Ok(()) => 0,
        Err(AppError::Unavailable(_)) => exit::UNAVAILABLE,
        Err(AppError::Internal(_)) => exit::INTERNAL,
        Err(AppError::Unfinished { .. }) => exit::WORK_LEFT,
    };
    if let Err(error) = ended {
        tracing::error!("{error}");
    }
    log::flush();
    ExitCode::from(code)
}
