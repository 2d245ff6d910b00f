//! What happens between loading the model and serving: how many threads serve a batch fastest is measured
//! (`threads`), and the engine is warmed up, which also gives the first measurements of its pace.
//!
//! All of it shrinks with what a step of the model costs: it takes at most a tenth of the time that loading took, or three
//! seconds.

use std::time::{Duration, Instant};

use pillion_protocol::frame::Options;

use crate::engine::{Call, CallTime, Engine, EngineFailed};
use crate::pace::Pace;

mod threads;

pub use threads::{Loaded, fastest};

/// The batch that the pace and thread counts are judged by.
const BATCH: Shape = Shape { members: 32, prompt: 16, new: 8 };
/// The calls that tell apart what a call, a step, a member and a prompt token cost.
const SHAPES: [Shape; 4] = [
    Shape { members: 1, ..BATCH },
    BATCH,
    Shape { members: 8, prompt: 64, new: 8 },
    Shape { members: 2, prompt: 128, new: 8 },
];
/// The least that tells anything.
const TINY: Shape = Shape { members: 1, prompt: 2, new: 1 };
/// Measuring may take so long whatever the loading took.
const ALWAYS: Duration = Duration::from_secs(3);

/// How long measuring may take after a model has loaded in `loading`.
pub fn budget(loading: Duration) -> Duration {
    (loading / 10).max(ALWAYS)
}

/// A model's prompt tokens and how long they may be, for calls whose answers nobody reads.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Entries in the vocabulary.
    pub vocabulary: u32,
    /// Positions of the model.
    pub positions: u32,
}

/// What a call for measuring does: so many members, each with a prompt of so many tokens and so many new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    members: u32,
    prompt: u32,
    new: u32,
}

/// What calls take, as far as is known.
#[derive(Clone, Copy, Debug, Default)]
struct Estimate {
    /// A pass over the model's weights, however few tokens are in it.
    pass: Duration,
    /// A token in a pass of many.
    token: Duration,
}

/// Tokens that a pass takes on top of one without taking longer, where that is not known: few models take fewer.
const FREE: u32 = 8;

