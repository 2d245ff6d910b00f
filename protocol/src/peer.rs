//! The two ends of a connection.

use std::fmt;

/// One of the two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The proxy.
    Proxy,
    /// The worker.
    Worker,
}

impl fmt::Display for Peer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Proxy => "proxy",
            Self::Worker => "worker",
        })
    }
}
