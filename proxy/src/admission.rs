//! Admission control: the queue is bounded in texts, and the memory of prompts in bytes.
//!
//! Both are reserved before anything is done for a request. Dropping the reservation gives them back. A text counts
//! while it waits. Bytes count until the request has ended, because a prompt is kept until then.
//!
//! The bytes of a body are reserved as they arrive. All incomplete bodies together may take only a part of the memory,
//! so that many bodies that arrive slowly, or never end, leave memory for small bodies and for complete ones.
//!
//! A refused client is told when to come back: when a part of the queue is forecast to be done. The times are spread,
//! so that refused clients do not come back all at once.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::Gauge;

use crate::domain::{Count, CountGuard, ModelId};
use crate::metrics::Metrics;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The texts do not fit the queue.
    #[error("the queue is full")]
    QueueFull {
        /// How long the client should wait before it tries again, in whole seconds from 1 to 60.
        retry_after: Duration,
    },
    /// The bytes do not fit the memory for prompts.
    #[error("the memory for waiting requests is full")]
    QueueBytes {
        /// How long the client should wait before it tries again, in whole seconds from 1 to 60.
        retry_after: Duration,
    },
    /// The proxy is shutting down.
    #[error("the server is shutting down")]
    Draining,
}

/// How much is admitted.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The most texts that may wait.
    pub texts: usize,
    /// The most bytes that requests may hold.
    pub bytes: usize,
}

/// Admission control. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admission {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    bounds: Bounds,
    depth: Arc<Count>,
    memory: Mutex<Memory>,
    /// Requests that are being read.
    arriving: Arc<Count>,
    backlog: Mutex<Backlog>,
    /// The number of refusals, from which the spread of `Retry-After` follows.
    refusals: AtomicU64,
    metrics: Arc<Metrics>,
}

/// How long the texts that wait will take, as it was a few milliseconds ago.
#[derive(Debug, Default)]
struct Backlog {
    /// The time for those that a model may serve.
    by_model: Vec<(ModelId, Duration)>,
    /// The number of all texts.
    texts: usize,
}

/// The bytes that requests hold.
#[derive(Debug, Default)]
struct Memory {
    bytes: usize,
    /// The part of `bytes` that belongs to incomplete bodies, without the first bytes of each.
    incomplete: usize,
}

/// The longest that a request's body may take to arrive, even if the request's own timeout is longer.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long idle connections stay open once clients are to go elsewhere, since a request may be on its way.
pub const LINGER: Duration = Duration::from_secs(1);

/// The first bytes of each body, which do not count as incomplete. With the default settings, those of all connections
/// fit in memory together with the share of incomplete bodies.
const FIRST_BYTES: usize = 2048;
/// All incomplete bodies may take one part in this many of the memory, besides the first bytes of each.
const INCOMPLETE_SHARE: usize = 2;
/// The largest `Retry-After`, in seconds.
const LONGEST_RETRY: u64 = 60;
/// The engines' time that is assumed for a text until it has been measured.
const UNKNOWN_PACE: Duration = Duration::from_millis(10);

impl Admission {
    /// Admission control with nothing reserved.
    pub fn new(bounds: Bounds, metrics: Arc<Metrics>) -> Self {
        let state = State {
            bounds,
            depth: Count::new(metrics.queue_depth.clone()),
            memory: Mutex::default(),
            arriving: Count::new(Gauge::noop()),
            backlog: Mutex::default(),
            refusals: AtomicU64::new(0),
            metrics,
        };
        Self { state: Arc::new(state) }
    }

    /// Reserves slots for `n` texts for this model, all or none.
    ///
    /// # Errors
    /// The queue has fewer free slots.
    pub fn texts(&self, n: usize, model: ModelId) -> Result<Vec<CountGuard>, Rejected> {
        self.state.depth.add_within(n, self.state.bounds.texts).ok_or_else(|| self.refuse(model))
    }

    /// Counts a refusal because the queue, or the scheduler's inbox before it, is full.
    pub fn refuse(&self, model: ModelId) -> Rejected {
        self.state.metrics.rejected_queue_full.increment(1);
        Rejected::QueueFull { retry_after: self.state.retry_after(self.state.backlog(model)) }
    }

    /// A slot for a text that was admitted before and comes back from a worker. It is never refused, so the bound can be
    /// exceeded by as many texts as workers hold.
    pub fn readmit(&self) -> CountGuard {
        self.state.depth.add()
    }

    /// Begins the reservation for a body of at least `announced` bytes. These bytes are not reserved yet, since they
    /// may never arrive.
    ///
    /// # Errors
    /// There is no memory for this many bytes now.
    pub fn body(&self, announced: usize) -> Result<BodyBytes, Rejected> {
        let body = BodyBytes { state: self.state.clone(), held: 0, incomplete: 0, is_complete: false };
        body.grown(announced, &self.state.memory())?;
        Ok(body)
    }

