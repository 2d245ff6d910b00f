//! How long a new request will wait. Plain data.

use std::time::Duration;

use super::candidates::ALIKE;
use crate::domain::Demand;

/// The waiting jobs of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SameSize {
    /// Their demand, all together.
    pub demand: Demand,
    /// The number of buckets that they are in. Jobs of different buckets are taken to go in different batches.
    pub buckets: usize,
}

/// The engines' time for these jobs, if each bucket goes in batches of its own of at most `max_size`.
pub fn time_for<'a>(
    sizes: impl IntoIterator<Item = &'a SameSize>,
    max_size: usize,
    time: impl Fn(&Demand) -> Duration,
) -> Duration {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let of_size = |SameSize { demand, buckets }: &SameSize| {
        let batch = demand.members.div_ceil((*buckets).max(1)).min(max_size).max(1);
        time(&demand.part(batch, demand.members)).saturating_mul(count(demand.members)) / count(batch)
    };
    sizes.into_iter().map(of_size).fold(Duration::ZERO, Duration::saturating_add)
}

/// The jobs that go before those of a request with the demand `own`: those that do not take much longer. Longer jobs are
/// passed over, unless they are due, which this forecast leaves out.
pub fn ahead(mut sizes: Vec<SameSize>, own: &Demand, time: impl Fn(&Demand) -> Duration) -> Vec<SameSize> {
    let limit = time(&own.part(1, own.members)).saturating_mul(ALIKE);
    sizes.retain(|same| time(&same.demand.part(1, same.demand.members)) <= limit);
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(members: usize, tokens: u32) -> Demand {
        let mut one = Demand::default();
        one.add(30, tokens, 0);
        one.times(members)
    }

    /// A batch takes a millisecond a step.
    fn time(demand: &Demand) -> Duration {
        Duration::from_millis(demand.longest.into())
    }

    fn same_size(members: usize, tokens: u32) -> SameSize {
        SameSize { demand: demand(members, tokens), buckets: 1 }
    }

    #[test]
    fn waiting_jobs_take_as_many_batches_as_they_fill() {
        let millis = Duration::from_millis;
        assert_eq!(time_for(&[same_size(40, 10)], 50, time), millis(10));
        assert_eq!(time_for(&[same_size(1000, 10)], 50, time), millis(200));
        assert_eq!(
            time_for(&[same_size(1000, 10), same_size(1, 300)], 50, time),
            millis(500),
            "a long job does not make the other batches longer"
        );
        let of_many_keys = SameSize { buckets: 40, ..same_size(40, 10) };
        assert_eq!(time_for(&[of_many_keys], 50, time), millis(400), "jobs with different keys share no batch");
        assert_eq!(time_for(&[], 50, time), Duration::ZERO);
    }

    #[test]
    fn short_jobs_wait_for_short_jobs_and_long_jobs_for_all() {
        let sizes = [same_size(20, 10), same_size(5, 200)];
        let waiting = |own: &Demand, time: fn(&Demand) -> Duration| -> usize {
            ahead(sizes.to_vec(), own, time).iter().map(|same| same.demand.members).sum()
        };
        assert_eq!(waiting(&demand(1, 10), time), 20);
        assert_eq!(waiting(&demand(1, 100), time), 25);
        assert_eq!(waiting(&demand(1, 100), |_| Duration::ZERO), 25, "without measurements");
    }
}
