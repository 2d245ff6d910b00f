//! Finds the number of threads that serves a batch fastest, by measuring: more threads make a small model slower.
//!
//! Only one model is in memory at a time. The counts are tried in turn, several times if that is cheap, so that other programs
//! disturb all counts alike. The best time of each count is compared. If loading again would take too long, or if other programs
//! used the processors meanwhile, the model's size decides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use super::meter::{BATCH, Estimate, Meter, Sample, Shape, TINY, budget};
use crate::engine::{Engine, EngineFailed};

/// The most times that each count is tried.
const ROUNDS: usize = 3;
/// Measured calls of one try, after one that is not measured.
const CALLS: usize = 3;
/// In our measurements, models with more bytes of weights than this gained from every thread, and smaller ones lost.
const LARGE: u64 = 32 << 20;
/// A measurement counts as disturbed if the system stopped its threads more often than this to run another program.
const SWITCH_EVERY: Duration = Duration::from_millis(5);

/// A model that is loaded.
pub struct Loaded {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// Processor threads of each slot.
    pub threads: usize,
    /// The time of loading once.
    pub loading: Duration,
    /// The time left for measuring.
    pub measuring: Duration,
}

/// The best time seen for a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Best {
    time: Duration,
    is_disturbed: bool,
}

/// Loads the engine with the thread count, of at most `available`, that serves a batch fastest. `weights` is the number of bytes
/// of the model's weights.
///
/// # Errors
/// The engine does not load, or fails.
pub fn fastest<E>(
    available: usize,
    weights: u64,
    sample: Sample,
    load: impl Fn(usize) -> Result<Arc<dyn Engine>, E>,
    failed: impl Fn(EngineFailed) -> E,
) -> Result<Loaded, E> {
    let mut counts = candidates(available);
    let mut threads = if weights >= LARGE { available.max(1) } else { 1 };
    let assumed = threads;
    let start = Instant::now();
    let mut engine = load(threads)?;
    let loading = start.elapsed();
    // The other half is for the warm-up.
    let time = budget(loading) / 2;
    if counts.len() == 1 || 2 * loading > time {
        return Ok(Loaded { engine, threads, loading, measuring: budget(loading) });
    }
    let until = Instant::now() + time;
    let tries = u32::try_from(counts.len() * (CALLS + 1)).unwrap_or(u32::MAX);
    let shape = shape(&*engine, sample, time / tries).map_err(&failed)?;
    let mut times = BTreeMap::new();
    'rounds: for _ in 0..ROUNDS {
        // Each round begins with the count that is loaded.
        if counts.first() != Some(&threads) {
            counts.reverse();
        }
        for &count in &counts {
            if count != threads {
                // Time must be left to load the best count again.
                if Instant::now() + 2 * loading > until {
                    break 'rounds;
                }
                drop(engine);
                engine = load(count)?;
                threads = count;
            }
            let seen = measure(&*engine, sample, shape, until).map_err(&failed)?;
            let best = times.entry(count).or_insert(seen);
            if seen.time < best.time {
                *best = seen;
            }
        }
    }
    for (threads, Best { time, is_disturbed }) in &times {
        tracing::info!(
            threads,
            batch_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX),
            is_disturbed,
            "measured"
        );
    }
    let chosen = choose(&times, assumed);
    if chosen != threads {
        drop(engine);
        engine = load(chosen)?;
    }
    Ok(Loaded { engine, threads: chosen, loading, measuring: time })
}

/// The batch by which counts are judged, if one call of it may take `most`.
fn shape(engine: &dyn Engine, sample: Sample, most: Duration) -> Result<Shape, EngineFailed> {
    let meter = Meter { engine, sample };
    let mut shape = TINY;
    meter.call(shape)?;
    // A larger call predicts the next one better, so the estimate is repeated.
    for _ in 0..3 {
        shape = Estimate::of(shape, meter.call(shape)?).within(BATCH, most);
    }
    Ok(shape)
}

/// Measures the best of a few calls.
fn measure(engine: &dyn Engine, sample: Sample, shape: Shape, until: Instant) -> Result<Best, EngineFailed> {
    let meter = Meter { engine, sample };
    meter.call(shape)?;
    let mut best: Option<Best> = None;
    for _ in 0..CALLS {
        let before = switches();
        let call = meter.call(shape)?;
        let time = call.first + call.rest;
        let allowed = i64::try_from(time.as_nanos() / SWITCH_EVERY.as_nanos()).unwrap_or(i64::MAX).saturating_add(1);
        let is_disturbed = switches() - before > allowed;
        if best.is_none_or(|best| time < best.time) {
            best = Some(Best { time, is_disturbed });
        }
        if Instant::now() > until {
            break;
        }
    }
    Ok(best.unwrap_or(Best { time: Duration::MAX, is_disturbed: true }))
}

