//! Predicts how many texts come soon, from how long clients take from an answer to their next request.
//!
//! A client that was just answered is likely to return soon. A histogram of return times gives the probability that a
//! client that has been away for some time returns within the next span (the hazard rate of survival analysis). Some
//! clients open a connection for each request. So a request on a new connection is attributed to the client that was
//! answered last among those that have closed their connections. If there is none, it comes from a *new client*. These
//! cannot be predicted one by one, so they count by their rate. Plain data; the instant is passed in. Counts are texts.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::numbers::as_f64;

/// The end of the first bucket, in seconds. Each further bucket ends √2 times as late as the one before.
const FIRST_END: f64 = 62.5e-6;
const BUCKETS: usize = 36;
/// A client that has not returned for this long is not expected any more. Longer than the end of the last bucket.
const HORIZON: Duration = Duration::from_secs(16);
/// The number of texts that the histogram remembers. At twice as many, all counts are halved.
const MEMORY: f64 = 256.0;
/// The most cohorts of answers. With more, the two oldest are merged.
const COHORTS: usize = 128;
/// Seconds over which the rate of new clients' texts is averaged.
const RATE_WINDOW: f64 = 1.0;

/// Texts that were answered at one instant and whose clients have not returned.
#[derive(Clone, Copy, Debug)]
struct Cohort {
    at: Instant,
    texts: usize,
    /// The part of `texts` whose clients have closed their connections.
    gone: usize,
}

/// Predicts how many texts come soon, from earlier answers and requests.
#[derive(Debug)]
pub struct Returns {
    /// The answered texts whose clients may return, the oldest first.
    cohorts: VecDeque<Cohort>,
    /// The texts whose clients returned within each bucket or an earlier one.
    returned: [f64; BUCKETS],
    /// The texts that were answered and whose clients have returned or are not expected any more.
    answered: f64,
    new_texts: f64,
    new_texts_at: Option<Instant>,
}

impl Default for Returns {
    fn default() -> Self {
        Self { cohorts: VecDeque::new(), returned: [0.0; BUCKETS], answered: 0.0, new_texts: 0.0, new_texts_at: None }
    }
}

impl Returns {
    /// Records that texts were answered. Their clients may return.
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

    /// Records that a client that was answered at `answered` has sent this number of texts.
    pub fn returned(&mut self, texts: usize, answered: Instant, now: Instant) {
        // The time counts from the cohort's instant, which may be a little before the client's own answer.
        let since = match self.cohort(answered) {
            Some(cohort) => {
                cohort.texts = cohort.texts.saturating_sub(texts);
                cohort.at
            }
            None => answered,
        };
        self.count(Some(now.saturating_duration_since(since)), texts);
    }

    /// Records that a client that was answered at `answered` has closed its connection. It may return on another one.
    pub fn left(&mut self, answered: Instant) {
        if let Some(cohort) = self.cohort(answered) {
            cohort.gone = (cohort.gone + 1).min(cohort.texts);
        }
    }

    /// Records that texts came on a new connection.
    pub fn came(&mut self, texts: usize, now: Instant) {
        if let Some(cohort) = self.cohorts.iter_mut().rev().find(|cohort| cohort.gone > 0) {
            let at = cohort.at;
            cohort.gone = cohort.gone.saturating_sub(texts);
            cohort.texts = cohort.texts.saturating_sub(texts);
            return self.count(Some(now.saturating_duration_since(at)), texts);
        }
        self.new_texts = self.recent_new_texts(now) + as_f64(texts);
        self.new_texts_at = Some(now);
    }

    /// The number of texts that are expected within `ahead` from now.
    pub fn expected(&self, ahead: Duration, now: Instant) -> f64 {
        self.returning(ahead, now) + self.new_clients_per_second(now) * ahead.as_secs_f64()
    }

    /// The part of the expected texts whose clients were answered before.
    pub fn returning(&self, ahead: Duration, now: Instant) -> f64 {
        self.cohorts
            .iter()
            .filter(|cohort| cohort.texts > 0)
            .map(|cohort| as_f64(cohort.texts) * self.probability(now.saturating_duration_since(cohort.at), ahead))
            .sum()
    }

    /// The texts of new clients in a second.
    pub fn new_clients_per_second(&self, now: Instant) -> f64 {
        self.recent_new_texts(now) / RATE_WINDOW
    }

