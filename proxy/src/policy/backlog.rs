//! How long whoever comes now will wait. Plain data.

use std::time::Duration;

use super::candidates::{ALIKE, Bucket};
use crate::domain::Demand;

/// The engines' time for all that wait in these cells, each in batches of its own of at most `most`.
pub fn time_for<'a>(
    buckets: impl IntoIterator<Item = &'a Bucket>,
    most: usize,
    time: impl Fn(&Demand) -> Duration,
) -> Duration {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let of_cell = |Bucket { demand, .. }: &Bucket| {
        if demand.members <= most {
            return time(demand);
        }
        time(&demand.part(most, demand.members)).saturating_mul(count(demand.members)) / count(most).max(1)
    };
    buckets.into_iter().map(of_cell).fold(Duration::ZERO, Duration::saturating_add)
}

/// What goes before `own`: all that waits and is not much longer. What is longer is passed over, unless it has waited for too
/// long.
pub fn ahead<'a>(
    buckets: &'a [Bucket],
    own: &Demand,
    time: impl Fn(&Demand) -> Duration + Clone + 'a,
) -> impl Iterator<Item = &'a Bucket> + Clone {
    let limit = time(&own.part(1, own.members)).saturating_mul(ALIKE);
    buckets.iter().filter(move |bucket| time(&bucket.demand.part(1, bucket.demand.members)) <= limit)
}

#[cfg(test)]
mod tests {
    use pillion_protocol::frame::Options;
    use tokio::time::Instant;

    use super::*;
    use crate::domain::BatchKey;
    use crate::policy::candidates::Size;

    fn demand(members: usize, tokens: u32) -> Demand {
        let mut one = Demand::default();
        one.add(30, tokens, 0);
        one.times(members)
    }

    /// A millisecond a step.
    fn time(demand: &Demand) -> Duration {
        Duration::from_millis(demand.longest.into())
    }

    fn bucket(members: usize, tokens: u32) -> Bucket {
        let demand = demand(members, tokens);
        let key = BatchKey::new(&Options::default(), 0);
        Bucket { key, size: Size::of(&demand), since: Instant::now(), demand }
    }

    #[test]
    fn what_waits_takes_as_many_batches_as_it_fills() {
        let millis = Duration::from_millis;
        assert_eq!(time_for(&[bucket(40, 10)], 50, time), millis(10));
        assert_eq!(time_for(&[bucket(1000, 10)], 50, time), millis(200));
        assert_eq!(
            time_for(&[bucket(1000, 10), bucket(1, 300)], 50, time),
            millis(500),
            "one long one makes no other longer"
        );
        assert_eq!(time_for(&[], 50, time), Duration::ZERO);
    }

    #[test]
    fn short_ones_wait_for_short_ones_and_long_ones_for_all() {
        let buckets = [bucket(20, 10), bucket(5, 200)];
        let waiting = |own: &Demand, time: fn(&Demand) -> Duration| -> usize {
            ahead(&buckets, own, time).map(|bucket| bucket.demand.members).sum()
        };
        assert_eq!(waiting(&demand(1, 10), time), 20);
        assert_eq!(waiting(&demand(1, 100), time), 25);
        assert_eq!(waiting(&demand(1, 100), |_| Duration::ZERO), 25, "with nothing measured");
    }
}
