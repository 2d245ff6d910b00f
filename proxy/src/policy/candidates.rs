//! Which jobs share the next batch: jobs with equal options and similar lengths. Plain data.
//!
//! A batch takes as long as its longest member, and an engine cannot add members to a running batch. If short jobs
//! share a batch with long ones, the jobs after them wait for the long ones. So the queue keeps its jobs in *buckets*:
//! jobs with one batch key whose prompts and answers are alike within a factor of two. Neighbouring buckets form one
//! *candidate* for a batch if their jobs take similar times, or if few texts are expected.
//!
//! The candidate of which the engine serves most members a second goes first, so that the sum of all waits is smallest
//! (weighted shortest processing time first: W. E. Smith, Various optimizers for single-stage production, 1956). So
//! short jobs pass long ones. But a candidate that has waited long enough is *due*: due candidates go first, by age,
//! and do not give way. The more members a candidate has, the sooner it is due, since an engine serves many members in
//! little more time than a few.

use std::cmp::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{BatchKey, Demand, Quarantine, Target};

/// Buckets form one candidate if a job of one, by itself, takes an engine at most this many times as long as a job of
/// the other. Beyond that, one batch saves little engine time, and later short jobs wait for the long ones.
pub(super) const ALIKE: u32 = 6;
/// Buckets that differ more form one candidate while fewer texts than this are expected before the longer job ends.
const FOLLOWERS: f64 = 2.0;
/// A candidate is due when its oldest job has waited for this many times the engine's time for one member, which is the
/// batch's time divided by its members. With less, long jobs go in small batches, which cost more engine time. With
/// more, they wait longer than they need.
const DUE: u32 = 12;
/// A candidate is also due when its oldest job has waited for this many times the predicted time of the batch.
pub const LONGEST_PASSING: u32 = 4;

/// How much a job demands, roughly: its answer's tokens and its prompt's bytes, rounded up to powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size {
    answer: u8,
    prompt: u8,
}

impl Size {
    /// The size of a job with this demand.
    pub fn of(demand: &Demand) -> Self {
        let log = |n: u64| u8::try_from(n.max(1).ilog2() + u32::from(!n.max(1).is_power_of_two())).unwrap_or(u8::MAX);
        // Tokens that are fed again count as four bytes each, roughly the length of their text.
        Self { answer: log(demand.tokens), prompt: log(demand.bytes.saturating_add(4 * demand.refed)) }
    }
}

/// The waiting jobs with one batch key and one size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// Their batch key.
    pub key: BatchKey,
    /// Their size.
    pub size: Size,
    /// Since when the first of them waits.
    pub since: Instant,
    /// Their demand, all together.
    pub demand: Demand,
}

/// Buckets whose jobs can share a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchCandidate {
    /// The buckets.
    pub buckets: Vec<Bucket>,
    /// Since when the first of their jobs waits.
    pub since: Instant,
    /// The number of their jobs.
    pub waiting: usize,
    /// The demand of a batch: of as many average jobs as fit.
    pub demand: Demand,
    /// The predicted time of that batch.
    pub time: Duration,
}

/// The candidate that goes next, from buckets that one worker can serve. `max_size`: the most members of a batch.
/// `time`: predicts the time of a batch. `texts_per_second`: the rate at which texts come.
pub fn next(
    mut buckets: Vec<Bucket>,
    max_size: usize,
    time: impl Fn(&Demand) -> Duration,
    texts_per_second: f64,
    now: Instant,
) -> Option<BatchCandidate> {
    if buckets.len() > 1 {
        buckets.sort_by_cached_key(|bucket| (options(bucket), time_alone(bucket, &time)));
    }
    candidates(&buckets, max_size, &time, texts_per_second).into_iter().max_by(|a, b| a.compare(b, now))
}

/// What jobs must have in common to share a batch. The model does not matter, since all jobs are for one worker.
fn options(bucket: &Bucket) -> BatchKey {
    BatchKey { target: Target::ANY, ..bucket.key }
}

/// The predicted time of one average job of a bucket, by itself.
fn time_alone(bucket: &Bucket, time: impl Fn(&Demand) -> Duration) -> Duration {
    time(&bucket.demand.part(1, bucket.demand.members))
}

