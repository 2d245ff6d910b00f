//! Log lines on standard error, as text or JSON. `RUST_LOG` filters them; without it, INFO and above are written.
//!
//! A thread writes the lines, so that a program does not stand still if nobody reads them.

mod output;

use std::backtrace::Backtrace;
use std::io::{IsTerminal, Write};
use std::sync::LazyLock;

use tracing_subscriber::EnvFilter;

use self::output::Output;

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one object a line.
    Json,
}

static OUTPUT: LazyLock<Output> = LazyLock::new(|| {
    Output::to(std::io::stderr(), |lost| {
        tracing::warn!(lost, "log lines were lost, because nobody read standard error");
    })
});

/// Sets up logging for the process; `with_target` says whether a line names the module that wrote it. Panics are logged too. A
/// second call does nothing.
pub fn start(format: LogFormat, with_target: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| OUTPUT.clone())
        .with_target(with_target)
        .log_internal_errors(false);
    let started = match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if started.is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            let (thread, backtrace) = (std::thread::current(), Backtrace::capture());
            let name = thread.name().unwrap_or("without a name").to_owned();
            print(&format!("thread {name} {panic}\n{backtrace}"));
        }));
    }
}

/// Logs this text as it is.
pub fn print(text: &str) {
    OUTPUT.add(true, |out| drop(writeln!(out, "{text}")));
}

/// Adds lines that `write` appends. They may wait 100 ms for others, so that many leave in one write.
pub fn collect(write: impl FnOnce(&mut Vec<u8>)) {
    OUTPUT.add(false, write);
}

/// The number of lines that were lost, because nobody read standard error.
pub fn lost() -> u64 {
    OUTPUT.lost()
}

/// Waits until all lines are written, but not longer than a second. To be called before the process ends.
pub fn flush() {
    OUTPUT.flush();
}
