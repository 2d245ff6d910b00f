//! Who is likely to come back soon: learned from how long clients take from an answer to their next request.
//!
//! A client that was just answered is the best hint of a companion on its way. How long clients take is learned as a
//! histogram of return times, and whoever has not returned yet is expected according to it: the hazard rate of survival
//! analysis. Some clients open a connection for each request: whoever comes on a new one is taken for the last of those
//! who have closed theirs. Requests beyond that cannot be foreseen one by one, so they count by their rate. Plain data;
//! the instant is passed in. Counts are texts.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::numbers::as_f64;

/// The first bucket ends here; each further one is √2 times as long as the one before.
const SHORTEST: f64 = 62.5e-6;
const BUCKETS: usize = 36;
/// Whoever has not returned for so long is not waited for any more. Beyond the last bucket.
const HORIZON: Duration = Duration::from_secs(16);
/// Texts that the histogram remembers; at twice as many, all counts are halved.
const MEMORY: f64 = 256.0;
/// Answers told apart by their age. With more, the two oldest are taken for one.
const COHORTS: usize = 128;
/// Seconds over which the rate of unforeseen requests is averaged.
const RATE_WINDOW: f64 = 1.0;

/// Texts that were answered at one instant and whose clients have not returned.
#[derive(Clone, Copy, Debug)]
struct Cohort {
    at: Instant,
    texts: usize,
    /// Of them, those whose clients have closed their connections.
    gone: usize,
}

/// What was learned, and who may come.
#[derive(Debug)]
pub struct Returns {
    /// The oldest first.
    cohorts: VecDeque<Cohort>,
    /// Returned within each bucket or before.
    returned: [f64; BUCKETS],
    /// Of all that were answered: returned, or waited for in vain.
    answered: f64,
    unforeseen: f64,
    unforeseen_at: Option<Instant>,
}

impl Default for Returns {
    fn default() -> Self {
        Self { cohorts: VecDeque::new(), returned: [0.0; BUCKETS], answered: 0.0, unforeseen: 0.0, unforeseen_at: None }
    }
}

impl Returns {
    /// Texts were answered; their clients may return.
    pub fn answered(&mut self, texts: usize, now: Instant) {
        while let Some(oldest) = self.cohorts.front()
            && now.saturating_duration_since(oldest.at) > HORIZON
        {
            self.count(None, oldest.texts);
            self.cohorts.pop_front();
        }
        match self.cohorts.back_mut() {
            Some(latest) if latest.at == now => latest.texts += texts,
            _ => self.cohorts.push_back(Cohort { at: now, texts, gone: 0 }),
        }
        if self.cohorts.len() > COHORTS
            && let Some(oldest) = self.cohorts.pop_front()
            && let Some(next) = self.cohorts.front_mut()
        {
            next.texts += oldest.texts;
            next.gone += oldest.gone;
        }
    }

    /// A client that was answered at `answered` has sent so many texts.
    pub fn returned(&mut self, texts: usize, answered: Instant, now: Instant) {
        // A client's own answer may have left a little later than the first of its cohort.
        let since = match self.cohort(answered) {
            Some(cohort) => {
                cohort.texts = cohort.texts.saturating_sub(texts);
                cohort.at
            }
            None => answered,
        };
        self.count(Some(now.saturating_duration_since(since)), texts);
    }

    /// A client that was answered at `answered` has closed its connection. It may come back on another.
    pub fn left(&mut self, answered: Instant) {
        if let Some(cohort) = self.cohort(answered) {
            cohort.gone = (cohort.gone + 1).min(cohort.texts);
        }
    }

    /// Texts came on a new connection.
    pub fn came(&mut self, texts: usize, now: Instant) {
        if let Some(cohort) = self.cohorts.iter_mut().rev().find(|cohort| cohort.gone > 0) {
            let at = cohort.at;
            cohort.gone = cohort.gone.saturating_sub(texts);
            cohort.texts = cohort.texts.saturating_sub(texts);
            return self.count(Some(now.saturating_duration_since(at)), texts);
        }
        self.unforeseen = self.fading(now) + as_f64(texts);
        self.unforeseen_at = Some(now);
    }

