//! Predicts how long a worker takes for a batch, from what is known before anything is tokenised: the bytes of prompts
//! and the limits of answers. Plain data.

use std::time::Duration;

use pillion_protocol::frame::{BatchCost, UnitCost};
use pillion_service_time::{Load, ServiceTime};

use super::preemption::Remains;
use crate::domain::Demand;

/// The weight of the latest batch in a running mean.
const LATEST: f64 = 0.125;
/// The tokens for a byte of a prompt until they are measured: a token is rarely shorter than three bytes.
const TOKENS_PER_BYTE: f64 = 0.3;

/// What a batch produced and cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchOutcome {
    /// The prompt tokens of the members that finished.
    pub prompt_tokens: u64,
    /// The tokens produced by the members that finished.
    pub completion_tokens: u64,
    /// The cost that the worker reported in DONE.
    pub cost: BatchCost,
}

/// Predicts the times of one worker's batches.
#[derive(Clone, Debug)]
pub struct Forecast {
    time: ServiceTime,
    /// The tokens that members produce, as a part of those that they may produce.
    produced: Option<f64>,
    /// The decode steps for each token that the longest member may produce.
    steps: Option<f64>,
    tokens_per_byte: Option<f64>,
    /// The most tokens of a member. The worker refuses members that ask for more.
    positions: u32,
}

impl Forecast {
    /// The forecast for a worker that has served nothing yet, with the costs that it measured during its warm-up.
    pub fn new(measured: &UnitCost, positions: u32) -> Self {
        Self { time: ServiceTime::new(measured), produced: None, steps: None, tokens_per_byte: None, positions }
    }

    /// The predicted time of a batch.
    pub fn time(&self, demand: &Demand) -> Duration {
        self.time.predict(&self.load(demand))
    }

    /// The fixed cost of a batch, which does not depend on the number of members, and the cost of each member.
    pub fn costs(&self, demand: &Demand) -> (Duration, Duration) {
        let load = self.load(demand);
        let fixed = self.time.fixed(&load);
        let members = u32::try_from(demand.members.max(1)).unwrap_or(u32::MAX);
        (fixed, self.time.predict(&load).saturating_sub(fixed) / members)
    }

    /// What remains of a batch that has run for `ran` and has `unfinished` members left.
    ///
    /// It is estimated, since the worker does not report its progress: a batch takes the predicted time, and one that
    /// takes longer makes as many steps again as it has made, up to its members' limit.
    #[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    pub fn remains(&self, demand: &Demand, unfinished: usize, ran: Duration) -> Remains {
        let (members, limit) = (unfinished as f64, f64::from(demand.longest.min(self.positions)));
        let whole = self.time(demand);
        let done = if whole.is_zero() { 0.0 } else { limit * self.steps.unwrap_or(1.0) * ran.div_duration_f64(whole) }
            .min(limit);
        let overtime = (limit - done).min(done);
        let overtime = self.time.predict(&Load { steps: overtime, tokens: overtime * members, ..Load::default() });
        let fed = demand.bytes as f64 * self.tokens_per_byte.unwrap_or(TOKENS_PER_BYTE) + demand.refed as f64;
        let refed = members * (fed / demand.members.max(1) as f64 + done);
        Remains {
            members: unfinished,
            time: whole.checked_sub(ran).filter(|left| !left.is_zero()).unwrap_or(overtime),
            resume_cost: self.time.predict(&Load { calls: 1.0, prompt: refed, ..Load::default() }),
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    fn load(&self, demand: &Demand) -> Load {
        let most = u64::from(self.positions).saturating_mul(demand.members as u64);
        Load {
            calls: 1.0,
            steps: f64::from(demand.longest.min(self.positions)) * self.steps.unwrap_or(1.0),
            tokens: demand.tokens.min(most) as f64 * self.produced.unwrap_or(1.0),
            prompt: demand.bytes as f64 * self.tokens_per_byte.unwrap_or(TOKENS_PER_BYTE) + demand.refed as f64,
        }
    }

    /// Learns from a completed batch.
    #[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    pub fn learn(&mut self, demand: &Demand, outcome: &BatchOutcome) {
        let BatchOutcome { prompt_tokens, completion_tokens, cost } = outcome;
        if cost.cohorts == 0 || cost.engine_us == 0 {
            return;
        }
        let load = Load {
            calls: cost.cohorts.into(),
            steps: cost.steps as f64,
            tokens: completion_tokens.saturating_sub(demand.refed) as f64,
            prompt: (prompt_tokens + demand.refed) as f64,
        };
        self.time.learn(&load, Duration::from_micros(cost.engine_us));
        if demand.tokens > 0 && demand.longest > 0 {
            learn_mean(&mut self.produced, (load.tokens / demand.tokens as f64).min(1.0));
            learn_mean(&mut self.steps, load.steps / f64::from(demand.longest));
        }
        if demand.bytes > 0 && *prompt_tokens > 0 {
            learn_mean(&mut self.tokens_per_byte, *prompt_tokens as f64 / demand.bytes as f64);
        }
    }
}

/// Adds a value to a running mean, which is the first value at first.
fn learn_mean(mean: &mut Option<f64>, value: f64) {
    *mean = Some(mean.map_or(value, |mean| mean + (value - mean) * LATEST));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(members: usize) -> Demand {
        let mut demand = Demand::default();
        (0..members).for_each(|_| demand.add(35, 100, 0));
        demand
    }

    /// The outcome of a batch whose members end after a tenth of the tokens that they may produce.
    fn outcome(members: u64, engine_us: u64) -> BatchOutcome {
        let cost = BatchCost { engine_us, cohorts: 1, steps: 10, forced_steps: 0, idle_us: 0 };
        BatchOutcome { prompt_tokens: 12 * members, completion_tokens: 10 * members, cost }
    }

    #[test]
    fn answers_that_end_early_are_predicted_to_end_early() {
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
    fn the_first_batch_outweighs_the_guess() {
        let mut forecast = Forecast::new(&UnitCost::default(), 1000);
        forecast.learn(&demand(1), &outcome(1, 10_000));
        assert!((8_000..10_500).contains(&forecast.time(&demand(1)).as_micros()));
    }

    #[test]
    fn before_the_first_batch_the_costs_of_the_warm_up_are_used() {
        let forecast = Forecast::new(&UnitCost { step_ns: 1000, member_ns: 100, prompt_ns: 10 }, 1000);
        let time = forecast.time(&demand(2));
        // 100 steps, 200 tokens, and 21 prompt tokens for 70 bytes.
        assert_eq!(time, Duration::from_nanos(100 * 1000 + 200 * 100 + 21 * 10));
    }

    #[test]
    fn what_remains_of_a_batch_becomes_shorter_with_time_and_costs_more_to_resume() {
        let forecast = Forecast::new(&UnitCost { step_ns: 1_000_000, member_ns: 0, prompt_ns: 10_000 }, 1000);
        let millis = |n| Duration::from_millis(n);
        // 100 steps of 1 ms; 10 or 11 prompt tokens for each member, at 10 us a token.
        let early = forecast.remains(&demand(10), 2, millis(11));
        assert!((millis(88)..millis(91)).contains(&early.time), "{early:?}");
        let late = forecast.remains(&demand(10), 2, millis(91));
        assert!((millis(8)..millis(11)).contains(&late.time), "{late:?}");
        assert_eq!((early.members, late.members), (2, 2));
        assert!(early.resume_cost < millis(1) && late.resume_cost > 3 * early.resume_cost, "{early:?} {late:?}");
    }

    #[test]
    fn a_member_that_takes_longer_than_predicted_is_expected_to_take_as_long_again() {
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
