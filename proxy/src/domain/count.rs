//! Counts things for as long as they last.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use metrics::Gauge;

/// A number of things, which is shown as a metric too.
#[derive(Debug)]
pub struct Count {
    number: AtomicUsize,
    gauge: Gauge,
}

impl Count {
    /// A count of zero, shown by `gauge`.
    pub fn new(gauge: Gauge) -> Arc<Self> {
        Arc::new(Self { number: AtomicUsize::new(0), gauge })
    }

    /// The number of things that are counted now.
    pub fn get(&self) -> usize {
        self.number.load(Relaxed)
    }

    /// Counts `n` more things, all or none, so that there are at most `bound`.
    pub fn add_within(self: &Arc<Self>, n: usize, bound: usize) -> Option<Vec<CountGuard>> {
        let room = |number: usize| number.checked_add(n).filter(|&sum| sum <= bound);
        self.number.fetch_update(Relaxed, Relaxed, room).ok()?;
        Some((0..n).map(|_| self.guard()).collect())
    }

    /// Counts one more thing, whatever the bound.
    pub fn add(self: &Arc<Self>) -> CountGuard {
        self.number.fetch_add(1, Relaxed);
        self.guard()
    }

    fn guard(self: &Arc<Self>) -> CountGuard {
        self.gauge.increment(1.0);
        CountGuard(self.clone())
    }
}

/// Counts one thing until it is dropped.
#[derive(Debug)]
pub struct CountGuard(Arc<Count>);

impl Drop for CountGuard {
    fn drop(&mut self) {
        self.0.number.fetch_sub(1, Relaxed);
        self.0.gauge.decrement(1.0);
    }
}