    /// Texts expected to come within `ahead` from now.
    pub fn expected(&self, ahead: Duration, now: Instant) -> f64 {
        self.returning(ahead, now) + self.new_clients_per_second(now) * ahead.as_secs_f64()
    }

    /// Of them, those whose clients were answered before.
    pub fn returning(&self, ahead: Duration, now: Instant) -> f64 {
        self.cohorts
            .iter()
            .filter(|cohort| cohort.texts > 0)
            .map(|cohort| as_f64(cohort.texts) * self.share(now.saturating_duration_since(cohort.at), ahead))
            .sum()
    }

    /// The rate of those who could not be foreseen.
    pub fn new_clients_per_second(&self, now: Instant) -> f64 {
        self.fading(now) / RATE_WINDOW
    }

    /// Of texts that will be answered `after` from now, those expected back within `ahead` from now.
    pub fn expected_of(&self, texts: usize, after: Duration, ahead: Duration) -> f64 {
        as_f64(texts) * self.share(Duration::ZERO, ahead.saturating_sub(after))
    }

    /// The share of those who have been gone for `age` that returns within `ahead`.
    fn share(&self, age: Duration, ahead: Duration) -> f64 {
        let away = self.answered - below(&self.returned, age);
        let coming = below(&self.returned, age + ahead) - below(&self.returned, age);
        if away > 0.0 { (coming / away).clamp(0.0, 1.0) } else { 0.0 }
    }

    fn fading(&self, now: Instant) -> f64 {
        let since = self.unforeseen_at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        self.unforeseen * (-since / RATE_WINDOW).exp()
    }

    /// The cohort that was answered last before `answered`.
    fn cohort(&mut self, answered: Instant) -> Option<&mut Cohort> {
        let after = self.cohorts.partition_point(|cohort| cohort.at <= answered);
        after.checked_sub(1).and_then(|at| self.cohorts.get_mut(at))
    }

    /// Texts whose clients have returned after so long, or never.
    fn count(&mut self, after: Option<Duration>, texts: usize) {
        if let Some(after) = after {
            self.returned[bucket(after)..].iter_mut().for_each(|count| *count += as_f64(texts));
        }
        self.answered += as_f64(texts);
        if self.answered > 2.0 * MEMORY {
            self.answered /= 2.0;
            self.returned.iter_mut().for_each(|count| *count /= 2.0);
        }
    }
}

