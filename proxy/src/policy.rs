//! Whether the next batch leaves now. A pure function of what is known at an instant.
//!
//! The rule is work-conserving: a free credit takes what waits. Holding pays only where companions are known to be
//! coming (their requests are being read at this moment) and the wait is short beside what a batch costs: the newcomer
//! would otherwise wait for the whole batch. `--batch-timeout` is the upper bound, never the price.

use std::time::Duration;

use tokio::time::Instant;

/// A hold may cost at most this share of what a batch has been costing lately.
const HOLD_SHARE: u32 = 10;

/// What is known when a credit is free and somebody waits.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Jobs that could leave together.
    pub waiting: usize,
    /// Since when the oldest of them waits.
    pub since: Instant,
    /// Requests that are being read at this moment.
    pub arriving: usize,
    /// The most members of a batch.
    pub max_batch_size: usize,
    /// The longest a request may be held.
    pub batch_timeout: Duration,
    /// What a batch has been costing lately, if any has been seen.
    pub batch_cost: Option<Duration>,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The batch leaves.
    Go,
    /// It waits for companions, to this instant at the latest. Look again at every arrival.
    HoldUntil(Instant),
}

/// Whether the next batch leaves now.
pub fn decide(view: &View, now: Instant) -> Decision {
    let hold = view.batch_cost.unwrap_or_default() / HOLD_SHARE;
    let until = view.since + hold.min(view.batch_timeout);
    if view.arriving > 0 && view.waiting < view.max_batch_size && now < until {
        Decision::HoldUntil(until)
    } else {
        Decision::Go
    }
}

/// A mean that forgets: the latest value weighs an eighth.
pub fn smooth(mean: Option<Duration>, latest: Duration) -> Duration {
    match mean {
        Some(mean) => (mean * 7 + latest) / 8,
        None => latest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(since: Instant) -> View {
        View {
            waiting: 3,
            since,
            arriving: 2,
            max_batch_size: 50,
            batch_timeout: Duration::from_millis(100),
            batch_cost: Some(Duration::from_millis(50)),
        }
    }

    #[test]
    fn with_nobody_coming_a_request_goes_at_once() {
        let now = Instant::now();
        assert_eq!(decide(&View { arriving: 0, ..view(now) }, now), Decision::Go);
    }

    #[test]
    fn a_full_batch_goes_at_once() {
        let now = Instant::now();
        assert_eq!(decide(&View { waiting: 50, ..view(now) }, now), Decision::Go);
    }

    #[test]
    fn a_hold_costs_a_tenth_of_a_batch_at_most() {
        let now = Instant::now();
        assert_eq!(decide(&view(now), now), Decision::HoldUntil(now + Duration::from_millis(5)));
        assert_eq!(decide(&view(now), now + Duration::from_millis(5)), Decision::Go);
    }

    #[test]
    fn the_batch_timeout_bounds_a_hold() {
        let now = Instant::now();
        let slow = View { batch_cost: Some(Duration::from_secs(60)), ..view(now) };
        assert_eq!(decide(&slow, now), Decision::HoldUntil(now + Duration::from_millis(100)));
    }

    #[test]
    fn nothing_is_held_before_a_batch_has_been_measured() {
        let now = Instant::now();
        assert_eq!(decide(&View { batch_cost: None, ..view(now) }, now), Decision::Go);
    }
}
