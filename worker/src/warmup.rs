//! What happens between loading the model and serving: how many threads serve a batch fastest is measured, and the
//! engine is warmed up, which also gives the first measurements of its pace.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pillion_protocol::frame::Options;

use crate::engine::{Call, CallTime, Engine, EngineFailed};
use crate::memory;
use crate::pace::Pace;

/// The batch that thread counts are judged by.
const MEMBERS: u32 = 32;
const PROMPT: u32 = 16;
const NEW_TOKENS: u32 = 8;
const REPEATS: usize = 4;
/// Members and prompt tokens of the calls that tell apart what a call, a step, a member and a prompt token cost.
const SHAPES: [(u32, u32); 4] = [(1, PROMPT), (MEMBERS, PROMPT), (8, 64), (2, 128)];
/// Members and prompt tokens of the call that tells what a token takes of the memory.
const LARGE: (u32, u32) = (16, 128);
/// Calls are repeated no longer than this for one thread count.
const LONGEST: Duration = Duration::from_secs(5);

/// A model's prompt tokens and how long they may be, for calls whose answers nobody reads.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Entries in the vocabulary.
    pub vocabulary: u32,
    /// Positions of the model.
    pub positions: u32,
}

impl Sample {
    /// So many different prompts, and how many new tokens fit behind them.
    fn prompts(self, members: u32, length: u32) -> (Vec<Vec<u32>>, u32) {
        let new = NEW_TOKENS.min(self.positions / 2).max(1);
        let length = length.min(self.positions.saturating_sub(new)).max(1);
        let vocabulary = self.vocabulary.max(1);
        let prompts = (0..members).map(|member| {
            // Multiplying by a large odd number scatters the ids over the vocabulary.
            (0..length).map(|place| (member * length + place).wrapping_mul(2_654_435_761) % vocabulary).collect()
        });
        (prompts.collect(), new)
    }
}

/// Measures one batch of so many members, from its call to its end.
fn once(engine: &dyn Engine, sample: Sample, members: u32) -> Result<CallTime, EngineFailed> {
    call(engine, sample, members, PROMPT)
}

fn call(engine: &dyn Engine, sample: Sample, members: u32, length: u32) -> Result<CallTime, EngineFailed> {
    let (prompts, new) = sample.prompts(members, length);
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let fed = prompts.iter().map(|prompt| prompt.len() as u64 - 1).sum();
    // No end of sequence before all tokens are there: every run does the same work.
    let asked = Call { prompts, options: Options::default(), least: new, most: new };
    let start = Instant::now();
    let mut first = None;
    let mut steps = 0;
    engine.generate(&asked, &mut |token| {
        first.get_or_insert_with(|| start.elapsed());
        steps = token.step;
        false
    })?;
    let all = start.elapsed();
    let first = first.unwrap_or(all);
    let member_steps = u64::from(members) * (steps + 1);
    Ok(CallTime { first, rest: all.saturating_sub(first), steps, fed, member_steps })
}

/// Makes the engine's first calls, so that no request pays for them, and measures its pace.
///
/// # Errors
/// The engine failed.
pub fn warm_up(engine: &dyn Engine, sample: Sample, pace: &Pace) -> Result<(), EngineFailed> {
    once(engine, sample, MEMBERS)?;
    once(engine, sample, 1)?;
    let one = once(engine, sample, 1)?;
    let many = once(engine, sample, MEMBERS)?;
    pace.called(many);
    if let (Some(one), Some(many)) = (one.step(), many.step()) {
        pace.compared(one, MEMBERS, many);
    }
    for (members, length) in SHAPES {
        let time = call(engine, sample, members, length)?;
        pace.learn(&time.load(), time.first + time.rest);
    }
    Ok(())
}

/// Bytes of memory that a token of a batch takes, by a call that is larger than any before it.
///
/// # Errors
/// The engine failed.
pub fn bytes_per_token(engine: &dyn Engine, sample: Sample) -> Result<Option<u64>, EngineFailed> {
    let (time, grown) = memory::growth(|| call(engine, sample, LARGE.0, LARGE.1));
    let tokens = |members: u64, time: &CallTime| time.fed + members + time.member_steps;
    let more = tokens(LARGE.0.into(), &time?).saturating_sub(u64::from(MEMBERS * (PROMPT + NEW_TOKENS)));
    // The engine keeps the memory of the calls before, so that only what this one has beyond them is seen.
    Ok(grown.filter(|_| more > 0).map(|bytes| bytes / more))
}