/// Where a time lies on the scale of buckets: 0 at its start, 1 at the end of the first.
fn place(time: Duration) -> f64 {
    let ratio = time.as_secs_f64() / SHORTEST;
    if ratio <= 1.0 { ratio } else { 1.0 + 2.0 * ratio.log2() }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, and bounded")]
fn bucket(time: Duration) -> usize {
    (place(time) as usize).min(BUCKETS - 1)
}

/// The count of all that is below `time`: of its own bucket the part that is.
fn below(counts: &[f64; BUCKETS], time: Duration) -> f64 {
    let bucket = bucket(time);
    let before = bucket.checked_sub(1).map_or(0.0, |before| counts[before]);
    before + (counts[bucket] - before) * (place(time) - as_f64(bucket)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    /// Forty clients that come back about two milliseconds after each answer, ten times over.
    fn forty_closed_loops() -> (Returns, Instant) {
        let mut returns = Returns::default();
        let mut now = Instant::now();
        for _ in 0..10 {
            let answered = now;
            returns.answered(40, answered);
            for client in 0..40u32 {
                now = answered + MILLI + Duration::from_micros(50) * client;
                returns.returned(1, answered, now);
            }
            now += 100 * MILLI;
        }
        (returns, now)
    }

    #[test]
    fn with_nothing_known_nobody_is_expected() {
        let mut returns = Returns::default();
        let now = Instant::now();
        assert_eq!(returns.expected(Duration::from_secs(1), now).to_bits(), 0.0f64.to_bits());
        returns.answered(3, now);
        assert_eq!(returns.expected(Duration::from_secs(1), now).to_bits(), 0.0f64.to_bits());
    }

    #[test]
    fn whoever_was_just_answered_is_expected_back_as_fast_as_before() {
        let (mut returns, now) = forty_closed_loops();
        returns.answered(40, now);
        assert!(returns.expected(MILLI / 2, now) < 4.0);
        assert!(returns.expected(4 * MILLI, now) > 36.0);
        assert!(returns.expected_of(40, 2 * MILLI, 6 * MILLI) > 36.0);
        assert!(returns.expected_of(40, 2 * MILLI, 2 * MILLI) < 1.0);
    }

    #[test]
    fn whoever_has_returned_is_not_expected_again() {
        let (mut returns, now) = forty_closed_loops();
        assert!(returns.expected(Duration::from_secs(1), now) < 0.1);
        returns.answered(40, now);
        for client in 0..30u32 {
            returns.returned(1, now, now + MILLI + Duration::from_micros(50) * client);
        }
        let expected = returns.expected(4 * MILLI, now + 2 * MILLI);
        assert!((8.0..=10.0).contains(&expected), "{expected}");
    }

    #[test]
    fn whoever_has_stayed_away_for_long_is_not_expected() {
        let (mut returns, now) = forty_closed_loops();
        returns.answered(40, now);
        assert!(returns.expected(10 * MILLI, now + 50 * MILLI) < 1.0);
    }

    #[test]
    fn whoever_closes_after_each_answer_and_comes_no_more_is_not_expected() {
        let mut returns = Returns::default();
        let mut now = Instant::now();
        for _ in 0..100 {
            returns.answered(1, now);
            returns.left(now);
            now += Duration::from_secs(20);
        }
        returns.answered(10, now);
        assert!(returns.expected(10 * MILLI, now) < 0.1);
    }

    #[test]
    fn whoever_opens_a_connection_for_each_request_is_expected_back_too() {
        let mut returns = Returns::default();
        let mut now = Instant::now();
        for _ in 0..10 {
            returns.answered(40, now);
            (0..40).for_each(|_| returns.left(now));
            (0..40).for_each(|_| returns.came(1, now + 2 * MILLI));
            now += 100 * MILLI;
        }
        returns.answered(40, now);
        assert!(returns.expected(4 * MILLI, now) > 36.0);
        assert!(returns.new_clients_per_second(now) < 0.1, "none of them is a stranger");
    }

    #[test]
    fn strangers_are_expected_at_their_rate() {
        let mut returns = Returns::default();
        let now = Instant::now();
        for k in 0..5000 {
            returns.came(1, now + MILLI * k);
        }
        let expected = returns.expected(10 * MILLI, now + 5000 * MILLI);
        assert!((9.0..=11.0).contains(&expected), "{expected}");
        assert!(returns.expected(10 * MILLI, now + 15000 * MILLI) < 0.01, "it fades");
    }

    #[test]
    fn those_in_vain_waited_for_count_as_such() {
        let mut returns = Returns::default();
        let mut now = Instant::now();
        for k in 0..200 {
            returns.answered(1, now);
            if k % 2 == 0 {
                returns.returned(1, now, now + MILLI);
            }
            now += Duration::from_secs(20);
        }
        returns.answered(10, now);
        let expected = returns.expected(10 * MILLI, now);
        assert!((4.0..=6.0).contains(&expected), "{expected}");
    }

    #[test]
    fn memory_is_bounded_whatever_comes() {
        let mut returns = Returns::default();
        let now = Instant::now();
        for k in 0..10_000 {
            returns.answered(1, now + Duration::from_micros(k));
        }
        assert!(returns.cohorts.len() <= COHORTS);
        assert_eq!(returns.cohorts.iter().map(|cohort| cohort.texts).sum::<usize>(), 10_000);
    }
}
