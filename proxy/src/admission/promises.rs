//! Who was told to come back when, and what is kept for them. Plain data; the time is passed in, as time since a start.
//!
//! A queue that is full sends clients away. If all of them came back when it may just have drained, most would be sent
//! away again. So each is promised a time of its own, the earliest at which those who wait, and those who were promised an
//! earlier time, will have left it room, at the pace at which texts are served. `Retry-After` counts in whole seconds, so
//! a client that is sent away late in a second comes back late in another: the account is kept by eighths of a second,
//! and each client finds the next second in which its own eighth is not taken. And when its time has come, a part of the
//! queue is kept for who was promised it, so that newcomers do not fill it first.

use std::time::Duration;

use crate::metrics::count;

/// The longest that a client is asked to wait, in seconds.
pub(super) const LONGEST: u64 = 60;
/// Parts of a second in which the account is kept.
const PARTS: u64 = 8;
const PHASES: usize = 8;
const PART: Duration = Duration::from_millis(125);
/// For so many parts a place is kept; who comes later than that is a newcomer.
const KEPT: u64 = 3 * PARTS;
/// So many parts before it is due the queue begins to make room.
const AHEAD: u64 = PARTS;
/// A client may come so many parts too early: its clock may be a little fast.
const EARLY: u64 = 1;
/// A text is taken to need a little more time than it does, so that what was promised can be held.
const SLACK: f64 = 1.1;
/// What the latest part weighs in the share of those who come back.
const LATEST: f64 = 0.05;
/// Parts that the account has room for: those to come, the present one, and those past for which places are kept.
const PLACES: usize = 512;
const _: () = assert!(PHASES as u64 == PARTS && PART.as_millis() * PARTS as u128 == 1000);
const _: () = assert!(PLACES as u64 > LONGEST * PARTS + KEPT + 1);

/// The account.
#[derive(Debug)]
pub(super) struct Promises {
    /// Texts that are due in a part, by the part's remainder; those of past rounds are cleared as time goes on.
    due: [Due; PLACES],
    /// By the part's remainder within a second: from when on there may be room for one text yet.
    open: [u64; PHASES],
    /// Of those who were sent away, those who come back when they were told to, lately.
    obeyed: f64,
    /// All parts before this have been cleared.
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

/// The queue that clients are to come back to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backlog {
    /// Texts that wait.
    pub waiting: usize,
    /// How much of the engines' time each takes.
    pub each: Duration,
    /// So many may wait when somebody is told to come back.
    pub room: usize,
}

impl Backlog {
    /// Texts that are served within a part of a second.
    fn served(&self) -> f64 {
        PART.as_secs_f64() / (self.each.as_secs_f64() * SLACK).max(1e-9)
    }
}

fn part(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX) / 125
}

impl Promises {
    pub(super) const fn new() -> Self {
        Self { due: [Due::NONE; PLACES], open: [0; PHASES], obeyed: 1.0, cleared: 0 }
    }

    /// So many texts are sent away. After how many seconds they are to come back, 1 to 60. Where there is no room for them
    /// in all that time, they are told 60 and nothing is kept.
    pub(super) fn make(&mut self, texts: usize, now: Duration, backlog: &Backlog) -> u64 {
        let now = part(now);
        self.clear(now);
        let room = count(backlog.room.max(texts));
        let served = backlog.served();
        let phase = usize::try_from(now % PARTS).unwrap_or(0);
        let open = self.open[phase];
        if open > now + LONGEST * PARTS {
            return LONGEST;
        }
        // Those who are late may still come.
        let late: usize = (now.saturating_sub(KEPT)..now).map(|past| self.at(past).left()).sum();
        let mut waiting = count(backlog.waiting) + count(late) * self.obeyed;
        let mut next = now;
        for seconds in 1..=LONGEST {
            let then = now + seconds * PARTS;
            while next < then {
                waiting = self.later(waiting, next, served);
                next += 1;
            }
            if then >= open && self.has_room(texts, then, waiting, room, served) {
                self.at(then).promised += texts;
                if texts == 1 {
                    self.open[phase] = then;
                }
                return seconds;
            }
        }
        // Where there is none for one, there is none for whoever else is sent away in this part.
        if texts == 1 {
            self.open[phase] = now + LONGEST * PARTS + 1;
        }
        LONGEST
    }

