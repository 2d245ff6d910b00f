//! The process's descriptors: every connection takes one, and the system gives only so many.
//!
//! Clients must not take the last: a worker that died could not come back, and no probe would be answered. So what
//! workers, probes and the process itself may need is set aside, and clients share the rest.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Of the process itself: the runtime's, standard streams, listening sockets, files that are read again.
const OWN: u64 = 32;

/// Takes as many descriptors as the process is allowed to (the soft limit becomes the hard one), and says how many.
///
/// # Errors
/// The system does not say.
pub fn raise() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        return Ok(hard);
    }
    Ok(soft)
}

/// How many connections of clients there is room for among `descriptors`, of the `asked`, beside so many `others`. Where
/// descriptors are few, clients get half of them; and one at least.
pub fn connections(asked: usize, descriptors: u64, others: usize) -> usize {
    let others = OWN + u64::try_from(others).unwrap_or(u64::MAX / 2);
    let room = descriptors.saturating_sub(others).max(descriptors / 2).max(1);
    asked.min(usize::try_from(room).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_they_asked_for_where_there_is_enough() {
        assert_eq!(connections(10_000, 524_288, 320), 10_000);
        assert_eq!(connections(10_000, u64::MAX, 320), 10_000);
        assert_eq!(connections(10_000, 10_352, 320), 10_000);
    }

    #[test]
    fn clients_leave_what_others_need() {
        assert_eq!(connections(10_000, 10_351, 320), 9_999);
        assert_eq!(connections(10_000, 4096, 320), 3744);
        assert_eq!(connections(10_000, 1024, 320), 672);
        assert_eq!(connections(100, 1024, 320), 100);
    }

    #[test]
    fn where_descriptors_are_few_clients_get_half() {
        assert_eq!(connections(10_000, 352, 320), 176);
        assert_eq!(connections(10_000, 40, 320), 20);
        assert_eq!(connections(10_000, 0, 320), 1);
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard - 1, hard).unwrap();
        assert_eq!(raise().unwrap(), hard);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap().0, hard);
    }
}
