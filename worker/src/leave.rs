//! Ending the process while an engine still runs, or when a thread has panicked.
//!
//! An engine cannot be interrupted between two tokens, and it is C++: leaving through `exit` would destroy what it is
//! using, and crash. Replacing the process's program ends all its threads at once instead, so the worker becomes a
//! worker that does nothing but end with the right code.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::caught::is_catching;

/// The exit code of an internal error.
const INTERNAL: u8 = 70;
const FLAG: &str = "--leave-with=";

/// From now on a panic on any thread ends the process: the proxy sees the connection end and serves the members
/// elsewhere, where a worker without one of its threads would let them wait for their deadline. Only what [`caught`]
/// runs may panic, and whoever called it tells of it.
///
/// [`caught`]: crate::caught::caught
pub fn on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !is_catching() {
            report(panic);
            at_once(INTERNAL);
        }
    }));
}

/// Ends the process with this exit code, whatever its threads are doing.
pub fn at_once(code: u8) -> ! {
    let error = Command::new("/proc/self/exe").arg(format!("{FLAG}{code}")).exec();
    tracing::error!(%error, "cannot leave in good order");
    std::process::exit(code.into())
}

/// The exit code that [`at_once`] has handed over, where this process is its continuation.
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