/// Joins neighbouring buckets into candidates.
fn candidates(
    buckets: &[Bucket],
    max_size: usize,
    time: impl Fn(&Demand) -> Duration,
    texts_per_second: f64,
) -> Vec<BatchCandidate> {
    let mut candidates = Vec::new();
    let mut rest = buckets;
    while let Some(first) = rest.first() {
        let (mut all, mut since, mut end) = (first.demand, first.since, 1);
        while let Some(bucket) = rest.get(end).filter(|bucket| options(bucket) == options(first)) {
            let longer = time_alone(bucket, &time);
            let followers = longer.as_secs_f64() * texts_per_second;
            if longer > time_alone(first, &time) * ALIKE && followers >= FOLLOWERS {
                break;
            }
            (all, since, end) = (all.and(&bucket.demand), since.min(bucket.since), end + 1);
        }
        let max_size = max_size.min(first.key.quarantine.max_size());
        let demand = all.part(all.members.min(max_size.max(1)), all.members);
        let (buckets, later) = rest.split_at(end);
        candidates.push(BatchCandidate {
            buckets: buckets.to_vec(),
            since,
            waiting: all.members,
            time: time(&demand),
            demand,
        });
        rest = later;
    }
    candidates
}

impl BatchCandidate {
    /// Whether its oldest job has waited so long that the candidate goes first and does not give way.
    pub fn is_due(&self, now: Instant) -> bool {
        let members = u32::try_from(self.demand.members.max(1)).unwrap_or(u32::MAX);
        let patience = (self.time / members * DUE).min(self.time * LONGEST_PASSING);
        now.saturating_duration_since(self.since) >= patience
    }

    /// The quarantine of its jobs.
    pub fn quarantine(&self) -> Quarantine {
        self.buckets.first().map_or(Quarantine::None, |bucket| bucket.key.quarantine)
    }

    /// How many members the engine serves in a second.
    #[allow(clippy::cast_precision_loss, reason = "few members")]
    fn rate(&self) -> f64 {
        self.demand.members as f64 / self.time.as_secs_f64().max(1e-9)
    }

    /// `Greater` if this candidate goes before the other, and `Less` if it goes after it.
    fn compare(&self, other: &Self, now: Instant) -> Ordering {
        let by_age = other.since.cmp(&self.since);
        let by_rate = self.rate().total_cmp(&other.rate());
        let (is_due, other_is_due) = (self.is_due(now), other.is_due(now));
        let first = if is_due && other_is_due { by_age } else { by_rate };
        is_due.cmp(&other_is_due).then(first).then(by_age).then(other.time.cmp(&self.time))
    }
}

#[cfg(test)]
mod tests {
    use pillion_protocol::frame::Options;

    use super::*;
    use crate::domain::ModelId;

    const MILLI: Duration = Duration::from_millis(1);
    /// Texts a second.
    const MANY: f64 = 1000.0;

    /// A batch takes a millisecond a step, however many members it has.
    fn time(demand: &Demand) -> Duration {
        MILLI * demand.longest
    }

    fn bucket(members: usize, tokens: u32, since: Instant) -> Bucket {
        let mut one = Demand::default();
        one.add(30, tokens, 0);
        Bucket { key: BatchKey::new(Options::default(), 0), size: Size::of(&one), since, demand: one.times(members) }
    }

    /// The answer lengths of the buckets in the candidate that goes next.
    fn chosen(buckets: &[Bucket], now: Instant) -> Vec<u64> {
        let candidate = next(buckets.to_vec(), 50, time, MANY, now).unwrap();
        candidate.buckets.iter().map(|bucket| bucket.demand.tokens / bucket.demand.members as u64).collect()
    }

    #[test]
    fn sizes_are_alike_within_a_factor_of_two() {
        let size = |bytes, tokens| {
            let mut demand = Demand::default();
            demand.add(bytes, tokens, 0);
            Size::of(&demand)
        };
        assert_eq!(size(30, 9), size(32, 16));
        assert_ne!(size(30, 16), size(30, 17));
        assert_ne!(size(64, 10), size(65, 10));
        assert_eq!(size(0, 1), size(1, 1));
    }

