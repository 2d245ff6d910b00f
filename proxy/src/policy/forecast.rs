//! How long a batch will take a worker, from what is known before anything is tokenised: bytes of prompts and limits of
//! answers. Plain data.

use std::time::Duration;

use pillion_protocol::frame::{BatchCost, UnitCost};
use pillion_protocol::service_time::{Load, ServiceTime};

use super::preemption::Remains;
use crate::domain::Demand;

/// What the latest batch weighs in a running mean.
const LATEST: f64 = 0.125;
/// A token is rarely shorter than three bytes of text: until it is known better.
const TOKENS_PER_BYTE: f64 = 0.3;

/// What came of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchOutcome {
    /// Tokens of the prompts, as far as members finished.
    pub prompt_tokens: u64,
    /// Tokens produced.
    pub completion_tokens: u64,
    /// What the worker says of it.
    pub cost: BatchCost,
}

/// A running mean; before the first value, a guess.
#[derive(Clone, Copy, Debug)]
enum Mean {
    Guess(f64),
    Seen(f64),
}

impl Mean {
    fn take(&mut self, value: f64) {
        *self = match *self {
            Self::Guess(_) => Self::Seen(value),
            Self::Seen(mean) => Self::Seen(mean + (value - mean) * LATEST),
        };
    }

    fn get(self) -> f64 {
        match self {
            Self::Guess(mean) | Self::Seen(mean) => mean,
        }
    }
}

/// What is known of one worker.
#[derive(Clone, Debug)]
pub struct Forecast {
    time: ServiceTime,
    /// Of the tokens that members may produce, those that they do produce.
    produced: Mean,
    /// Of the tokens that the longest member may produce, the decode steps that come of it.
    steps: Mean,
    tokens_per_byte: Mean,
    /// No member has more tokens: what asks for more is refused by the worker.
    positions: u32,
}

impl Forecast {
    /// A worker that has measured itself so far and has served nothing yet, with a model of so many positions.
    pub fn new(measured: &UnitCost, positions: u32) -> Self {
        let (produced, steps, tokens_per_byte) = (Mean::Guess(1.0), Mean::Guess(1.0), Mean::Guess(TOKENS_PER_BYTE));
        Self { time: ServiceTime::new(measured), produced, steps, tokens_per_byte, positions }
    }

    /// How long the engine will take for a batch.
    pub fn time(&self, demand: &Demand) -> Duration {
        self.time.predict(&self.load(demand))
    }

    /// The part of it that would be there however few its members were, and what each member adds.
    pub fn costs(&self, demand: &Demand) -> (Duration, Duration) {
        let load = self.load(demand);
        let fixed = self.time.fixed(&load);
        let members = u32::try_from(demand.members.max(1)).unwrap_or(u32::MAX);
        (fixed, self.time.predict(&load).saturating_sub(fixed) / members)
    }

