//! Predicts how long an engine takes, and learns from the measured costs of its work. The proxy uses it for batches, the
//! worker for engine calls. Plain data.
//!
//! The predicted time is linear in four features: the call itself, decode steps, produced tokens, and prompt tokens. The
//! coefficients come from a least-squares fit over past batches, in which old batches fade. A ridge (ridge regression: Hoerl
//! and Kennard, 1970) holds the coefficients near those that the worker measured when it warmed up. So a coefficient keeps
//! its measured value while the traffic gives no information about it: a load that never changes its batch size says nothing
//! about the fixed cost. The fit minimises relative errors, so that it is as good for small batches as for large ones.

use std::time::Duration;

use pillion_protocol::frame::UnitCost;

const FEATURES: usize = 4;
/// The factor by which the weight of a batch shrinks with each later batch. The weight halves after 34 batches.
const FORGET: f64 = 0.98;
/// The longest predicted time, whatever costs a worker claims. It is short enough that predictions can be added and
/// multiplied without overflow.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// The weight of the ridge: the prior weighs as much as this number of batches.
const RIDGE: f64 = 0.5;

/// The work of a batch or of a call, as the four features.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Engine calls.
    pub calls: f64,
    /// Decode steps.
    pub steps: f64,
    /// Tokens that all members together produce.
    pub tokens: f64,
    /// Prompt tokens of all members together.
    pub prompt: f64,
}

impl Load {
    fn features(&self) -> [f64; FEATURES] {
        [self.calls, self.steps, self.tokens, self.prompt]
    }

    /// The part of the work that does not depend on the number of members.
    fn fixed(&self) -> Self {
        Self { tokens: 0.0, prompt: 0.0, ..*self }
    }
}

/// The learned costs of an engine.
#[derive(Clone, Debug)]
pub struct ServiceTime {
    /// Seconds for one unit of each feature.
    cost: [f64; FEATURES],
    /// The costs near which the ridge holds the learned costs.
    prior: [f64; FEATURES],
    /// The normal equations: `squares` has the products of the features with each other, `products` those with the time.
    squares: [[f64; FEATURES]; FEATURES],
    products: [f64; FEATURES],
    /// The recent size of each feature, so that the ridge does not depend on the features' units.
    scale: [f64; FEATURES],
    batches: f64,
}

impl ServiceTime {
    /// Creates the costs of an engine that has run no batch yet. `measured` has the costs of its warm-up, or zeros.
    pub fn new(measured: &UnitCost) -> Self {
        let seconds = |nanos: u64| Duration::from_nanos(nanos).as_secs_f64();
        let prior = [0.0, seconds(measured.step_ns), seconds(measured.member_ns), seconds(measured.prompt_ns)];
        Self {
            cost: prior,
            prior,
            squares: [[0.0; FEATURES]; FEATURES],
            products: [0.0; FEATURES],
            scale: [0.0; FEATURES],
            batches: 0.0,
        }
    }

    /// Learns that a batch of this `load` took the engine this `time`.
    pub fn learn(&mut self, load: &Load, time: Duration) {
        let seconds = time.as_secs_f64();
        // The error is relative to the measured time, or to the predicted time if that is longer. Otherwise a time that was
        // measured far too short would outweigh all other batches.
        let expected = seconds.max(self.predict(load).as_secs_f64()).max(1e-6);
        let features = load.features().map(|feature| feature / expected);
        for (row, &a) in self.squares.iter_mut().zip(&features) {
            for (square, &b) in row.iter_mut().zip(&features) {
                *square = *square * FORGET + a * b;
            }
        }
        for ((product, scale), &feature) in self.products.iter_mut().zip(&mut self.scale).zip(&features) {
            *product = *product * FORGET + feature * seconds / expected;
            *scale = scale.max(feature) * FORGET + feature * (1.0 - FORGET);
        }
        self.batches = self.batches * FORGET + 1.0;
        self.cost = self.solve();
    }