    #[test]
    fn jobs_of_similar_length_share_a_batch_and_much_longer_ones_do_not() {
        let now = Instant::now();
        let buckets = [bucket(10, 100, now), bucket(10, 200, now), bucket(10, 600, now)];
        assert_eq!(chosen(&buckets, now), [100, 200, 600]);
        let buckets = [bucket(10, 10, now), bucket(10, 30, now), bucket(10, 200, now)];
        assert_eq!(chosen(&buckets, now), [10, 30]);
    }

    #[test]
    fn if_few_texts_come_jobs_of_all_lengths_share_a_batch() {
        let now = Instant::now();
        let buckets = vec![bucket(1, 10, now), bucket(1, 200, now)];
        let waiting = |rate| next(buckets.clone(), 50, time, rate, now).unwrap().waiting;
        assert_eq!((waiting(0.0), waiting(9.0), waiting(11.0)), (2, 2, 1), "the long job takes 200 ms");
    }

    #[test]
    fn jobs_with_different_options_never_share_a_batch() {
        let now = Instant::now();
        let other = BatchKey::new(Options::default(), 1);
        let buckets = [bucket(1, 10, now), Bucket { key: other, ..bucket(1, 10, now - MILLI) }];
        assert_eq!(next(buckets.to_vec(), 50, time, MANY, now).unwrap().waiting, 1);
    }

    #[test]
    fn a_job_that_names_the_model_shares_a_batch_with_jobs_for_any_model() {
        let now = Instant::now();
        let any = bucket(1, 10, now);
        let named =
            Bucket { key: BatchKey { target: Target { model: ModelId::new(1), ..Target::ANY }, ..any.key }, ..any };
        assert_eq!(next(vec![any, named], 50, time, MANY, now).unwrap().waiting, 2);
    }

    #[test]
    fn quarantined_jobs_share_a_batch_with_few_others_of_their_kind() {
        let now = Instant::now();
        let any = bucket(20, 10, now);
        let few = Bucket { key: BatchKey { quarantine: Quarantine::Few, ..any.key }, since: now - MILLI, ..any };
        let candidate = next(vec![any, few], 50, |_| Duration::ZERO, MANY, now).unwrap();
        assert_eq!((candidate.quarantine(), candidate.waiting, candidate.demand.members), (Quarantine::Few, 20, 8));
    }

    #[test]
    fn short_jobs_pass_long_jobs_but_not_for_ever() {
        let start = Instant::now();
        let at = |millis: u32| start + MILLI * millis;
        // Short jobs keep coming and have always waited for 10 ms. Their batch takes 10 ms, one of long jobs 200 ms.
        let chosen_at =
            |now: Instant, long: usize| chosen(&[bucket(10, 10, now - 10 * MILLI), bucket(long, 200, start)], now);
        assert_eq!(chosen_at(at(100), 2), [10]);
        assert_eq!(chosen_at(at(799), 2), [10]);
        assert_eq!(chosen_at(at(800), 2), [200], "they have waited for four times what their batch takes");
        assert_eq!(chosen_at(at(239), 10), [10]);
        assert_eq!(chosen_at(at(240), 10), [200], "many jobs are due sooner than few");
    }

    #[test]
    fn among_due_candidates_the_oldest_goes_first() {
        let start = Instant::now();
        let now = start + 2000 * MILLI;
        let buckets = [bucket(49, 10, start + 100 * MILLI), bucket(2, 200, start)];
        assert_eq!(chosen(&buckets, now), [200], "the short jobs have the higher rate");
    }

    #[test]
    fn without_measurements_all_jobs_with_one_batch_key_share_a_batch() {
        let now = Instant::now();
        let buckets = vec![bucket(30, 10, now), bucket(30, 1000, now)];
        let candidate = next(buckets, 50, |_| Duration::ZERO, MANY, now).unwrap();
        assert_eq!((candidate.buckets.len(), candidate.waiting, candidate.demand.members), (2, 60, 50));
    }
}
