//! How fast things go here, measured as they go: what the next batch's time is predicted from.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::cohort::Cost;
use crate::engine::CallTime;

/// A running mean in nanoseconds: each new measurement weighs a quarter.
#[derive(Debug, Default)]
struct Mean(AtomicU64);

impl Mean {
    fn take(&self, nanos: u64) {
        let old = self.0.load(Relaxed);
        let new = if old == 0 { nanos } else { old - old / 4 + nanos / 4 };
        self.0.store(new.max(1), Relaxed);
    }

    fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Relaxed))
    }
}

/// The measured pace, shared by the threads. Zero where nothing has been measured yet.
#[derive(Debug, Default)]
pub struct Pace {
    step: Mean,
    fed_token: Mean,
    handover: Mean,
    /// How far handovers are from their mean.
    deviation: Mean,
    /// What of a step is there however many members it has, and what each member adds.
    step_alone: Mean,
    step_member: Mean,
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 8).min(u64::MAX / 8)
}

impl Pace {
    /// A call of the engine has ended.
    pub fn called(&self, time: CallTime) {
        if let Some(step) = nanos(time.rest).checked_div(time.steps) {
            self.step.take(step);
        }
        let prefill = time.first.saturating_sub(self.step());
        if let Some(token) = nanos(prefill).checked_div(time.fed) {
            self.fed_token.take(token);
        }
    }

    /// Steps of one member took so long, and steps of `members` so long.
    pub fn compared(&self, one: Duration, members: u32, many: Duration) {
        let member = many.saturating_sub(one) / members.saturating_sub(1).max(1);
        self.step_member.take(nanos(member));
        self.step_alone.take(nanos(one.saturating_sub(member)));
    }

    /// What the engine's work costs.
    pub fn cost(&self) -> Cost {
        Cost {
            step: nanos(self.step_alone.get()),
            member: nanos(self.step_member.get()),
            fed: nanos(self.fed_token.get()),
        }
    }

    /// A batch was ready for an engine so long after it had been asked for.
    pub fn handed_over(&self, time: Duration) {
        let mean = self.handover.get();
        if mean > Duration::ZERO {
            self.deviation.take(nanos(time.abs_diff(mean)));
        }
        self.handover.take(nanos(time));
    }

    /// A decode step.
    pub fn step(&self) -> Duration {
        self.step.get()
    }

    /// Feeding so many prompt tokens in bulk.
    pub fn feeding(&self, tokens: u64) -> Duration {
        Duration::from_nanos(nanos(self.fed_token.get()).saturating_mul(tokens))
    }

    /// From asking for a batch to having it ready for an engine, as nearly all take: the mean and four times the mean deviation
    /// (as round trips are estimated in TCP: Jacobson, 1988). Zero where nothing has been measured.
    pub fn handover(&self) -> Duration {
        self.handover.get() + 4 * self.deviation.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_tells_steps_and_prefill_apart() {
        let pace = Pace::default();
        let millis = Duration::from_millis;
        pace.called(CallTime { first: millis(12), rest: millis(20), steps: 10, fed: 100 });
        assert_eq!(pace.step(), millis(2));
        assert_eq!(pace.feeding(100), millis(10));
    }

    #[test]
    fn two_batch_sizes_tell_a_step_and_its_members_apart() {
        let pace = Pace::default();
        assert_eq!(pace.cost(), Cost::default());
        pace.compared(Duration::from_nanos(110), 11, Duration::from_nanos(210));
        assert_eq!(pace.cost(), Cost { step: 100, member: 10, fed: 0 });
    }

    #[test]
    fn a_handover_is_judged_by_how_much_it_varies() {
        let pace = Pace::default();
        let micros = Duration::from_micros;
        assert_eq!(pace.handover(), Duration::ZERO);
        (0..50).for_each(|_| pace.handed_over(micros(400)));
        assert!(pace.handover() < micros(405));
        (0..50).for_each(|k| pace.handed_over(micros(300 + 200 * (k % 2))));
        assert!(pace.handover() > micros(700) && pace.handover() < micros(1000), "{:?}", pace.handover());
    }

    #[test]
    fn a_call_of_one_step_tells_nothing_of_steps() {
        let pace = Pace::default();
        pace.called(CallTime { first: Duration::from_millis(1), rest: Duration::ZERO, steps: 0, fed: 0 });
        assert_eq!((pace.step(), pace.feeding(9)), (Duration::ZERO, Duration::ZERO));
    }
}