    /// Texts that will wait after this part, where so many do before it.
    fn later(&mut self, waiting: f64, part: u64, served: f64) -> f64 {
        (waiting + count(self.at(part).left()) * self.obeyed - served).max(0.0)
    }

    /// Whether never more than `room` texts wait if `texts` come then, when so many wait.
    fn has_room(&mut self, texts: usize, then: u64, mut without: f64, room: f64, served: f64) -> bool {
        let mut with = without + count(texts) * self.obeyed;
        for part in then..=then + LONGEST * PARTS {
            if part >= self.cleared + PLACES as u64 {
                break;
            }
            if with + count(self.at(part).left()) * self.obeyed > room {
                return false;
            }
            (with, without) = (self.later(with, part, served), self.later(without, part, served));
            if with - without < 1e-6 {
                break;
            }
        }
        true
    }

    /// Texts for which places are kept now.
    pub(super) fn kept(&mut self, now: Duration) -> usize {
        let now = part(now);
        self.clear(now);
        (now.saturating_sub(KEPT)..=now + AHEAD).map(|part| self.at(part).left()).sum()
    }

    /// Whether so many texts that were told to come back at `due` may take kept places now; they are kept no longer then.
    pub(super) fn claim(&mut self, texts: usize, due: Duration, now: Duration) -> bool {
        let (due, now) = (part(due), part(now));
        self.clear(now);
        let is_time = due <= now + EARLY && due + KEPT >= now;
        let is_kept = is_time && self.at(due).left() >= texts;
        if is_kept {
            self.at(due).claimed += texts;
        }
        is_kept
    }

    /// Whether nothing is kept, now or later.
    pub(super) fn is_empty(&self) -> bool {
        self.due.iter().all(|due| due.left() == 0)
    }

    fn at(&mut self, part: u64) -> &mut Due {
        #[allow(clippy::cast_possible_truncation, reason = "a remainder of 512")]
        let place = (part % PLACES as u64) as usize;
        &mut self.due[place]
    }

