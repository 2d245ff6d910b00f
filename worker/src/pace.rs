//! Measures how long calls take. The time of the next call is predicted from this.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pillion_protocol::frame::UnitCost;
use pillion_service_time::{Load, ServiceTime};

use crate::cohort::Cost;

/// How long a finished call took, and what it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallTime {
    /// Time from the call to its first token.
    pub first: Duration,
    /// Time from its first token to its last.
    pub rest: Duration,
    /// Steps from the first token to the last.
    pub steps: u64,
    /// Prompt tokens fed before the first token.
    pub fed: u64,
    /// Steps of all members together. A member counts from the call's first step, in which it may only be fed, to its own
    /// last.
    pub member_steps: u64,
}

impl CallTime {
    /// The work that the engine did in the call.
    #[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    pub fn load(&self) -> Load {
        let steps = (self.steps + 1) as f64;
        Load { calls: 1.0, steps, tokens: self.member_steps as f64, prompt: self.fed as f64 }
    }

    /// A step's mean time, if there was a step between two tokens.
    pub fn step(&self) -> Option<Duration> {
        u32::try_from(self.steps).ok().filter(|steps| *steps > 0).map(|steps| self.rest / steps)
    }
}

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

/// The measured times, shared by the threads. A time is zero until it is first measured.
#[derive(Debug, Default)]
pub struct Pace {
    step: Mean,
    fed_token: Mean,
    handover: Mean,
    /// The mean deviation of handovers from their mean.
    deviation: Mean,
    /// The cost of calls by the work they do; `None` before the warm-up.
    calls: Mutex<Option<ServiceTime>>,
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 8).min(u64::MAX / 8)
}

impl Pace {
    /// Records the time of a call.
    pub fn called(&self, time: CallTime) {
        if let Some(step) = nanos(time.rest).checked_div(time.steps) {
            self.step.take(step);
        }
        let prefill = time.first.saturating_sub(self.step());
        if let Some(token) = nanos(prefill).checked_div(time.fed) {
            self.fed_token.take(token);
        }
    }

    /// Sets the first estimate of costs: a step of one member took `one`, a step of `members` members took `many`.
    pub fn compared(&self, one: Duration, members: u32, many: Duration) {
        let member = many.saturating_sub(one) / members.saturating_sub(1).max(1);
        let step = one.saturating_sub(member);
        let (step_ns, member_ns, prompt_ns) = (nanos(step), nanos(member), nanos(self.fed_token.get()));
        *self.calls() = Some(ServiceTime::new(&UnitCost { step_ns, member_ns, prompt_ns }));
    }

    /// Improves the estimate of costs by a call that did this work in this time.
    pub fn learn(&self, load: &Load, time: Duration) {
        if let Some(calls) = &mut *self.calls() {
            calls.learn(load, time);
        }
    }

    /// The estimated costs.
    pub fn cost(&self) -> Cost {
        let [call, step, member, fed] = self.calls().as_ref().map(ServiceTime::nanos).unwrap_or_default();
        Cost { call, step, member, fed }
    }

    /// The lock is held for a few instructions, once or twice a call.
    fn calls(&self) -> MutexGuard<'_, Option<ServiceTime>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the time from asking for a batch until it was ready for an engine.
    pub fn handed_over(&self, time: Duration) {
        let mean = self.handover.get();
        if mean > Duration::ZERO {
            self.deviation.take(nanos(time.abs_diff(mean)));
        }
        self.handover.take(nanos(time));
    }

    /// The mean time of a decode step.
    pub fn step(&self) -> Duration {
        self.step.get()
    }

    /// The predicted time to feed `tokens` prompt tokens in bulk.
    pub fn feeding(&self, tokens: u64) -> Duration {
        Duration::from_nanos(nanos(self.fed_token.get()).saturating_mul(tokens))
    }

    /// A time within which nearly every batch is ready for an engine after it was asked for: the mean plus four times the mean
    /// deviation, as TCP estimates round trips (Jacobson, 1988). Zero if nothing has been measured.
    pub fn handover(&self) -> Duration {
        self.handover.get() + 4 * self.deviation.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_shows_the_time_of_a_step_and_of_prefill() {
        let pace = Pace::default();
        let millis = Duration::from_millis;
        pace.called(CallTime { first: millis(12), rest: millis(20), steps: 10, fed: 100, member_steps: 11 });
        assert_eq!(pace.step(), millis(2));
        assert_eq!(pace.feeding(100), millis(10));
    }

    #[test]
    fn two_batch_sizes_show_the_cost_of_a_step_and_of_a_member() {
        let pace = Pace::default();
        assert_eq!(pace.cost(), Cost::default());
        pace.compared(Duration::from_nanos(110), 11, Duration::from_nanos(210));
        assert_eq!(pace.cost(), Cost { call: 0, step: 100, member: 10, fed: 0 });
    }

    #[test]
    fn costs_are_learned_from_calls() {
        let pace = Pace::default();
        pace.compared(Duration::from_micros(110), 11, Duration::from_micros(210));
        for call in 0..200u64 {
            let (members, steps, fed) = (1 + call % 40, 5 + call % 7, 100 + 13 * (call % 50));
            let time = CallTime { steps: steps - 1, fed, member_steps: members * steps, ..CallTime::default() };
            // 300 us a call, 50 a step, 20 a member in it, 7 a prompt token.
            pace.learn(&time.load(), Duration::from_micros(300 + 50 * steps + 20 * members * steps + 7 * fed));
        }
        let Cost { call, step, member, fed } = pace.cost();
        assert!((18_000..22_000).contains(&member) && (6_500..7_500).contains(&fed), "{:?}", pace.cost());
        assert!((40_000..120_000).contains(&(step + call / 8)), "{:?}", pace.cost());
    }

    #[test]
    fn a_handover_that_varies_counts_as_longer() {
        let pace = Pace::default();
        let micros = Duration::from_micros;
        assert_eq!(pace.handover(), Duration::ZERO);
        (0..50).for_each(|_| pace.handed_over(micros(400)));
        assert!(pace.handover() < micros(405));
        (0..50).for_each(|k| pace.handed_over(micros(300 + 200 * (k % 2))));
        assert!(pace.handover() > micros(700) && pace.handover() < micros(1000), "{:?}", pace.handover());
    }

    #[test]
    fn a_call_of_one_step_shows_no_step_time() {
        let pace = Pace::default();
        pace.called(CallTime { first: Duration::from_millis(1), rest: Duration::ZERO, ..CallTime::default() });
        assert_eq!((pace.step(), pace.feeding(9)), (Duration::ZERO, Duration::ZERO));
    }
}
