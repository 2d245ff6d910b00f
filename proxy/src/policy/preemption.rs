//! When a batch that has shrunk gives way to those who wait. Plain data.
//!
//! A batch ends with its longest member. When most of its members have ended, the few that are left hold the engine for a
//! long time and many wait. They can be given back, and go on later with what they have: what was produced is fed again
//! like a prompt, which is the price. Whether it pays is decided by the time that everybody waits, all together, from
//! what is learned of the engine. And all that is paid so is at most a small part of the engine's time.

use std::time::Duration;

use super::spans;
use crate::numbers::as_f64;

/// The part of the engine's time that may be spent on giving way.
const SHARE: f64 = 0.04;
/// Of time that was not spent, so much may be saved up.
const MOST_SAVED: Duration = Duration::from_secs(2);
/// From the order to give way to the next batch's start: there and back over the socket.
const HANDOVER: Duration = Duration::from_micros(500);
/// What is foreseen may be wrong: the batch must be foreseen to go on for so many times what giving way costs…
const CLEAR: u32 = 4;
/// … and the gain to be so many times the loss.
const MARGIN: f64 = 2.0;

/// What is left of a batch that runs, as far as it can be foreseen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// Members that have not ended.
    pub members: usize,
    /// How long they will take yet.
    pub time: Duration,
    /// What it will cost the engine to take them up again later.
    pub again: Duration,
}

/// What would take the engine instead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Members of the batch.
    pub members: usize,
    /// How long it will take.
    pub time: Duration,
}

/// How long a batch that could begin now should rather wait for others who will be there in a moment, and for whom it
/// would have to give way as soon as it has begun: the least time that pays, at most `longest`.
///
/// `expected`: how many others will have come that much later. `time`: what a batch of so many takes.
pub fn defer(
    batch: &Waiting,
    expected: impl Fn(Duration) -> f64,
    time: impl Fn(f64) -> Duration,
    longest: Duration,
) -> Option<Duration> {
    spans::up_to(longest).find(|&ahead| {
        let others = expected(ahead);
        let gain = others * batch.time.as_secs_f64();
        let loss = as_f64(batch.members) * (ahead + time(others)).as_secs_f64();
        others >= 1.0 && gain > MARGIN * loss
    })
}

/// What decides, and keeps the account.
#[derive(Debug, Default)]
pub struct Preemption {
    saved: Duration,
}

impl Preemption {
    /// An engine has been busy for so long.
    pub fn worked(&mut self, time: Duration) {
        self.saved = (self.saved + time.mul_f64(SHARE)).min(MOST_SAVED);
    }

    /// Whether the batch should give way now.
    ///
    /// Everyone who waits gains the time for which the batch would have gone on, less what resuming it costs the engine;
    /// its members lose the time that the others take, and that cost.
    pub fn pays(&self, remains: &Remains, waiting: &Waiting) -> bool {
        let cost = cost(remains);
        let gain = as_f64(waiting.members) * remains.time.saturating_sub(cost).as_secs_f64();
        let loss = as_f64(remains.members) * (waiting.time + cost).as_secs_f64();
        let clear = remains.time >= cost * CLEAR && gain > MARGIN * loss;
        remains.members > 0 && clear && cost <= self.saved
    }

    /// The batch gives way.
    pub fn spend(&mut self, remains: &Remains) {
        self.saved = self.saved.saturating_sub(cost(remains));
    }
}

/// What it costs the engine that a batch gives way.
fn cost(remains: &Remains) -> Duration {
    remains.again + HANDOVER
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn after(work: Duration) -> Preemption {
        let mut preemption = Preemption::default();
        preemption.worked(work);
        preemption
    }

    fn remains(members: usize, millis: u32, again: u32) -> Remains {
        Remains { members, time: MILLI * millis, again: MILLI * again }
    }

    #[test]
    fn few_give_way_to_many_where_there_is_much_to_gain() {
        let waiting = Waiting { members: 20, time: 30 * MILLI };
        let pays = |remains| after(Duration::from_secs(60)).pays(&remains, &waiting);
        assert!(pays(remains(2, 100, 5)));
        assert!(!pays(remains(2, 3, 1)), "it is nearly over");
        assert!(!pays(remains(2, 100, 99)), "resuming costs as much as going on");
        assert!(!pays(remains(40, 50, 5)), "it is still large");
        let many = Waiting { members: 50, time: MILLI };
        assert!(!after(Duration::from_secs(60)).pays(&remains(1, 4, 1), &many), "too near its end to be foreseen well");
        assert!(after(Duration::from_secs(60)).pays(&remains(1, 7, 1), &many));
        assert!(!pays(remains(0, 0, 0)), "it has ended");
        assert!(!after(Duration::from_secs(60)).pays(&remains(2, 100, 5), &Waiting::default()), "nobody waits");
    }

    #[test]
    fn a_long_batch_waits_for_many_who_are_about_to_come_and_for_whom_it_would_give_way() {
        let many = |ahead: Duration| if ahead > MILLI { 20.0 } else { 0.0 };
        let time = |others: f64| MILLI.mul_f64(0.2 * others);
        let deferred = |members, batch: u32, longest: u32| {
            let batch = Waiting { members, time: MILLI * batch };
            defer(&batch, many, time, MILLI * longest)
        };
        assert_eq!(deferred(4, 50, 10), Some(MILLI * 3 / 2));
        assert_eq!(deferred(4, 50, 1), None, "nobody has come by then");
        assert_eq!(deferred(40, 20, 10), None, "as many would wait as come");
        let few = defer(&Waiting { members: 1, time: 50 * MILLI }, |_| 0.9, time, 10 * MILLI);
        assert_eq!(few, None, "hardly anybody comes");
    }

    #[test]
    fn no_more_than_a_part_of_the_engines_time_is_spent() {
        let mut preemption = Preemption::default();
        let waiting = Waiting { members: 40, time: MILLI };
        let (mut worked, mut paid) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..10_000 {
            preemption.worked(10 * MILLI);
            worked += 10 * MILLI;
            if preemption.pays(&remains(1, 100, 3), &waiting) {
                preemption.spend(&remains(1, 100, 3));
                paid += 3 * MILLI + HANDOVER;
            }
        }
        assert!(paid <= worked / 25 && paid > worked / 28, "{paid:?} of {worked:?}");
    }
}