    /// Solves the least-squares problem with the ridge, (X'X + R) c = X'y + R p, such that no coefficient is negative.
    fn solve(&self) -> [f64; FEATURES] {
        let mut free = [true; FEATURES];
        // A coefficient below zero is noise. The worst one is set to zero, and the others are solved for again.
        for _ in 0..FEATURES {
            let solved = self.solve_for(free);
            let Some(worst) = (0..FEATURES)
                .filter(|&k| free[k] && solved[k] < 0.0)
                .min_by(|&a, &b| (solved[a] * self.scale[a]).total_cmp(&(solved[b] * self.scale[b])))
            else {
                return solved;
            };
            free[worst] = false;
        }
        [0.0; FEATURES]
    }

    fn solve_for(&self, free: [bool; FEATURES]) -> [f64; FEATURES] {
        let mut matrix = [[0.0; FEATURES + 1]; FEATURES];
        for (k, row) in matrix.iter_mut().enumerate() {
            if !free[k] || self.scale[k] <= 0.0 {
                row[k] = 1.0;
                row[FEATURES] = if free[k] { self.prior[k] } else { 0.0 };
                continue;
            }
            let ridge = RIDGE * self.scale[k] * self.scale[k];
            for (j, cell) in row[..FEATURES].iter_mut().enumerate() {
                *cell = if free[j] { self.squares[k][j] } else { 0.0 };
            }
            row[k] += ridge;
            row[FEATURES] = self.products[k] + ridge * self.prior[k];
        }
        eliminate(&mut matrix);
        matrix.map(|row| row[FEATURES])
    }

    /// Returns the costs in nanoseconds: of a call, a decode step, a member in a step, and a prompt token.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "no cost is negative, and a float's cast to an integer saturates"
    )]
    pub fn nanos(&self) -> [u64; FEATURES] {
        self.cost.map(|seconds| (seconds * 1e9) as u64)
    }

    /// Returns the predicted time of a batch, at most 30 days.
    pub fn predict(&self, load: &Load) -> Duration {
        let seconds: f64 = self.cost.iter().zip(load.features()).map(|(cost, feature)| cost * feature).sum();
        Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST).min(LONGEST)
    }

    /// Returns the part of the predicted time that does not depend on the number of members. If two batches become one, this
    /// time is saved.
    pub fn fixed(&self, load: &Load) -> Duration {
        self.predict(&load.fixed())
    }
}