/// How often the system stopped a thread of this process to run another program.
fn switches() -> i64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.involuntary_context_switches())
}

/// The thread counts to try for `available` processors: powers of two, and all.
fn candidates(available: usize) -> Vec<usize> {
    let mut counts: Vec<usize> = std::iter::successors(Some(1), |count: &usize| count.checked_mul(2))
        .take_while(|&count| count < available)
        .collect();
    counts.push(available.max(1));
    counts
}

/// Chooses the count that the model's size suggests, unless another count was faster by a quarter and no other program disturbed
/// the measurement.
fn choose(times: &BTreeMap<usize, Best>, assumed: usize) -> usize {
    let Some(Best { time: mut least, .. }) = times.get(&assumed).copied() else { return assumed };
    let mut chosen = assumed;
    for (&threads, &Best { time, .. }) in times {
        if time < least.mul_f64(0.8) {
            (chosen, least) = (threads, time);
        }
    }
    if chosen != assumed && times.values().any(|best| best.is_disturbed) {
        tracing::warn!(
            threads = assumed,
            "other programs used the processors while thread counts were measured: the count is chosen by the model's size; set --threads to choose it yourself"
        );
        return assumed;
    }
    chosen
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;
    use crate::engine::{Call, NewToken};

    fn micros(times: &[(usize, u64)], assumed: usize) -> usize {
        let best = |time| Best { time: Duration::from_micros(time), is_disturbed: false };
        choose(&times.iter().map(|&(threads, time)| (threads, best(time))).collect(), assumed)
    }

    #[test]
    fn another_count_than_the_size_suggests_must_be_faster_by_a_quarter() {
        assert_eq!(micros(&[(1, 100), (2, 85)], 1), 1);
        assert_eq!(micros(&[(1, 100), (2, 75)], 1), 2);
        assert_eq!(micros(&[(1, 85), (2, 100)], 2), 2);
        assert_eq!(micros(&[(1, 48), (2, 340)], 2), 1);
        assert_eq!(micros(&[(1, 100), (2, 60), (4, 58), (8, 45)], 1), 8);
        assert_eq!(micros(&[(2, 100)], 2), 2);
        assert_eq!(micros(&[], 7), 7);
    }

    #[test]
    fn a_disturbed_measurement_changes_nothing() {
        let best = |time, is_disturbed| Best { time: Duration::from_micros(time), is_disturbed };
        assert_eq!(choose(&BTreeMap::from([(1, best(100, false)), (2, best(10, true))]), 1), 1);
    }

    #[test]
    fn candidates_are_powers_of_two_and_all() {
        assert_eq!(candidates(0), [1]);
        assert_eq!(candidates(1), [1]);
        assert_eq!(candidates(2), [1, 2]);
        assert_eq!(candidates(6), [1, 2, 4, 6]);
    }

    /// An engine that counts its instances.
    struct Counted(&'static AtomicUsize);

    impl Engine for Counted {
        fn generate(
            &self,
            call: &Call<'_>,
            on_token: &mut (dyn FnMut(NewToken) -> bool + Send),
        ) -> Result<(), EngineFailed> {
            (0..call.prompts.len()).for_each(|member| {
                on_token(NewToken { step: 0, member, id: 0 });
            });
            Ok(())
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Relaxed);
        }
    }

    #[test]
    fn one_model_is_in_memory_at_a_time() {
        static THERE: AtomicUsize = AtomicUsize::new(0);
        let loaded = Mutex::new(Vec::new());
        let load = |threads| -> Result<Arc<dyn Engine>, EngineFailed> {
            assert_eq!(THERE.fetch_add(1, Relaxed), 0, "another one is there");
            loaded.lock().unwrap().push(threads);
            Ok(Arc::new(Counted(&THERE)))
        };
        let sample = Sample { vocabulary: 10, positions: 100 };
        let Loaded { threads, .. } = fastest(4, LARGE, sample, load, |error| error).unwrap();
        let loaded = loaded.into_inner().unwrap();
        assert_eq!(loaded[0], 4, "first the count that its size suggests");
        assert!([1, 2, 4].iter().all(|count| loaded.contains(count)), "{loaded:?}");
        assert_eq!(loaded.last(), Some(&threads));
    }
}
