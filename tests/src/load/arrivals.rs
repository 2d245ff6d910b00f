//! When requests start: a pure function of a few numbers.

use std::iter::{from_fn, repeat_n};
use std::time::Duration;

use crate::random::SplitMix64;

/// An arrival process. The same numbers give the same instants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// Independent of one another, as from many clients that know nothing of each other: intervals are exponential.
    Poisson {
        /// Arrivals a second, on average; more than 0.
        rate: f64,
        /// What the intervals are drawn from.
        seed: u64,
    },
    /// Equally spaced, the first at once.
    Constant {
        /// Arrivals a second; more than 0.
        rate: f64,
    },
    /// Many at one instant, again and again, the first at once.
    Bursts {
        /// Arrivals in a burst.
        size: u32,
        /// Time from burst to burst; more than 0.
        every: Duration,
    },
}

impl Arrivals {
    /// The instants before `end`, in order, as time since the start.
    pub fn until(self, end: Duration) -> Box<dyn Iterator<Item = Duration> + Send> {
        match self {
            Self::Poisson { rate, seed } => {
                let mut random = SplitMix64(seed);
                let mut seconds = 0.0;
                let instants = from_fn(move || {
                    // 1 - u is in (0, 1]: its logarithm is finite.
                    seconds -= (1.0 - random.unit()).ln() / rate;
                    Duration::try_from_secs_f64(seconds).ok()
                });
                Box::new(instants.take_while(move |at| *at < end))
            }
            // A product, not a sum, so that rounding does not add up.
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
        // 50,000 expected; the standard deviation is the root of it, 224.
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
