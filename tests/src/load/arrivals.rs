//! The instants at which requests start, as a pure function of a few numbers.

use std::iter::{from_fn, repeat_n};
use std::time::Duration;

use crate::random::SplitMix64;

/// An arrival process. The same numbers give the same instants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// Arrivals are independent of each other, as those of many clients are. The intervals have an exponential
    /// distribution.
    Poisson {
        /// The mean number of arrivals a second; more than 0.
        rate: f64,
        /// The seed from which the intervals are drawn.
        seed: u64,
    },
    /// Arrivals are equally spaced. The first one comes at once.
    Constant {
        /// The number of arrivals a second; more than 0.
        rate: f64,
    },
    /// Many arrivals come at one instant, again and again. The first burst comes at once.
    Bursts {
        /// The number of arrivals in a burst.
        size: u32,
        /// The time from one burst to the next; more than 0.
        every: Duration,
    },
}

impl Arrivals {
    /// The arrivals before `end`, in order. Each is given as the time since the start.
    pub fn until(self, end: Duration) -> Box<dyn Iterator<Item = Duration> + Send> {
        match self {
            Self::Poisson { rate, seed } => {
                let mut random = SplitMix64(seed);
                let mut seconds = 0.0;
                let instants = from_fn(move || {
                    // The random number is in [0, 1), so the argument is in (0, 1] and its logarithm is finite.
                    seconds -= (1.0 - random.unit()).ln() / rate;
                    Duration::try_from_secs_f64(seconds).ok()
                });
                Box::new(instants.take_while(move |at| *at < end))
            }
            // Each instant is a product and not a sum, so that rounding errors do not add up.
            Self::Constant { rate } => {
                let instants = (0..=u32::MAX).map_while(move |k| Duration::try_from_secs_f64(f64::from(k) / rate).ok());
                Box::new(instants.take_while(move |at| *at < end))
            }
            Self::Bursts { size, every } => {
                let bursts = (0..=u32::MAX).map_while(move |k| every.checked_mul(k));
                let instants = bursts.take_while(move |at| *at < end);
                Box::new(instants.flat_map(move |at| repeat_n(at, size.try_into().unwrap_or(usize::MAX))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn all(arrivals: Arrivals, end: Duration) -> Vec<Duration> {
        arrivals.until(end).collect()
    }

    #[test]
    fn constant_arrivals_are_equally_spaced_and_begin_at_once() {
        let instants = all(Arrivals::Constant { rate: 1000.0 }, 5 * MILLISECOND);
        assert_eq!(instants, [0, 1, 2, 3, 4].map(|k| k * MILLISECOND));
        assert_eq!(all(Arrivals::Constant { rate: 0.1 }, Duration::from_secs(10)), [Duration::ZERO]);
        assert_eq!(all(Arrivals::Constant { rate: 3.0 }, Duration::from_secs(1000)).len(), 3000);
    }

    #[test]
    fn poisson_arrivals_have_the_mean_and_the_spread_of_exponential_intervals() {
        let instants = all(Arrivals::Poisson { rate: 500.0, seed: 1 }, Duration::from_secs(100));
        assert!(instants.is_sorted());
        // The expected number is 50,000. The standard deviation is its square root, 224.
        assert!((49_000..51_000).contains(&instants.len()), "{}", instants.len());
        let seconds: Vec<_> = instants.iter().map(Duration::as_secs_f64).collect();
        let intervals: Vec<_> = seconds.windows(2).map(|pair| (pair[1] - pair[0]) * 500.0).collect();
        let share = |beyond: f64| {
            let count = intervals.iter().filter(|interval| **interval > beyond).count();
            f64::from(u32::try_from(count).unwrap()) / f64::from(u32::try_from(intervals.len()).unwrap())
        };
        for beyond in [0.1_f64, 1.0, 3.0] {
            assert!((share(beyond) - (-beyond).exp()).abs() < 0.01, "{beyond}: {}", share(beyond));
        }
    }

    #[test]
    fn a_seed_says_it_all() {
        let of = |seed| all(Arrivals::Poisson { rate: 100.0, seed }, Duration::from_secs(1));
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
    }

    #[test]
    fn a_longer_time_only_adds_arrivals() {
        let of = |seconds| all(Arrivals::Poisson { rate: 100.0, seed: 3 }, Duration::from_secs(seconds));
        assert!(of(2).starts_with(&of(1)));
    }

    #[test]
    fn a_burst_is_of_one_instant_and_the_end_has_none() {
        let bursts = Arrivals::Bursts { size: 3, every: 10 * MILLISECOND };
        assert_eq!(all(bursts, 20 * MILLISECOND), [0, 0, 0, 10, 10, 10].map(|k| k * MILLISECOND));
        assert_eq!(all(bursts, 21 * MILLISECOND).len(), 9);
        assert!(all(bursts, Duration::ZERO).is_empty());
    }
}
