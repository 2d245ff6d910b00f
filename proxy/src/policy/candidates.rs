//! Who rides in the next batch: members of one class and of about one length. Plain data.
//!
//! A batch takes as long as its longest member, and the engine takes nobody aboard meanwhile. So short ones that ride with
//! long ones lose nothing themselves, but whoever comes after them waits for the long ones to end. The queue keeps what
//! waits in *cells*: one class, and prompts and answers that are each alike within a factor of two. Neighbouring cells
//! ride together where they do not differ much, or hardly anybody is expected to come; else each in its turn.
//!
//! Of companies that have not waited for long the one goes first of which the engine serves most a second, so that all
//! together wait least (weighted shortest processing time first: W. E. Smith, Various optimizers for single-stage
//! production, 1956): short ones pass long ones. That would starve the long ones, so whoever has waited for long enough is
//! *due*: of those the oldest goes first, and it stands aside for nobody. The more of them wait the sooner they are due,
//! since an engine serves many at once for little more than a few: what counts is how long all of them have waited
//! together, beside the time that the engine needs for them.

use std::cmp::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{BatchKey, Demand, ModelFingerprint, ModelId, Quarantine};

/// Cells ride together where a job of the one, alone, takes an engine no longer than so many times a job of the other: beyond
/// that, riding together saves little of the engine's time, and whoever comes after the shorter one waits for the longer.
pub(super) const ALIKE: u32 = 6;
/// But they do ride together while fewer than so many are expected to come before the longer one ends.
const FOLLOWERS: f64 = 2.0;
/// A company is due when its oldest has waited for so many times what the engine takes for one of its members, which is
/// the batch's time over how many share it. With less, long ones go in small batches, which cost the engine more; with
/// more, they wait longer than they need.
const DUE: u32 = 12;
/// But a job is passed over by shorter ones no longer than for so many times what its batch is predicted to take.
pub const LONGEST_PASSING: u32 = 4;

/// How much a job asks for, roughly: the powers of two next to its answer's tokens and its prompt's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size {
    answer: u8,
    prompt: u8,
}

impl Size {
    /// Of a job that asks for so much.
    pub fn of(demand: &Demand) -> Self {
        let log = |n: u64| u8::try_from(n.max(1).ilog2() + u32::from(!n.max(1).is_power_of_two())).unwrap_or(u8::MAX);
        // Tokens that are fed again count as the bytes that they stand for, roughly.
        Self { answer: log(demand.tokens), prompt: log(demand.bytes.saturating_add(4 * demand.again)) }
    }
}

/// Jobs that wait, of one class and one size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// Their class.
    pub key: BatchKey,
    /// Their size.
    pub size: Size,
    /// Since when the first of them waits for its turn.
    pub since: Instant,
    /// What all of them ask for.
    pub demand: Demand,
}

/// Cells that ride together.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchCandidate {
    /// Which.
    pub buckets: Vec<Bucket>,
    /// Since when the first of them waits for its turn.
    pub since: Instant,
    /// How many wait in them.
    pub waiting: usize,
    /// What those of them ask for who fit a batch, on average.
    pub demand: Demand,
    /// How long that is predicted to take.
    pub time: Duration,
}

/// Whose turn it is, where at most `most` ride together, `time` predicts what a batch takes, and so many texts come in a
/// second. All are for workers of one model.
pub fn next(
    mut buckets: Vec<Bucket>,
    most: usize,
    time: impl Fn(&Demand) -> Duration,
    texts_per_second: f64,
    now: Instant,
) -> Option<BatchCandidate> {
    if buckets.len() > 1 {
        buckets.sort_by_cached_key(|bucket| (options(bucket), alone(bucket, &time)));
    }
    candidates(&buckets, most, &time, texts_per_second).into_iter().max_by(|a, b| a.before(b, now))
}

/// What its members must have in common. Whether they ask for a model does not matter, since all are for one worker.
fn options(bucket: &Bucket) -> BatchKey {
    BatchKey { model: ModelId::ANY, fingerprint: ModelFingerprint::ANY, ..bucket.key }
}

/// How long a job of the cell would take by itself, on average.
fn alone(bucket: &Bucket, time: impl Fn(&Demand) -> Duration) -> Duration {
    time(&bucket.demand.part(1, bucket.demand.members))
}

