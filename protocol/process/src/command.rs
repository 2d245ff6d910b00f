//! Commands of a program besides serving, such as `check`.

use std::ffi::OsString;

use clap::Parser;

use crate::exit::BAD_FLAG;

/// Runs a command if the second argument is its name; the first is the program's name. Returns the exit code: the command's,
/// 0 after help was printed, or [`BAD_FLAG`].
pub fn run<F: Parser>(
    name: &str,
    arguments: impl IntoIterator<Item = OsString>,
    command: impl FnOnce(&F) -> u8,
) -> Option<u8> {
    let mut arguments = arguments.into_iter();
    let program = arguments.next()?;
    if arguments.next()? != name {
        return None;
    }
    Some(match F::try_parse_from(std::iter::once(program).chain(arguments)) {
        Ok(flags) => command(&flags),
        Err(error) => {
            let _ = error.print();
            if error.use_stderr() { BAD_FLAG } else { 0 }
        }
    })
}
