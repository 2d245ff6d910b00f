//! When the simulated clients send requests.

use std::time::Duration;

/// The times at which clients send requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Clients {
    /// Each user sends a request, waits for the answer, thinks, and sends the next request.
    Closed {
        /// The number of users.
        users: usize,
        /// The mean time between an answer and the next request. The times have an exponential distribution. With zero,
        /// a user sends the next request at once.
        think: Duration,
    },
    /// Requests come as a Poisson process, whether or not earlier ones have been answered.
    Open {
        /// The mean number of requests a second.
        rate: f64,
    },
    /// Many requests come at once, again and again.
    Bursts {
        /// The number of requests in a burst.
        size: usize,
        /// The time from one burst to the next.
        every: Duration,
    },
}