/// Neighbours that ride together.
fn candidates(
    buckets: &[Bucket],
    most: usize,
    time: impl Fn(&Demand) -> Duration,
    texts_per_second: f64,
) -> Vec<BatchCandidate> {
    let mut candidates = Vec::new();
    let mut rest = buckets;
    while let Some(first) = rest.first() {
        let (mut all, mut since, mut end) = (first.demand, first.since, 1);
        while let Some(bucket) = rest.get(end).filter(|bucket| options(bucket) == options(first)) {
            let longer = alone(bucket, &time);
            let followers = longer.as_secs_f64() * texts_per_second;
            if longer > alone(first, &time) * ALIKE && followers >= FOLLOWERS {
                break;
            }
            (all, since, end) = (all.and(&bucket.demand), since.min(bucket.since), end + 1);
        }
        let most = most.min(first.key.quarantine.most());
        let demand = all.part(all.members.min(most.max(1)), all.members);
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
    /// Whether its oldest has waited for so long that it stands aside for nobody.
    pub fn is_due(&self, now: Instant) -> bool {
        let members = u32::try_from(self.demand.members.max(1)).unwrap_or(u32::MAX);
        let patience = (self.time / members * DUE).min(self.time * LONGEST_PASSING);
        now.saturating_duration_since(self.since) >= patience
    }

    /// Whether its members are on trial.
    pub fn quarantine(&self) -> Quarantine {
        self.buckets.first().map_or(Quarantine::None, |bucket| bucket.key.quarantine)
    }

    /// Members that the engine serves a second.
    #[allow(clippy::cast_precision_loss, reason = "few members")]
    fn rate(&self) -> f64 {
        self.demand.members as f64 / self.time.as_secs_f64().max(1e-9)
    }

    /// Whether it goes after the other (`Less`) or before it.
    fn before(&self, other: &Self, now: Instant) -> Ordering {
        let by_age = other.since.cmp(&self.since);
        let by_rate = self.rate().total_cmp(&other.rate());
        let (mine, theirs) = (self.is_due(now), other.is_due(now));
        let first = if mine && theirs { by_age } else { by_rate };
        mine.cmp(&theirs).then(first).then(by_age).then(other.time.cmp(&self.time))
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

    /// A millisecond a step, however many members it has.
    fn time(demand: &Demand) -> Duration {
        MILLI * demand.longest
    }

    fn bucket(members: usize, tokens: u32, since: Instant) -> Bucket {
        let mut one = Demand::default();
        one.add(30, tokens, 0);
        Bucket { key: BatchKey::new(&Options::default(), 0), size: Size::of(&one), since, demand: one.times(members) }
    }

    fn turn(buckets: &[Bucket], now: Instant) -> Vec<u64> {
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
    fn answers_of_about_one_length_ride_together_and_much_longer_ones_do_not() {
        let now = Instant::now();
        let buckets = [bucket(10, 100, now), bucket(10, 200, now), bucket(10, 600, now)];
        assert_eq!(turn(&buckets, now), [100, 200, 600]);
        let buckets = [bucket(10, 10, now), bucket(10, 30, now), bucket(10, 200, now)];
        assert_eq!(turn(&buckets, now), [10, 30]);
    }

    #[test]
    fn where_hardly_anybody_comes_all_ride_together() {
        let now = Instant::now();
        let buckets = vec![bucket(1, 10, now), bucket(1, 200, now)];
        let waiting = |rate| next(buckets.clone(), 50, time, rate, now).unwrap().waiting;
        assert_eq!((waiting(0.0), waiting(9.0), waiting(11.0)), (2, 2, 1), "in 200 ms");
    }

    #[test]
    fn other_classes_never_ride_together() {
        let now = Instant::now();
        let other = BatchKey::new(&Options::default(), 1);
        let buckets = [bucket(1, 10, now), Bucket { key: other, ..bucket(1, 10, now - MILLI) }];
        assert_eq!(next(buckets.to_vec(), 50, time, MANY, now).unwrap().waiting, 1);
    }

    #[test]
    fn whoever_names_the_model_rides_with_those_who_take_any() {
        let now = Instant::now();
        let any = bucket(1, 10, now);
        let named = Bucket { key: BatchKey { model: ModelId::new(1), ..any.key }, ..any };
        assert_eq!(next(vec![any, named], 50, time, MANY, now).unwrap().waiting, 2);
    }

    #[test]
    fn whoever_is_on_trial_rides_with_few_of_his_like() {
        let now = Instant::now();
        let any = bucket(20, 10, now);
        let few = Bucket { key: BatchKey { quarantine: Quarantine::Few, ..any.key }, since: now - MILLI, ..any };
        let candidate = next(vec![any, few], 50, |_| Duration::ZERO, MANY, now).unwrap();
        assert_eq!((candidate.quarantine(), candidate.waiting, candidate.demand.members), (Quarantine::Few, 20, 8));
    }

    #[test]
    fn short_ones_pass_long_ones_but_not_for_ever() {
        let start = Instant::now();
        let at = |millis: u32| start + MILLI * millis;
        // Short ones keep coming, and have always waited for 10 ms; a batch of theirs takes 10, one of the long ones 200.
        let turn_at =
            |now: Instant, long: usize| turn(&[bucket(10, 10, now - 10 * MILLI), bucket(long, 200, start)], now);
        assert_eq!(turn_at(at(100), 2), [10]);
        assert_eq!(turn_at(at(799), 2), [10]);
        assert_eq!(turn_at(at(800), 2), [200], "four times what their batch takes");
        assert_eq!(turn_at(at(239), 10), [10]);
        assert_eq!(turn_at(at(240), 10), [200], "the more they are the sooner they are due");
    }

    #[test]
    fn where_all_have_waited_for_too_long_the_oldest_goes_first() {
        let start = Instant::now();
        let now = start + 2000 * MILLI;
        let buckets = [bucket(49, 10, start + 100 * MILLI), bucket(2, 200, start)];
        assert_eq!(turn(&buckets, now), [200], "the short ones have the higher ratio");
    }

    #[test]
    fn with_nothing_measured_all_of_a_class_ride_together() {
        let now = Instant::now();
        let buckets = vec![bucket(30, 10, now), bucket(30, 1000, now)];
        let candidate = next(buckets, 50, |_| Duration::ZERO, MANY, now).unwrap();
        assert_eq!((candidate.buckets.len(), candidate.waiting, candidate.demand.members), (2, 60, 50));
    }
}