    fn clear(&mut self, now: u64) {
        let until = now.saturating_sub(KEPT);
        if until <= self.cleared {
            return;
        }
        for part in self.cleared.max(until.saturating_sub(PLACES as u64))..until {
            let due = std::mem::replace(self.at(part), Due::NONE);
            if due.promised > 0 {
                let share = count(due.claimed.min(due.promised)) / count(due.promised);
                self.obeyed += (share - self.obeyed) * LATEST;
            }
        }
        if until / PARTS > self.cleared / PARTS {
            // What was taken may be free again, where the pace or the share of those who come back is another.
            self.open = [0; PHASES];
        }
        self.cleared = until;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// A queue of 2,000, half of which is kept.
    fn full(each: Duration) -> Backlog {
        Backlog { waiting: 2000, each, room: 1000 }
    }

    #[test]
    fn each_is_told_a_time_of_its_own() {
        let mut promises = Promises::new();
        let told: Vec<u64> = (0..4000).map(|_| promises.make(1, seconds(100), &full(MILLI))).collect();
        assert_eq!((told[0], told[3999]), (2, 6));
        assert!(told.is_sorted());
        // A list counts as what it holds.
        assert_eq!(promises.make(4000, seconds(100), &full(MILLI)), 7);
    }

    /// A queue of 500, of which half is kept, that serves a text a millisecond; so many come in a millisecond. Whether all
    /// who come back when they were told to find a place, and how many do, in ten seconds.
    fn overloaded(coming: usize) -> (bool, usize) {
        const BOUND: usize = 500;
        const LASTING: usize = 10_000;
        let mut promises = Promises::new();
        let mut back = vec![Vec::new(); LASTING];
        let (mut waiting, mut came_back) = (0_usize, 0);
        for milli in 0..LASTING {
            let now = seconds(100) + MILLI * u32::try_from(milli).unwrap();
            waiting = waiting.saturating_sub(1);
            for due in std::mem::take(&mut back[milli]) {
                if !promises.claim(1, due, now) || waiting == BOUND {
                    return (false, came_back);
                }
                (waiting, came_back) = (waiting + 1, came_back + 1);
            }
            for _ in 0..coming {
                if waiting + promises.kept(now).min(BOUND / 2) < BOUND {
                    waiting += 1;
                    continue;
                }
                let told = promises.make(1, now, &Backlog { waiting, each: MILLI, room: BOUND / 2 * 3 / 4 });
                if let Some(then) = back.get_mut(milli + usize::try_from(told).unwrap() * 1000) {
                    then.push(now + seconds(told));
                }
            }
        }
        (true, came_back)
    }

    #[test]
    fn all_who_come_back_when_told_find_a_place_and_little_time_is_left_to_newcomers() {
        let (twice, tenfold) = (overloaded(2), overloaded(10));
        assert!(twice.0 && twice.1 > 7000, "{twice:?}");
        assert!(tenfold.0 && tenfold.1 > 7000, "{tenfold:?}");
    }

    #[test]
    fn a_list_for_which_there_is_no_room_says_nothing_of_who_comes_alone() {
        let mut promises = Promises::new();
        let slow = full(100 * MILLI);
        assert_eq!(promises.make(1_000_000, seconds(100), &slow), LONGEST);
        let alone = promises.make(1, seconds(100), &Backlog { waiting: 1000, ..slow });
        assert!(alone < 10, "{alone}");
    }

    #[test]
    fn nobody_is_sent_away_for_more_than_a_minute() {
        let mut promises = Promises::new();
        let endless = Backlog { waiting: usize::MAX, each: Duration::MAX, room: 1 };
        assert_eq!(promises.make(1, seconds(5), &endless), LONGEST);
        assert!(promises.is_empty(), "nothing is promised");
        let none = Backlog { waiting: 0, ..full(MILLI) };
        assert_eq!(promises.make(1, seconds(90), &none), 1, "and it does not last");
    }

    #[test]
    fn places_are_kept_for_a_while_from_the_promised_time_on() {
        let mut promises = Promises::new();
        assert_eq!(promises.make(3, seconds(100), &full(2 * MILLI)), 3);
        let tenths = |n: u32| seconds(102) + MILLI * 100 * n;
        assert_eq!(promises.kept(seconds(101)), 0);
        assert_eq!(promises.kept(tenths(0)), 3, "the queue begins to make room");
        assert!(!promises.claim(1, tenths(10), tenths(8)), "too early");
        assert_eq!(promises.kept(tenths(10)), 3);
        assert!(promises.claim(1, tenths(10), tenths(9)), "a little early");
        assert!(promises.claim(1, tenths(10), tenths(39)), "late");
        assert!(!promises.claim(2, tenths(10), tenths(39)), "more than is kept");
        assert_eq!(promises.kept(tenths(40)), 1);
        assert!(!promises.claim(1, tenths(10), tenths(42)), "too late");
        assert_eq!(promises.kept(tenths(42)), 0);
        assert!(promises.is_empty());
    }

    #[test]
    fn where_nobody_comes_back_nobody_is_made_to_wait_for_it() {
        let mut promises = Promises::new();
        let slow = Backlog { waiting: 100, ..full(10 * MILLI) };
        let told: Vec<u64> = (100..400).map(|now| promises.make(1000, seconds(now), &slow)).collect();
        assert!(told[50] > 30, "{told:?}");
        assert_eq!(told[299], 1, "{told:?}");
        let mut obeyed = Promises::new();
        obeyed.make(1, seconds(100), &full(MILLI));
        assert!(obeyed.claim(1, seconds(102), seconds(102)));
        obeyed.kept(seconds(110));
        assert!(obeyed.obeyed > 0.99);
    }

    #[test]
    fn a_long_silence_leaves_nothing_behind() {
        let mut promises = Promises::new();
        for second in 0..100 {
            promises.make(1, seconds(second), &full(MILLI));
        }
        assert_eq!(promises.kept(seconds(1_000_000)), 0);
        assert!(promises.is_empty());
    }
}
