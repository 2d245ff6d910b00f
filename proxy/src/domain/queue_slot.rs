//! Counts the texts that wait in the queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use metrics::Gauge;

/// Counts the texts that wait, and shows the count as a metric.
#[derive(Debug)]
pub struct QueueDepth {
    texts: AtomicUsize,
    gauge: Gauge,
}

impl QueueDepth {
    /// A count of zero, shown by `gauge`.
    pub fn new(gauge: Gauge) -> Arc<Self> {
        Arc::new(Self { texts: AtomicUsize::new(0), gauge })
    }

    /// The number of texts that wait.
    pub fn get(&self) -> usize {
        self.texts.load(Relaxed)
    }

    /// Reserves slots for `n` more texts, all or none, so that at most `bound` texts wait.
    pub fn reserve(self: &Arc<Self>, n: usize, bound: usize) -> Option<Vec<QueueSlot>> {
        let room = |texts: usize| texts.checked_add(n).filter(|&sum| sum <= bound);
        self.texts.fetch_update(Relaxed, Relaxed, room).ok()?;
        Some((0..n).map(|_| self.slot()).collect())
    }

    /// A slot for a text that comes back to the queue. It is never refused, so the bound can be exceeded by as many
    /// texts as workers hold.
    pub fn readmit(self: &Arc<Self>) -> QueueSlot {
        self.texts.fetch_add(1, Relaxed);
        self.slot()
    }

    fn slot(self: &Arc<Self>) -> QueueSlot {
        self.gauge.increment(1.0);
        QueueSlot { depth: self.clone() }
    }
}

/// A text's slot in the queue. Dropping it frees the slot.
#[derive(Debug)]
pub struct QueueSlot {
    depth: Arc<QueueDepth>,
}

impl Drop for QueueSlot {
    fn drop(&mut self) {
        self.depth.texts.fetch_sub(1, Relaxed);
        self.depth.gauge.decrement(1.0);
    }
}