    /// The requests that are being read.
    pub fn arriving(&self) -> &Arc<Count> {
        &self.state.arriving
    }

    /// Sets how long the engines of each model are forecast to take for the waiting texts that they may serve. `texts` is the
    /// number of all texts that wait. A model whose engines are not measured yet is left out.
    pub fn set_backlog(&self, by_model: Vec<(ModelId, Duration)>, texts: usize) {
        *self.state.backlog.lock().unwrap_or_else(PoisonError::into_inner) = Backlog { by_model, texts };
    }

    /// How long a refused client should wait before it tries again, in whole seconds from 1 to 60, if the texts
    /// ahead of it are forecast to take the engines `backlog`.
    pub fn retry_after(&self, backlog: Duration) -> Duration {
        self.state.retry_after(backlog)
    }
}

impl State {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The engines' time for the texts that wait now and that this model may serve. For any model, the shortest time counts.
    fn backlog(&self, model: ModelId) -> Duration {
        self.backlog_of(|known| {
            let of_model = known.iter().filter(|(other, _)| model == ModelId::ANY || *other == model);
            of_model.map(|(_, time)| *time).min()
        })
    }

    /// The time after which the engines of all models will have served what waits now.
    fn longest_backlog(&self) -> Duration {
        self.backlog_of(|known| known.iter().map(|(_, time)| *time).max())
    }

    fn backlog_of(&self, chosen: impl Fn(&[(ModelId, Duration)]) -> Option<Duration>) -> Duration {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let now = count(self.depth.get());
        let known = self.backlog.lock().unwrap_or_else(PoisonError::into_inner);
        match chosen(&known.by_model) {
            // The queue may have grown since then.
            Some(time) => time.saturating_mul(now) / count(known.texts).max(1),
            None => UNKNOWN_PACE.saturating_mul(now),
        }
    }

    /// The time for half of the backlog, plus up to as long again: refused clients come back spread over the time in
    /// which the queue drains.
    ///
    /// Successive refusals are spread evenly by the golden ratio (an additive recurrence: Roberts, The unreasonable
    /// effectiveness of quasirandom sequences, 2018), which needs no random numbers.
    fn retry_after(&self, backlog: Duration) -> Duration {
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let forecast = u64::try_from((backlog / 2).as_millis().div_ceil(1000)).unwrap_or(u64::MAX);
        let forecast = forecast.clamp(1, LONGEST_RETRY);
        let place = self.refusals.fetch_add(1, Relaxed).wrapping_mul(GOLDEN);
        let jitter = (u128::from(place) * u128::from(forecast + 1)) >> 64;
        let seconds = forecast + u64::try_from(jitter).unwrap_or(0);
        Duration::from_secs(seconds.min(LONGEST_RETRY))
    }
}

/// The memory reserved for a request, first for its body as it arrives. Dropping it gives the memory back.
#[derive(Debug)]
pub struct BodyBytes {
    state: Arc<State>,
    held: usize,
    /// The part of the bytes that counts as incomplete.
    incomplete: usize,
    is_complete: bool,
}

impl BodyBytes {
    /// Reserves `n` more bytes.
    ///
    /// # Errors
    /// There is no memory for this many bytes. What was reserved before stays reserved.
    pub fn grow(&mut self, n: usize) -> Result<(), Rejected> {
        let mut memory = self.state.memory();
        let (held, incomplete) = self.grown(n, &memory)?;
        memory.bytes = memory.bytes - self.held + held;
        memory.incomplete = memory.incomplete - self.incomplete + incomplete;
        drop(memory);
        (self.held, self.incomplete) = (held, incomplete);
        Ok(())
    }

    /// What is held with `n` more bytes, and how much of it is incomplete.
    fn grown(&self, n: usize, memory: &Memory) -> Result<(usize, usize), Rejected> {
        let State { bounds, metrics, .. } = &*self.state;
        let held = self.held.saturating_add(n);
        let incomplete = if self.is_complete { 0 } else { held.saturating_sub(FIRST_BYTES) };
        let (others, other_bodies) = (memory.bytes - self.held, memory.incomplete - self.incomplete);
        // A body that is the only incomplete one may take all memory.
        let most = if other_bodies == 0 { bounds.bytes } else { bounds.bytes / INCOMPLETE_SHARE };
        if held > bounds.bytes - others || (incomplete > self.incomplete && other_bodies + incomplete > most) {
            metrics.rejected_queue_bytes.increment(1);
            return Err(Rejected::QueueBytes { retry_after: self.state.retry_after(self.state.longest_backlog()) });
        }
        Ok((held, incomplete))
    }

    /// Records that the body is complete.
    pub fn complete(&mut self) {
        self.is_complete = true;
        self.state.memory().incomplete -= std::mem::take(&mut self.incomplete);
    }
}

