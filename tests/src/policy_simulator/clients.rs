//! Who asks when.

use std::time::Duration;

/// A load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Clients {
    /// So many users, each of whom asks again so long after an answer.
    Closed {
        /// How many.
        users: usize,
        /// The mean of an exponential distribution; zero for none.
        think: Duration,
    },
    /// Requests that come whatever becomes of those before: a Poisson process.
    Open {
        /// Requests a second.
        rate: f64,
    },
    /// So many at once, again and again.
    Bursts {
        /// How many.
        size: usize,
        /// From one burst to the next.
        every: Duration,
    },
}