/// The best time of a few for serving a batch.
///
/// # Errors
/// The engine failed.
pub fn measure(engine: &dyn Engine, sample: Sample) -> Result<Duration, EngineFailed> {
    let start = Instant::now();
    let mut best = Duration::MAX;
    once(engine, sample, MEMBERS)?;
    for _ in 0..REPEATS {
        let time = once(engine, sample, MEMBERS)?;
        best = best.min(time.first + time.rest);
        if start.elapsed() > LONGEST {
            break;
        }
    }
    Ok(best)
}

/// The thread counts worth trying where there are `available` of them for each engine: powers of two, and all.
pub fn candidates(available: usize) -> Vec<usize> {
    let mut counts: Vec<usize> = std::iter::successors(Some(1), |count: &usize| count.checked_mul(2))
        .take_while(|&count| count < available)
        .collect();
    counts.push(available.max(1));
    counts
}

/// The best of the measured thread counts, ascending: a larger one must be faster by a twentieth, since what it does not
/// use is the proxy's.
pub fn choose(times: &[(usize, Duration)]) -> Option<usize> {
    let mut best: Option<(usize, Duration)> = None;
    for &(threads, time) in times {
        if best.is_none_or(|(_, least)| time < least.mul_f64(0.95)) {
            best = Some((threads, time));
        }
    }
    best.map(|(threads, _)| threads)
}

/// Loads the engine with the thread count that serves a batch fastest.
///
/// # Errors
/// The engine does not load, or fails.
pub fn fastest<E>(
    available: usize,
    sample: Sample,
    load: impl Fn(usize) -> Result<Arc<dyn Engine>, E>,
    failed: impl Fn(EngineFailed) -> E,
) -> Result<(Arc<dyn Engine>, usize), E> {
    let candidates = candidates(available);
    let mut times = Vec::new();
    let mut kept: Option<(Arc<dyn Engine>, usize)> = None;
    for threads in candidates {
        let engine = load(threads)?;
        let time = measure(&*engine, sample).map_err(&failed)?;
        tracing::info!(threads, batch_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX), "measured");
        times.push((threads, time));
        if choose(&times) == Some(threads) {
            kept = Some((engine, threads));
        }
    }
    match kept {
        Some(kept) => Ok(kept),
        None => load(1).map(|engine| (engine, 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(times: &[(usize, u64)]) -> Option<usize> {
        let times: Vec<_> = times.iter().map(|&(threads, time)| (threads, Duration::from_micros(time))).collect();
        choose(&times)
    }

    #[test]
    fn more_threads_must_be_worth_it() {
        assert_eq!(micros(&[(1, 100), (2, 96)]), Some(1));
        assert_eq!(micros(&[(1, 100), (2, 94)]), Some(2));
        assert_eq!(micros(&[(1, 100), (2, 60), (4, 58), (8, 50)]), Some(8));
        assert_eq!(micros(&[(1, 48), (2, 340)]), Some(1));
        assert_eq!(micros(&[]), None);
    }

    #[test]
    fn candidates_are_powers_of_two_and_all() {
        assert_eq!(candidates(0), [1]);
        assert_eq!(candidates(1), [1]);
        assert_eq!(candidates(2), [1, 2]);
        assert_eq!(candidates(6), [1, 2, 4, 6]);
    }

    #[test]
    fn samples_fit_small_models() {
        for positions in [2, 3, 10, 24, 1000] {
            let (prompts, new) = Sample { vocabulary: 7, positions }.prompts(3, PROMPT);
            assert!(
                prompts.iter().all(|prompt| !prompt.is_empty() && prompt.len() + new as usize <= positions as usize)
            );
            assert!(prompts.iter().flatten().all(|&id| id < 7));
        }
    }
}