/// Solves the equations by Gaussian elimination. The matrix is positive definite, so the pivots are on the diagonal.
fn eliminate(matrix: &mut [[f64; FEATURES + 1]; FEATURES]) {
    for k in 0..FEATURES {
        let pivot = matrix[k][k];
        matrix[k].iter_mut().for_each(|cell| *cell /= pivot);
        let row = matrix[k];
        for (_, other) in matrix.iter_mut().enumerate().filter(|(j, _)| *j != k) {
            let factor = other[k];
            other.iter_mut().zip(row).for_each(|(cell, by)| *cell -= factor * by);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch whose members each have a prompt of 12 tokens and produce 10 tokens.
    fn load(members: u32) -> Load {
        let members = f64::from(members);
        Load { calls: 1.0, steps: 10.0, tokens: 10.0 * members, prompt: 12.0 * members }
    }

    /// The true time of a batch: 135 ms, and 6 ms for each member.
    fn truth(members: u32) -> Duration {
        Duration::from_millis(135) + Duration::from_millis(6) * members
    }

    fn near(seen: Duration, expected: Duration, share: f64) {
        let (seen, expected) = (seen.as_secs_f64(), expected.as_secs_f64());
        assert!((seen - expected).abs() <= share * expected, "{seen} is not near {expected}");
    }

    #[test]
    fn it_finds_fixed_cost_and_growth_from_nothing() {
        let mut time = ServiceTime::new(&UnitCost::default());
        for round in 0..200 {
            let members = [1, 7, 20, 33, 40][round % 5];
            time.learn(&load(members), truth(members));
        }
        near(time.predict(&load(1)), truth(1), 0.03);
        near(time.predict(&load(50)), truth(50), 0.03);
        near(time.fixed(&load(50)), Duration::from_millis(135), 0.05);
    }

    #[test]
    fn a_load_that_never_changes_leaves_the_warm_up_in_force() {
        let prior = UnitCost { step_ns: 13_500_000, member_ns: 300_000, prompt_ns: 250_000 };
        let mut time = ServiceTime::new(&prior);
        near(time.fixed(&load(40)), Duration::from_millis(135), 0.001);
        for _ in 0..1000 {
            time.learn(&load(40), truth(40));
        }
        near(time.predict(&load(40)), truth(40), 0.01);
        near(time.fixed(&load(40)), Duration::from_millis(135), 0.05);
    }

    #[test]
    fn it_follows_an_engine_that_becomes_slower() {
        let mut time = ServiceTime::new(&UnitCost::default());
        for round in 0..600 {
            let members = 1 + round % 40;
            time.learn(&load(members), truth(members) * if round < 300 { 1 } else { 3 });
        }
        near(time.predict(&load(20)), truth(20) * 3, 0.06);
    }

    #[test]
    fn a_time_that_was_measured_wrong_does_not_outweigh_all_else() {
        let mut time = ServiceTime::new(&UnitCost::default());
        (0..200).for_each(|round| time.learn(&load(1 + round % 40), truth(1 + round % 40)));
        time.learn(&load(40), Duration::from_micros(70));
        near(time.predict(&load(20)), truth(20), 0.05);
    }

    #[test]
    fn it_follows_an_engine_that_becomes_faster() {
        let mut time = ServiceTime::new(&UnitCost::default());
        for round in 0..800 {
            time.learn(&load(1 + round % 40), truth(1 + round % 40) / if round < 300 { 1 } else { 20 });
        }
        near(time.predict(&load(20)), truth(20) / 20, 0.06);
    }

    #[test]
    fn prompts_and_answers_are_told_apart_where_they_vary() {
        let mut time = ServiceTime::new(&UnitCost::default());
        let cost = |load: &Load| {
            Duration::from_secs_f64(0.001 + 0.002 * load.steps + 0.0001 * load.tokens + 0.0004 * load.prompt)
        };
        for round in 0..500u32 {
            let steps = f64::from(5 + round * 7 % 40);
            let members = f64::from(1 + round * 11 % 30);
            let load =
                Load { calls: 1.0, steps, tokens: members * steps, prompt: members * f64::from(10 + round * 13 % 200) };
            time.learn(&load, cost(&load));
        }
        let new = Load { calls: 1.0, steps: 20.0, tokens: 200.0, prompt: 3000.0 };
        near(time.predict(&new), cost(&new), 0.05);
    }

    #[test]
    fn nothing_known_and_nothing_measured_predicts_nothing() {
        assert_eq!(ServiceTime::new(&UnitCost::default()).predict(&load(9)), Duration::ZERO);
    }

    #[test]
    fn whatever_a_worker_claims_what_is_predicted_can_be_reckoned_with() {
        let absurd = UnitCost { step_ns: u64::MAX, member_ns: u64::MAX, prompt_ns: u64::MAX };
        let time = ServiceTime::new(&absurd).predict(&Load { steps: 1e9, tokens: 1e18, ..load(40) });
        assert_eq!(time, LONGEST);
        assert!(time.checked_mul(u32::MAX).is_some());
    }

    #[test]
    fn noise_makes_no_cost_negative() {
        let mut time = ServiceTime::new(&UnitCost::default());
        for round in 0..300u64 {
            let members = u32::try_from(1 + round % 3).unwrap();
            time.learn(&load(members), Duration::from_micros(500 + round * 7919 % 400));
            assert!(time.cost.iter().all(|&cost| cost >= 0.0 && cost.is_finite()), "{time:?}");
        }
        near(time.predict(&load(2)), Duration::from_micros(700), 0.3);
    }
}