    /// What is left of a batch that has run for so long, where so many of its members have not ended.
    ///
    /// How far the engine has come is not told, it is reckoned. A batch is expected to take as long as predicted; one that
    /// takes longer is expected to last for as many steps again as it has, up to its members' limit.
    #[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    pub fn remains(&self, demand: &Demand, left: usize, ran: Duration) -> Remains {
        let (members, limit) = (left as f64, f64::from(demand.longest.min(self.positions)));
        let whole = self.time(demand);
        let done =
            if whole.is_zero() { 0.0 } else { limit * self.steps.get() * ran.div_duration_f64(whole) }.min(limit);
        let overtime = (limit - done).min(done);
        let overtime = self.time.predict(&Load { steps: overtime, tokens: overtime * members, ..Load::default() });
        let fed = demand.bytes as f64 * self.tokens_per_byte.get() + demand.again as f64;
        let again = members * (fed / demand.members.max(1) as f64 + done);
        Remains {
            members: left,
            time: whole.checked_sub(ran).filter(|left| !left.is_zero()).unwrap_or(overtime),
            again: self.time.predict(&Load { calls: 1.0, prompt: again, ..Load::default() }),
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    fn load(&self, demand: &Demand) -> Load {
        let most = u64::from(self.positions).saturating_mul(demand.members as u64);
        Load {
            calls: 1.0,
            steps: f64::from(demand.longest.min(self.positions)) * self.steps.get(),
            tokens: demand.tokens.min(most) as f64 * self.produced.get(),
            prompt: demand.bytes as f64 * self.tokens_per_byte.get() + demand.again as f64,
        }
    }

    /// A batch has ended.
    #[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    pub fn learn(&mut self, demand: &Demand, outcome: &BatchOutcome) {
        let BatchOutcome { prompt_tokens, completion_tokens, cost } = outcome;
        if cost.cohorts == 0 || cost.engine_us == 0 {
            return;
        }
        let load = Load {
            calls: cost.cohorts.into(),
            steps: cost.steps as f64,
            tokens: completion_tokens.saturating_sub(demand.again) as f64,
            prompt: (prompt_tokens + demand.again) as f64,
        };
        self.time.learn(&load, Duration::from_micros(cost.engine_us));
        if demand.tokens > 0 && demand.longest > 0 {
            self.produced.take((load.tokens / demand.tokens as f64).min(1.0));
            self.steps.take(load.steps / f64::from(demand.longest));
        }
        if demand.bytes > 0 && *prompt_tokens > 0 {
            self.tokens_per_byte.take(*prompt_tokens as f64 / demand.bytes as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(members: usize) -> Demand {
        let mut demand = Demand::default();
        (0..members).for_each(|_| demand.add(35, 100, 0));
        demand
    }

    /// Members that end after a tenth of what they may produce.
    fn outcome(members: u64, engine_us: u64) -> BatchOutcome {
        let cost = BatchCost { engine_us, cohorts: 1, steps: 10, forced_steps: 0, idle_us: 0 };
        BatchOutcome { prompt_tokens: 12 * members, completion_tokens: 10 * members, cost }
    }

    #[test]
    fn answers_that_end_early_are_foreseen_to_end_early() {
        let mut forecast = Forecast::new(&UnitCost::default(), 1000);
        for round in 0..300 {
            let members = [1, 10, 40][round % 3];
            forecast.learn(&demand(members), &outcome(members as u64, 5000 + 100 * members as u64));
        }
        let (one, many) = (forecast.time(&demand(1)).as_micros(), forecast.time(&demand(40)).as_micros());
        assert!((4_900..5_300).contains(&one) && (8_700..9_300).contains(&many), "{one} {many}");
        let (fixed, member) = forecast.costs(&demand(40));
        assert!((4_700..5_300).contains(&fixed.as_micros()) && (95..105).contains(&member.as_micros()));
    }

    #[test]
    fn the_first_batch_says_more_than_the_guess() {
        let mut forecast = Forecast::new(&UnitCost::default(), 1000);
        forecast.learn(&demand(1), &outcome(1, 10_000));
        assert!((8_000..10_500).contains(&forecast.time(&demand(1)).as_micros()));
    }

    #[test]
    fn before_the_first_batch_the_warm_up_speaks() {
        let forecast = Forecast::new(&UnitCost { step_ns: 1000, member_ns: 100, prompt_ns: 10 }, 1000);
        let time = forecast.time(&demand(2));
        // 100 steps, 200 tokens, 70 bytes.
        assert_eq!(time, Duration::from_nanos(100 * 1000 + 200 * 100 + 21 * 10));
    }

    #[test]
    fn what_is_left_of_a_batch_shrinks_with_time_and_costs_more_to_resume() {
        let forecast = Forecast::new(&UnitCost { step_ns: 1_000_000, member_ns: 0, prompt_ns: 10_000 }, 1000);
        let millis = |n| Duration::from_millis(n);
        // 100 steps of 1 ms; 10 or 11 prompt tokens each, at 10 us a token.
        let early = forecast.remains(&demand(10), 2, millis(11));
        assert!((millis(88)..millis(91)).contains(&early.time), "{early:?}");
        let late = forecast.remains(&demand(10), 2, millis(91));
        assert!((millis(8)..millis(11)).contains(&late.time), "{late:?}");
        assert_eq!((early.members, late.members), (2, 2));
        assert!(early.again < millis(1) && late.again > 3 * early.again, "{early:?} {late:?}");
    }

    #[test]
    fn who_lasts_longer_than_others_is_expected_to_last_as_long_again() {
        let mut forecast = Forecast::new(&UnitCost { step_ns: 1_000_000, member_ns: 0, prompt_ns: 0 }, 1000);
        (0..50).for_each(|_| forecast.learn(&demand(10), &outcome(10, 10_000)));
        let remains = |millis| forecast.remains(&demand(10), 1, Duration::from_millis(millis)).time.as_millis();
        assert!((7..=9).contains(&remains(2)), "{}", remains(2));
        assert!((27..=33).contains(&remains(30)), "{}", remains(30));
        assert!((5..=15).contains(&remains(90)), "{}", remains(90));
    }

    #[test]
    fn a_batch_that_never_reached_the_engine_teaches_nothing() {
        let mut forecast = Forecast::new(&UnitCost::default(), 1000);
        forecast.learn(&demand(2), &BatchOutcome::default());
        assert_eq!(forecast.time(&demand(2)), Duration::ZERO);
    }
}
