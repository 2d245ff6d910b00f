//! Who was told to come back when, and what is kept for them. Plain data; the time is passed in, as time since a start.
//!
//! A queue that is full sends clients away. If all of them came back when it may just have drained, most would be sent
//! away again. So each is promised a time of its own: the texts sent away queue up on a clock that moves on by the time
//! which the engines take for each (a virtual scheduling algorithm, as in ITU-T Recommendation I.371, Annex A). And when
//! that time has come, a part of the queue is kept for who was promised it, so that newcomers do not fill it first.

use std::time::Duration;

use crate::metrics::count;

/// The longest that a client is asked to wait, in seconds.
pub(super) const LONGEST: u64 = 60;
/// For so many seconds a place is kept; who comes later than that is a newcomer.
const KEPT: u64 = 3;
/// So many seconds before it is due the queue begins to make room.
const AHEAD: u64 = 1;
/// The clock moves on by a little more than what a text takes, so that what was promised can be held.
const SLACK: f64 = 1.1;
/// What the latest second weighs in the share of those who come back.
const LATEST: f64 = 0.3;
const SECONDS: usize = 64;

/// The account.
#[derive(Debug)]
pub(super) struct Promises {
    /// When all that were sent away will have been served.
    served: Duration,
    /// Texts that are due in a second, by the second's remainder; those of past rounds are cleared as time goes on.
    due: [Due; SECONDS],
    /// Of those who were sent away, those who come back when they were told to, lately.
    obeyed: f64,
    /// All seconds before this have been cleared.
    cleared: u64,
}

#[derive(Clone, Copy, Debug)]
struct Due {
    promised: usize,
    claimed: usize,
}

impl Due {
    const NONE: Self = Self { promised: 0, claimed: 0 };

    fn left(self) -> usize {
        self.promised.saturating_sub(self.claimed)
    }
}

impl Promises {
    pub(super) const fn new() -> Self {
        Self { served: Duration::ZERO, due: [Due::NONE; SECONDS], obeyed: 1.0, cleared: 0 }
    }

    /// So many texts are sent away; what waits will have been served after `backlog`, and each text takes `each` of the
    /// engines' time. After how many seconds they are to come back, 1 to 60.
    pub(super) fn make(&mut self, texts: usize, now: Duration, backlog: Duration, each: Duration) -> u64 {
        self.clear(now);
        let longest = now + Duration::from_secs(LONGEST);
        let each = each.min(Duration::from_secs(LONGEST)).mul_f64(self.obeyed * SLACK);
        let taken = each.saturating_mul(u32::try_from(texts).unwrap_or(u32::MAX));
        self.served = self.served.max(now.saturating_add(backlog)).saturating_add(taken).min(longest);
        let wait = self.served.saturating_sub(now).as_millis().div_ceil(1000);
        let seconds = u64::try_from(wait).unwrap_or(LONGEST).clamp(1, LONGEST);
        self.second(now.as_secs() + seconds).promised += texts;
        seconds
    }

    /// Texts for which places are kept now.
    pub(super) fn kept(&mut self, now: Duration) -> usize {
        self.clear(now);
        let now = now.as_secs();
        (now.saturating_sub(KEPT)..=now + AHEAD).map(|second| self.second(second).left()).sum()
    }

    /// Whether so many texts that were told to come back at `due` may take kept places now; they are kept no longer then.
    pub(super) fn claim(&mut self, texts: usize, due: Duration, now: Duration) -> bool {
        self.clear(now);
        let is_time = due.as_secs() <= now.as_secs() && due.as_secs() + KEPT >= now.as_secs();
        if is_time {
            self.second(due.as_secs()).claimed += texts;
        }
        is_time
    }

    /// Whether nothing is kept, now or later.
    pub(super) fn is_empty(&self) -> bool {
        self.due.iter().all(|due| due.left() == 0)
    }

    fn second(&mut self, second: u64) -> &mut Due {
        let places = self.due.len() as u64;
        #[allow(clippy::cast_possible_truncation, reason = "a remainder of 64")]
        let place = (second % places) as usize;
        &mut self.due[place]
    }

    fn clear(&mut self, now: Duration) {
        let until = now.as_secs().saturating_sub(KEPT);
        let first = self.cleared.max(until.saturating_sub(SECONDS as u64));
        for second in first..until {
            let due = std::mem::replace(self.second(second), Due::NONE);
            if due.promised > 0 {
                let share = count(due.claimed.min(due.promised)) / count(due.promised);
                self.obeyed += (share - self.obeyed) * LATEST;
            }
        }
        self.cleared = self.cleared.max(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn each_is_told_a_time_of_its_own() {
        let mut promises = Promises::new();
        let told: Vec<u64> = (0..4000).map(|_| promises.make(1, seconds(100), seconds(2), MILLI)).collect();
        assert_eq!((told[0], told[3999]), (3, 7));
        assert!(told.is_sorted());
        // A list counts as what it holds.
        assert_eq!(promises.make(4000, seconds(100), seconds(2), MILLI), 11);
    }

    #[test]
    fn nobody_is_sent_away_for_more_than_a_minute() {
        let mut promises = Promises::new();
        assert_eq!(promises.make(1, seconds(5), seconds(1000), MILLI), LONGEST);
        assert_eq!(promises.make(1, seconds(5), Duration::MAX, Duration::MAX), LONGEST);
        assert_eq!(promises.make(1, seconds(90), Duration::ZERO, MILLI), 1, "and it does not last");
    }

    #[test]
    fn places_are_kept_for_a_while_from_the_promised_second_on() {
        let mut promises = Promises::new();
        assert_eq!(promises.make(3, seconds(100), seconds(2), MILLI), 3);
        assert_eq!(promises.kept(seconds(101)), 0);
        assert_eq!(promises.kept(seconds(102)), 3, "the queue begins to make room");
        assert!(!promises.claim(1, seconds(103), seconds(102)), "too early");
        assert_eq!(promises.kept(seconds(103)), 3);
        assert!(promises.claim(1, seconds(103), seconds(104)));
        assert_eq!(promises.kept(seconds(106)), 2);
        assert!(!promises.claim(1, seconds(103), seconds(107)), "too late");
        assert_eq!(promises.kept(seconds(107)), 0);
        assert!(promises.is_empty());
    }

    #[test]
    fn where_nobody_comes_back_nobody_is_made_to_wait_for_it() {
        let mut promises = Promises::new();
        let told: Vec<u64> = (100..300).map(|now| promises.make(1000, seconds(now), seconds(1), 10 * MILLI)).collect();
        assert_eq!((told[0], told[50], told[199]), (12, LONGEST, 1));
        let mut obeyed = Promises::new();
        obeyed.make(1, seconds(100), seconds(1), MILLI);
        assert!(obeyed.claim(1, seconds(102), seconds(102)));
        obeyed.kept(seconds(110));
        assert!(obeyed.obeyed > 0.99);
    }

    #[test]
    fn a_long_silence_leaves_nothing_behind() {
        let mut promises = Promises::new();
        for second in 0..100 {
            promises.make(1, seconds(second), Duration::ZERO, MILLI);
        }
        assert_eq!(promises.kept(seconds(1_000_000)), 0);
        assert!(promises.is_empty());
    }
}
