//! Ends the process while an engine still runs, or after a thread has panicked.
//!
//! An engine cannot be interrupted between two tokens. Its code is C++, so `exit` would destroy the objects that a running
//! engine uses, and the process would crash. Instead the process replaces its program by this same program with the flag
//! `--leave-with=CODE`: that ends all threads at once, and the new program only returns the exit code.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use pillion_process::{exit, log};

use crate::caught::is_catching;

const FLAG: &str = "--leave-with=";

/// From now on a panic on any thread ends the process. The proxy then sees the connection end and serves the members on
/// another worker. If the process lived on without the thread, the members would wait until their deadline. Only work that
/// [`caught`] runs may panic; its caller handles the panic.
///
/// [`caught`]: crate::caught::caught
pub fn on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !is_catching() {
            report(panic);
            at_once(exit::INTERNAL);
        }
    }));
}

/// Ends the process with this exit code, even while its threads run.
pub fn at_once(code: u8) -> ! {
    log::flush();
    let error = Command::new("/proc/self/exe").arg(format!("{FLAG}{code}")).exec();
    tracing::error!(%error, "cannot replace the program to end while an engine runs: calling exit instead, which may crash");
    std::process::exit(code.into())
}

/// The exit code that [`at_once`] handed over, if this process continues one that left.
pub fn handed_over(mut arguments: impl Iterator<Item = OsString>) -> Option<u8> {
    arguments.nth(1)?.to_str()?.strip_prefix(FLAG)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_continuation_is_taken_for_it() {
        let handed = |arguments: &[&str]| handed_over(arguments.iter().map(OsString::from));
        assert_eq!(handed(&["w", "--leave-with=75"]), Some(75));
        assert_eq!(handed(&["w", "--model", "--leave-with=75"]), None);
        assert_eq!(handed(&["w"]), None);
    }
}
