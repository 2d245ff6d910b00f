//! File descriptors: every connection takes one, and the system limits their number.
//!
//! Clients must not take the last ones, or a worker that died could not reconnect, and no probe would be answered. So
//! descriptors for workers, probes and the process itself are set aside, and clients share the rest.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors for the process itself: the runtime, standard streams, listening sockets, files that are reloaded.
const OWN: u64 = 32;

/// Raises the soft limit of the process's descriptors to the hard limit, and returns the limit that holds then.
///
/// # Errors
/// The system does not return the limits.
pub fn raise() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        return Ok(hard);
    }
    Ok(soft)
}

/// How many of the `asked` connections of clients fit into `descriptors`, beside `others` other connections. Clients get at
/// least half of the descriptors, and at least one connection.
pub fn connections(asked: usize, descriptors: u64, others: usize) -> usize {
    let others = OWN + u64::try_from(others).unwrap_or(u64::MAX / 2);
    let room = descriptors.saturating_sub(others).max(descriptors / 2).max(1);
    asked.min(usize::try_from(room).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_all_connections_if_there_are_enough_descriptors() {
        assert_eq!(connections(10_000, 524_288, 320), 10_000);
        assert_eq!(connections(10_000, u64::MAX, 320), 10_000);
        assert_eq!(connections(10_000, 10_352, 320), 10_000);
    }

    #[test]
    fn descriptors_for_other_connections_are_set_aside() {
        assert_eq!(connections(10_000, 10_351, 320), 9_999);
        assert_eq!(connections(10_000, 4096, 320), 3744);
        assert_eq!(connections(10_000, 1024, 320), 672);
        assert_eq!(connections(100, 1024, 320), 100);
    }

    #[test]
    fn clients_get_half_if_descriptors_are_few() {
        assert_eq!(connections(10_000, 352, 320), 176);
        assert_eq!(connections(10_000, 40, 320), 20);
        assert_eq!(connections(10_000, 0, 320), 1);
    }

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_limit() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard - 1, hard).unwrap();
        assert_eq!(raise().unwrap(), hard);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap().0, hard);
    }
}
