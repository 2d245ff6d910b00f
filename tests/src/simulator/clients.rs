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

/// A small generator of random numbers (splitmix64: Steele, Lea and Flood, 2014), so that a seed says all.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Over 0, at most 1.
    #[allow(clippy::cast_precision_loss, reason = "53 bits fit")]
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// From an exponential distribution with this mean.
    pub(super) fn exponential(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(-self.unit().ln())
    }
}
