//! When a running batch gives way to the jobs that wait. Plain data.
//!
//! A batch ends with its longest member. When most members have ended, the few that are left hold the engine for a long
//! time while many jobs wait. The worker can give these members back, and they continue later. The cost is that the
//! tokens that they have produced are fed again like a prompt. Giving way pays if the sum of all waits becomes smaller,
//! as far as the forecast can tell. The cost is limited to a small part of the engine's time.

use std::time::Duration;

use crate::numbers::as_f64;

/// The part of the engine's time that may be spent on giving way.
const SHARE: f64 = 0.04;
/// The most time that may be saved up.
const MOST_SAVED: Duration = Duration::from_secs(2);
/// The time from the command to give way to the start of the next batch: a round trip over the socket.
const HANDOVER: Duration = Duration::from_micros(500);
/// Forecasts may be wrong. So the batch must be predicted to run on for this many times what giving way costs…
const MIN_REMAINING: u32 = 4;
/// … and the gain must be this many times the loss.
const MARGIN: f64 = 2.0;

/// What remains of a running batch, as far as it can be predicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// The number of members that have not ended.
    pub members: usize,
    /// How long they still take.
    pub time: Duration,
    /// How long the engine takes to feed their tokens again when they continue later.
    pub resume_cost: Duration,
}

/// The batch that would take the engine instead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// The number of members.
    pub members: usize,
    /// How long the batch takes.
    pub time: Duration,
}

/// Decides whether a running batch gives way, and accounts for the time that this costs.
#[derive(Debug, Default)]
pub struct Preemption {
    saved: Duration,
}

impl Preemption {
    /// Records that an engine has been busy for `time`, a part of which may be spent on giving way.
    pub fn worked(&mut self, time: Duration) {
        self.saved = (self.saved + time.mul_f64(SHARE)).min(MOST_SAVED);
    }

    /// Whether the batch should give way now.
    ///
    /// Each job that waits gains the time for which the batch would have run on, less the cost of giving way. Each of
    /// the batch's members loses the time that the other batch takes, and that cost.
    pub fn pays(&self, remains: &Remains, waiting: &Waiting) -> bool {
        let cost = cost(remains);
        let gain = as_f64(waiting.members) * remains.time.saturating_sub(cost).as_secs_f64();
        let loss = as_f64(remains.members) * (waiting.time + cost).as_secs_f64();
        let is_clear = remains.time >= cost * MIN_REMAINING && gain > MARGIN * loss;
        remains.members > 0 && is_clear && cost <= self.saved
    }

    /// Records that the batch gives way.
    pub fn spend(&mut self, remains: &Remains) {
        self.saved = self.saved.saturating_sub(cost(remains));
    }
}

/// The engine's time that giving way costs.
fn cost(remains: &Remains) -> Duration {
    remains.resume_cost + HANDOVER
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

    fn remains(members: usize, millis: u32, resume_cost: u32) -> Remains {
        Remains { members, time: MILLI * millis, resume_cost: MILLI * resume_cost }
    }

    #[test]
    fn few_members_give_way_to_many_jobs_if_much_is_gained() {
        let waiting = Waiting { members: 20, time: 30 * MILLI };
        let pays = |remains| after(Duration::from_secs(60)).pays(&remains, &waiting);
        assert!(pays(remains(2, 100, 5)));
        assert!(!pays(remains(2, 3, 1)), "the batch is nearly completed");
        assert!(!pays(remains(2, 100, 99)), "resuming costs as much as running on");
        assert!(!pays(remains(40, 50, 5)), "the batch is still large");
        let many = Waiting { members: 50, time: MILLI };
        assert!(!after(Duration::from_secs(60)).pays(&remains(1, 4, 1), &many), "its end is too near to be predicted");
        assert!(after(Duration::from_secs(60)).pays(&remains(1, 7, 1), &many));
        assert!(!pays(remains(0, 0, 0)), "the batch has ended");
        assert!(!after(Duration::from_secs(60)).pays(&remains(2, 100, 5), &Waiting::default()), "no job waits");
    }

    #[test]
    fn only_a_small_part_of_the_engines_time_is_spent() {
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
