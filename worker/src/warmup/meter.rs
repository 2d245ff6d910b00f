//! Measures what a call of the engine takes, and predicts what a larger one would take.

use std::time::{Duration, Instant};

use pillion_protocol::frame::Options;

use crate::engine::{Call, Engine, EngineFailed};
use crate::pace::CallTime;

/// The batch by which the pace and the thread counts are judged.
pub(super) const BATCH: Shape = Shape { members: 32, prompt: 16, new: 8 };
/// The calls that separate the costs of a call, a step, a member and a prompt token.
pub(super) const SHAPES: [Shape; 4] = [
    Shape { members: 1, ..BATCH },
    BATCH,
    Shape { members: 8, prompt: 64, new: 8 },
    Shape { members: 2, prompt: 128, new: 8 },
];
/// The smallest call that shows anything.
pub(super) const TINY: Shape = Shape { members: 1, prompt: 2, new: 1 };
/// The time that measuring may always take.
const ALWAYS: Duration = Duration::from_secs(3);

/// The time that measuring may take for a model that loaded in `loading`.
pub fn budget(loading: Duration) -> Duration {
    (loading / 10).max(ALWAYS)
}

/// The sizes of a model by which prompts for measuring are made.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The number of tokens in the vocabulary.
    pub vocabulary: u32,
    /// The model's positions.
    pub positions: u32,
}

/// A call for measuring: the number of members, and of each member's prompt tokens and new tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) members: u32,
    pub(super) prompt: u32,
    pub(super) new: u32,
}

/// The estimated times of a call's parts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Estimate {
    /// A pass over the model's weights with few tokens.
    pass: Duration,
    /// One token in a pass of many.
    token: Duration,
}

/// Tokens that a pass takes besides the first one without taking longer, if that is not measured.
const FREE: u32 = 8;

impl Estimate {
    pub(super) fn of(shape: Shape, time: CallTime) -> Self {
        // Before the first token there are two passes: over the prompt, and for the token.
        let pass = time.step().unwrap_or(time.first / 2);
        let feeding = time.first.saturating_sub(pass);
        let fed = shape.members * (shape.prompt - 1);
        Self { pass, token: if fed > FREE { feeding / fed } else { pass / FREE } }
    }

    fn feeding(self, shape: Shape) -> Duration {
        self.pass.max(self.token * (shape.members * (shape.prompt - 1)))
    }

    fn stepping(self, shape: Shape) -> Duration {
        (self.pass + self.token * (shape.members - 1)) * shape.new
    }

    /// Shrinks a shape until its call takes no longer than `most`, at the smallest to [`TINY`]. Members show the most, so they are
    /// reduced last.
    pub(super) fn within(self, mut shape: Shape, most: Duration) -> Shape {
        while self.feeding(shape) + self.stepping(shape) > most && shape != TINY {
            let Shape { members, prompt, new } = shape;
            if new > 1 && (self.stepping(shape) >= self.feeding(shape) || (members == 1 && prompt == 2)) {
                shape.new = new / 2;
            } else if prompt > 4 || members == 1 {
                shape.prompt = (prompt / 2).max(2);
            } else {
                shape.members = members / 2;
            }
        }
        shape
    }
}

/// Measures calls of an engine.
#[derive(Clone, Copy)]
pub(super) struct Meter<'a> {
    pub(super) engine: &'a dyn Engine,
    pub(super) sample: Sample,
}

impl Meter<'_> {
    /// Makes a call and measures it. The call is cut to the model's positions.
    pub(super) fn call(self, shape: Shape) -> Result<CallTime, EngineFailed> {
        let (prompts, new) = self.sample.prompts(shape);
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let fed = prompts.iter().map(|prompt| prompt.len() as u64 - 1).sum();
        // No sequence ends before all its tokens, so every run does the same work.
        let call = Call { prompts, options: Options::default(), least: new, most: new };
        let start = Instant::now();
        let mut first = None;
        let mut steps = 0;
        self.engine.generate(&call, &mut |token| {
            first.get_or_insert_with(|| start.elapsed());
            steps = token.step;
            false
        })?;
        let all = start.elapsed();
        let first = first.unwrap_or(all);
        let member_steps = u64::from(shape.members) * (steps + 1);
        Ok(CallTime { first, rest: all.saturating_sub(first), steps, fed, member_steps })
    }
}

impl Sample {
    /// Different prompts, and the number of new tokens that fit after them.
    fn prompts(self, shape: Shape) -> (Vec<Vec<u32>>, u32) {
        let new = shape.new.min(self.positions / 2).max(1);
        let length = shape.prompt.min(self.positions.saturating_sub(new)).max(1);
        let vocabulary = self.vocabulary.max(1);
        let prompts = (0..shape.members).map(|member| {
            // A large odd factor scatters the ids over the vocabulary.
            (0..length).map(|place| (member * length + place).wrapping_mul(2_654_435_761) % vocabulary).collect()
        });
        (prompts.collect(), new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_fit_small_models() {
        for positions in [2, 3, 10, 24, 1000] {
            let (prompts, new) = Sample { vocabulary: 7, positions }.prompts(Shape { members: 3, ..BATCH });
            assert!(
                prompts.iter().all(|prompt| !prompt.is_empty() && prompt.len() + new as usize <= positions as usize)
            );
            assert!(prompts.iter().flatten().all(|&id| id < 7));
        }
    }

    #[test]
    fn measuring_takes_a_tenth_of_the_loading_or_three_seconds() {
        assert_eq!(budget(Duration::from_secs(1)), Duration::from_secs(3));
        assert_eq!(budget(Duration::from_secs(60)), Duration::from_secs(6));
    }

    #[test]
    fn calls_of_a_slower_model_are_measured_smaller() {
        let shape = |pass, shape, most| {
            let pass = Duration::from_micros(pass);
            Estimate { pass, token: pass / FREE }.within(shape, Duration::from_millis(most))
        };
        assert_eq!(shape(500, BATCH, 500), BATCH);
        let less = shape(170_000, BATCH, 1_000);
        assert!(less.members > 1 && less != BATCH, "{less:?}");
        for all in SHAPES {
            assert_eq!(shape(1_000_000, all, 500), TINY);
        }
    }

    #[test]
    fn the_times_of_a_pass_and_of_its_tokens_are_separated() {
        let millis = Duration::from_millis;
        let time = CallTime { first: millis(250), rest: millis(300), steps: 3, ..CallTime::default() };
        let estimate = Estimate::of(Shape { members: 1, prompt: 16, new: 4 }, time);
        assert_eq!((estimate.pass, estimate.token), (millis(100), millis(10)));
    }
}
