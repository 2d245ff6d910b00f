//! How long a new request will wait. Plain data.

use std::time::Duration;

use super::candidates::{ALIKE, Bucket};
use crate::domain::Demand;

/// The engines' time for the jobs in these buckets, if each bucket goes in batches of its own of at most `max_size`.
pub fn time_for<'a>(
    buckets: impl IntoIterator<Item = &'a Bucket>,
    max_size: usize,
    time: impl Fn(&Demand) -> Duration,
) -> Duration {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let of_bucket = |Bucket { demand, .. }: &Bucket| {
        if demand.members <= max_size {
            return time(demand);
        }
        time(&demand.part(max_size, demand.members)).saturating_mul(count(demand.members)) / count(max_size).max(1)
    };
    buckets.into_iter().map(of_bucket).fold(Duration::ZERO, Duration::saturating_add)
}

/// The buckets whose jobs go before those of a request with the demand `own`: those whose jobs do not take much longer.
/// Longer jobs are passed over, unless they are due, which this forecast leaves out.
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

    /// A batch takes a millisecond a step.
    fn time(demand: &Demand) -> Duration {
        Duration::from_millis(demand.longest.into())
    }

    fn bucket(members: usize, tokens: u32) -> Bucket {
        let demand = demand(members, tokens);
        let key = BatchKey::new(Options::default(), 0);
        Bucket { key, size: Size::of(&demand), since: Instant::now(), demand }
    }

    #[test]
    fn waiting_jobs_take_as_many_batches_as_they_fill() {
        let millis = Duration::from_millis;
        assert_eq!(time_for(&[bucket(40, 10)], 50, time), millis(10));
        assert_eq!(time_for(&[bucket(1000, 10)], 50, time), millis(200));
        assert_eq!(
            time_for(&[bucket(1000, 10), bucket(1, 300)], 50, time),
            millis(500),
            "a long job does not make the other batches longer"
        );
        assert_eq!(time_for(&[], 50, time), Duration::ZERO);
    }

    #[test]
    fn short_jobs_wait_for_short_jobs_and_long_jobs_for_all() {
        let buckets = [bucket(20, 10), bucket(5, 200)];
        let waiting = |own: &Demand, time: fn(&Demand) -> Duration| -> usize {
            ahead(&buckets, own, time).map(|bucket| bucket.demand.members).sum()
        };
        assert_eq!(waiting(&demand(1, 10), time), 20);
        assert_eq!(waiting(&demand(1, 100), time), 25);
        assert_eq!(waiting(&demand(1, 100), |_| Duration::ZERO), 25, "without measurements");
    }
}