impl Drop for BodyBytes {
    fn drop(&mut self) {
        let mut memory = self.state.memory();
        memory.bytes -= self.held;
        memory.incomplete -= self.incomplete;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission_of(texts: usize, bytes: usize) -> Admission {
        Admission::new(Bounds { texts, bytes }, Arc::new(Metrics::new().unwrap()))
    }

    fn held(admission: &Admission) -> (usize, usize) {
        let memory = admission.state.memory();
        (memory.bytes, memory.incomplete)
    }

    #[test]
    fn the_texts_of_a_request_are_admitted_all_or_none() {
        let admission = admission_of(3, 0);
        let first = admission.texts(2, ModelId::ANY).unwrap();
        assert!(matches!(admission.texts(2, ModelId::ANY), Err(Rejected::QueueFull { .. })));
        drop(first);
        assert_eq!(admission.texts(3, ModelId::ANY).unwrap().len(), 3);
    }

    #[test]
    fn bytes_are_held_until_dropped() {
        let admission = admission_of(0, 10);
        let body = |bytes| {
            let mut body = admission.body(bytes)?;
            body.grow(bytes).map(|()| body)
        };
        let mut held = body(4).unwrap();
        held.complete();
        held.grow(6).unwrap();
        assert!(matches!(held.grow(1), Err(Rejected::QueueBytes { .. })));
        drop(held);
        assert!(body(10).is_ok());
        assert!(body(11).is_err());
        assert!(body(usize::MAX).is_err());
        assert!(body(10).is_ok(), "the refused bodies hold no memory");
    }

    #[test]
    fn announced_bytes_that_do_not_arrive_take_no_memory() {
        let admission = admission_of(0, 2 * FIRST_BYTES);
        let announced: Vec<_> = (0..100).map(|_| admission.body(FIRST_BYTES + 100).unwrap()).collect();
        assert!(admission.body(2 * FIRST_BYTES + 1).is_err());
        drop(announced);
        assert_eq!(held(&admission), (0, 0));
    }

    #[test]
    fn a_large_body_may_take_all_memory_if_no_other_is_incomplete() {
        let admission = admission_of(0, 4 * FIRST_BYTES);
        let mut body = admission.body(4 * FIRST_BYTES).unwrap();
        (0..4).for_each(|_| body.grow(FIRST_BYTES).unwrap());
    }

    #[test]
    fn large_incomplete_bodies_leave_memory_for_others() {
        let admission = admission_of(0, 20 * FIRST_BYTES);
        let mut large: Vec<_> = std::iter::from_fn(|| {
            let mut body = admission.body(0).ok()?;
            body.grow(3 * FIRST_BYTES).ok().map(|()| body)
        })
        .collect();
        assert_eq!(large.len(), 5, "two in three bytes of each count");
        let small = || {
            let mut body = admission.body(FIRST_BYTES)?;
            body.grow(FIRST_BYTES)?;
            body.complete();
            Ok::<_, Rejected>(body)
        };
        let mut others: Vec<_> = (0..5).map(|_| small().unwrap()).collect();
        assert!(small().is_err(), "all memory is taken");
        others.clear();
        large.iter_mut().for_each(BodyBytes::complete);
        let mut next = admission.body(3 * FIRST_BYTES).unwrap();
        next.grow(3 * FIRST_BYTES).expect("the large bodies are complete, so they do not count as incomplete");
        large.clear();
        drop(next);
        assert_eq!(held(&admission), (0, 0));
    }

    #[test]
    fn retry_after_follows_the_measured_pace_and_is_spread_evenly() {
        let admission = admission_of(100, 0);
        let model = ModelId::new(1);
        let _waiting = admission.texts(100, model).unwrap();
        let refused = || match admission.texts(1, model) {
            Err(Rejected::QueueFull { retry_after }) => retry_after.as_secs(),
            other => panic!("{other:?}"),
        };
        let counts = |pace: Duration| {
            admission.set_backlog(vec![(model, 100 * pace), (ModelId::new(2), Duration::from_secs(9))], 100);
            let mut counts = std::collections::BTreeMap::new();
            (0..1000).for_each(|_| *counts.entry(refused()).or_insert(0) += 1);
            counts
        };
        let even = |counts: &std::collections::BTreeMap<u64, i32>, seconds: std::ops::RangeInclusive<u64>| {
            let each = 1000 / i32::try_from(counts.len()).unwrap();
            counts.keys().copied().eq(seconds) && counts.values().all(|count| (count - each).abs() <= 3)
        };
        let quick = counts(Duration::from_millis(1));
        assert!(even(&quick, 1..=2), "{quick:?}");
        let slow = counts(Duration::from_millis(80));
        assert!(even(&slow, 4..=8), "half of 8 s, and up to as long again: {slow:?}");
        let stuck = counts(Duration::from_secs(100));
        assert_eq!(stuck.into_iter().collect::<Vec<_>>(), [(60, 1000)]);
    }
}