impl Estimate {
    fn of(shape: Shape, time: CallTime) -> Self {
        // Until the first token comes there are two passes, one over the prompt and one for the token.
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

    /// The largest form of a shape that takes no longer than this; the least of all where none does. Members are what tells
    /// most, so they go last.
    fn within(self, mut shape: Shape, most: Duration) -> Shape {
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

/// The engine, asked for what it takes.
#[derive(Clone, Copy)]
struct Meter<'a> {
    engine: &'a dyn Engine,
    sample: Sample,
}

impl Meter<'_> {
    /// Makes a call, as far as the model has the positions for it.
    fn call(self, shape: Shape) -> Result<CallTime, EngineFailed> {
        let (prompts, new) = self.sample.prompts(shape);
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let fed = prompts.iter().map(|prompt| prompt.len() as u64 - 1).sum();
        // No end of sequence before all tokens are there: every run does the same work.
        let asked = Call { prompts, options: Options::default(), least: new, most: new };
        let start = Instant::now();
        let mut first = None;
        let mut steps = 0;
        self.engine.generate(&asked, &mut |token| {
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
    /// Different prompts, and how many new tokens fit behind them.
    fn prompts(self, shape: Shape) -> (Vec<Vec<u32>>, u32) {
        let new = shape.new.min(self.positions / 2).max(1);
        let length = shape.prompt.min(self.positions.saturating_sub(new)).max(1);
        let vocabulary = self.vocabulary.max(1);
        let prompts = (0..shape.members).map(|member| {
            // Multiplying by a large odd number scatters the ids over the vocabulary.
            (0..length).map(|place| (member * length + place).wrapping_mul(2_654_435_761) % vocabulary).collect()
        });
        (prompts.collect(), new)
    }
}

/// Makes the engine's first calls, so that no request pays for them, and measures its pace, until about then.
///
/// # Errors
/// The engine failed.
pub fn warm_up(engine: &dyn Engine, sample: Sample, pace: &Pace, until: Instant) -> Result<(), EngineFailed> {
    let meter = Meter { engine, sample };
    let mut estimate = Estimate::of(TINY, meter.call(TINY)?);
    let mut measured: Vec<(Shape, CallTime)> = Vec::new();
    // The first of each is slower than those that come later, and larger ones are known better after smaller ones.
    let one = Shape { members: 1, ..BATCH };
    for shape in [one, BATCH, one, BATCH].into_iter().chain(SHAPES) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() && !measured.is_empty() {
            break;
        }
        let shape = estimate.within(shape, left / 2);
        let time = meter.call(shape)?;
        if shape != TINY {
            estimate = Estimate::of(shape, time);
        }
        measured.push((shape, time));
    }
    if let Some((few, shape, many)) = extremes(&measured) {
        let step = |time: &CallTime| time.step().unwrap_or(time.first / 2);
        pace.called(many);
        pace.compared(step(&few), shape.members, step(&many));
    }
    // Those before were the first of their kind.
    for (_, time) in measured.iter().skip(2) {
        pace.learn(&time.load(), time.first + time.rest);
    }
    Ok(())
}

/// The last of the calls with the fewest members, and of those with the most.
fn extremes(measured: &[(Shape, CallTime)]) -> Option<(CallTime, Shape, CallTime)> {
    let (_, few) = measured.iter().rev().min_by_key(|(shape, _)| shape.members)?;
    let (shape, many) = measured.iter().max_by_key(|(shape, _)| shape.members)?;
    Some((*few, *shape, *many))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;
    use crate::engine::NewToken;

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
    fn what_costs_more_is_measured_less() {
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
    fn a_lone_member_is_compared_with_as_many_as_were_measured() {
        let measured: Vec<(Shape, CallTime)> =
            (1..).zip(SHAPES).map(|(steps, shape)| (shape, CallTime { steps, ..CallTime::default() })).collect();
        let (few, shape, many) = extremes(&measured).unwrap();
        assert_eq!((few.steps, shape, many.steps), (1, BATCH, 2));
    }

    #[test]
    fn a_pass_and_its_tokens_are_told_apart() {
        let millis = Duration::from_millis;
        let time = CallTime { first: millis(250), rest: millis(300), steps: 3, ..CallTime::default() };
        let estimate = Estimate::of(Shape { members: 1, prompt: 16, new: 4 }, time);
        assert_eq!((estimate.pass, estimate.token), (millis(100), millis(10)));
    }

    /// An engine that does nothing but count what it would have taken.
    struct Counted {
        calls: AtomicU64,
        tokens: AtomicU64,
    }

    impl Engine for Counted {
        fn generate(
            &self,
            call: &Call<'_>,
            on_token: &mut (dyn FnMut(NewToken) -> bool + Send),
        ) -> Result<(), EngineFailed> {
            self.calls.fetch_add(1, Relaxed);
            self.tokens.fetch_add(call.prompts.iter().map(|prompt| prompt.len() as u64).sum(), Relaxed);
            for step in 0..u64::from(call.most) {
                (0..call.prompts.len()).for_each(|member| {
                    on_token(NewToken { step, member, id: 0 });
                });
            }
            Ok(())
        }
    }

    #[test]
    fn with_no_time_left_the_pace_is_known_all_the_same() {
        let engine = Counted { calls: AtomicU64::new(0), tokens: AtomicU64::new(0) };
        let pace = Pace::default();
        let sample = Sample { vocabulary: 100, positions: 1000 };
        warm_up(&engine, sample, &pace, Instant::now()).unwrap();
        assert_eq!((engine.calls.load(Relaxed), engine.tokens.load(Relaxed)), (2, 4), "two calls of two tokens");
        assert!(pace.cost().step > 0);
        let unhurried = Cell::new(0);
        warm_up(&engine, sample, &Pace::default(), Instant::now() + Duration::from_secs(3600)).unwrap();
        unhurried.set(engine.calls.load(Relaxed));
        assert_eq!(unhurried.get(), 2 + 9, "all of them");
    }
}
