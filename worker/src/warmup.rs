//! Measures between loading the model and serving: the number of threads that serves a batch fastest (`threads`), and the first
//! times of the engine's calls, which also warm it up.
//!
//! The measured calls are smaller for a slower model, so that all measuring takes at most a tenth of the time of loading, or
//! three seconds.

use std::time::Instant;

use crate::engine::{Engine, EngineFailed};
use crate::pace::{CallTime, Pace};

mod meter;
mod threads;

use meter::{BATCH, Estimate, Meter, SHAPES, Shape, TINY};
pub use meter::{Sample, budget};
pub use threads::{Loaded, fastest};

/// Makes the engine's first calls, which are slow, so that no request waits for them. Measures the engine's pace until about
/// `until`.
///
/// # Errors
/// The engine failed.
pub fn warm_up(engine: &dyn Engine, sample: Sample, pace: &Pace, until: Instant) -> Result<(), EngineFailed> {
    let meter = Meter { engine, sample };
    let mut estimate = Estimate::of(TINY, meter.call(TINY)?);
    let mut measured: Vec<(Shape, CallTime)> = Vec::new();
    // The first call of each size is slower than later ones. Smaller calls first, since they predict the time of larger ones.
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
    // The first two calls were the first of their sizes, so they are left out.
    for (_, time) in measured.iter().skip(2) {
        pace.learn(&time.load(), time.first + time.rest);
    }
    Ok(())
}

/// The last call with the fewest members, and the last call with the most.
fn extremes(measured: &[(Shape, CallTime)]) -> Option<(CallTime, Shape, CallTime)> {
    let (_, few) = measured.iter().rev().min_by_key(|(shape, _)| shape.members)?;
    let (shape, many) = measured.iter().max_by_key(|(shape, _)| shape.members)?;
    Some((*few, *shape, *many))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use std::time::Duration;

    use super::*;
    use crate::engine::{Call, NewToken};

    #[test]
    fn a_lone_member_is_compared_with_as_many_as_were_measured() {
        let measured: Vec<(Shape, CallTime)> =
            (1..).zip(SHAPES).map(|(steps, shape)| (shape, CallTime { steps, ..CallTime::default() })).collect();
        let (few, shape, many) = extremes(&measured).unwrap();
        assert_eq!((few.steps, shape, many.steps), (1, BATCH, 2));
    }

    /// An engine that only counts its calls and tokens.
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
    fn with_no_time_left_the_pace_is_still_measured() {
        let engine = Counted { calls: AtomicU64::new(0), tokens: AtomicU64::new(0) };
        let pace = Pace::default();
        let sample = Sample { vocabulary: 100, positions: 1000 };
        warm_up(&engine, sample, &pace, Instant::now()).unwrap();
        assert_eq!((engine.calls.load(Relaxed), engine.tokens.load(Relaxed)), (2, 4), "two calls of two tokens");
        assert!(pace.cost().step > 0);
        let unhurried = Cell::new(0);
        warm_up(&engine, sample, &Pace::default(), Instant::now() + Duration::from_secs(3600)).unwrap();
        unhurried.set(engine.calls.load(Relaxed));
        assert_eq!(unhurried.get(), 2 + 9, "all calls");
    }
}