    /// How many of `texts` that will be answered `after` from now are expected back within `ahead` from now.
    pub fn expected_of(&self, texts: usize, after: Duration, ahead: Duration) -> f64 {
        as_f64(texts) * self.probability(Duration::ZERO, ahead.saturating_sub(after))
    }

    /// The probability that a client that was answered `age` ago and has not returned does so within `ahead`.
    fn probability(&self, age: Duration, ahead: Duration) -> f64 {
        let away = self.answered - below(&self.returned, age);
        let coming = below(&self.returned, age + ahead) - below(&self.returned, age);
        if away > 0.0 { (coming / away).clamp(0.0, 1.0) } else { 0.0 }
    }

    fn recent_new_texts(&self, now: Instant) -> f64 {
        let since = self.new_texts_at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        self.new_texts * (-since / RATE_WINDOW).exp()
    }

    /// The cohort of a text that was answered at `answered`: the last one that is not later.
    fn cohort(&mut self, answered: Instant) -> Option<&mut Cohort> {
        let after = self.cohorts.partition_point(|cohort| cohort.at <= answered);
        after.checked_sub(1).and_then(|at| self.cohorts.get_mut(at))
    }

    /// Counts texts whose clients have returned after this time, or are not expected any more (`None`).
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

/// The place of a time on the scale of buckets: 0 at its start, 1 at the end of the first bucket.
fn place(time: Duration) -> f64 {
    let ratio = time.as_secs_f64() / FIRST_END;
    if ratio <= 1.0 { ratio } else { 1.0 + 2.0 * ratio.log2() }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, and bounded")]
fn bucket(time: Duration) -> usize {
    (place(time) as usize).min(BUCKETS - 1)
}

/// How many texts returned before `time`, interpolated within its bucket.
fn below(counts: &[f64; BUCKETS], time: Duration) -> f64 {
    let bucket = bucket(time);
    let before = bucket.checked_sub(1).map_or(0.0, |before| counts[before]);
    before + (counts[bucket] - before) * (place(time) - as_f64(bucket)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    /// Forty clients that returned about two milliseconds after each answer, ten times.
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
    fn without_any_history_no_texts_are_expected() {
        let mut returns = Returns::default();
        let now = Instant::now();
        assert_eq!(returns.expected(Duration::from_secs(1), now).to_bits(), 0.0f64.to_bits());
        returns.answered(3, now);
        assert_eq!(returns.expected(Duration::from_secs(1), now).to_bits(), 0.0f64.to_bits());
    }

    #[test]
    fn clients_that_were_just_answered_are_expected_as_fast_as_before() {
        let (mut returns, now) = forty_closed_loops();
        returns.answered(40, now);
        assert!(returns.expected(MILLI / 2, now) < 4.0);
        assert!(returns.expected(4 * MILLI, now) > 36.0);
        assert!(returns.expected_of(40, 2 * MILLI, 6 * MILLI) > 36.0);
        assert!(returns.expected_of(40, 2 * MILLI, 2 * MILLI) < 1.0);
    }

    #[test]
    fn clients_that_have_returned_are_not_expected_again() {
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
    fn clients_that_have_stayed_away_for_long_are_not_expected() {
        let (mut returns, now) = forty_closed_loops();
        returns.answered(40, now);
        assert!(returns.expected(10 * MILLI, now + 50 * MILLI) < 1.0);
    }

    #[test]
    fn clients_that_close_after_each_answer_and_do_not_return_are_not_expected() {
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
    fn clients_that_open_a_connection_for_each_request_are_expected_too() {
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
        assert!(returns.new_clients_per_second(now) < 0.1, "none of them is a new client");
    }

    #[test]
    fn new_clients_are_expected_at_their_rate() {
        let mut returns = Returns::default();
        let now = Instant::now();
        for k in 0..5000 {
            returns.came(1, now + MILLI * k);
        }
        let expected = returns.expected(10 * MILLI, now + 5000 * MILLI);
        assert!((9.0..=11.0).contains(&expected), "{expected}");
        assert!(returns.expected(10 * MILLI, now + 15000 * MILLI) < 0.01, "the rate fades");
    }

    #[test]
    fn clients_that_did_not_return_lower_the_expectation() {
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
    fn the_number_of_cohorts_is_bounded() {
        let mut returns = Returns::default();
        let now = Instant::now();
        for k in 0..10_000 {
            returns.answered(1, now + Duration::from_micros(k));
        }
        assert!(returns.cohorts.len() <= COHORTS);
        assert_eq!(returns.cohorts.iter().map(|cohort| cohort.texts).sum::<usize>(), 10_000);
    }
}
