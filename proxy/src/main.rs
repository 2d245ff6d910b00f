//! `pillion-proxy`: reads its configuration, runs, and says by its exit code how it ended.

use std::process::ExitCode;

use pillion_process::{exit, log};
use pillion_proxy::app::{self, AppError};
use pillion_proxy::check;
use pillion_proxy::config::{Config, ConfigError};

/// Gives memory back soon after a flood, which the C library's does not. `.cargo/config.toml` says how soon.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(app::run(config)),
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return ExitCode::from(exit::INTERNAL);
        }
    };
    let Err(error) = ended else { return ExitCode::SUCCESS };
    tracing::error!("{error}");
    ExitCode::from(match error {
        AppError::Unavailable(_) => exit::UNAVAILABLE,
        AppError::Internal(_) => exit::INTERNAL,
        AppError::Unfinished { .. } => exit::WORK_LEFT,
    })
}
