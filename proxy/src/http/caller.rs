//! A client, from one request on its connection to the next.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use crate::admission::Promise;
use crate::batcher::Past;

/// What is remembered of a connection from one request to the next: when it had its last answer from a worker, and when it
/// was told to come back.
#[derive(Debug)]
pub(super) struct Caller {
    since: Instant,
    /// Microseconds since then; 0 for never.
    answered: AtomicU64,
    /// The same.
    promised: AtomicU64,
    /// Texts of the request that was refused then.
    promised_texts: AtomicUsize,
}

impl Caller {
    pub(super) fn new(since: Instant) -> Self {
        Self { since, answered: AtomicU64::new(0), promised: AtomicU64::new(0), promised_texts: AtomicUsize::new(0) }
    }

    /// When it had its last answer. Said once, since with the next request it is over.
    pub(super) fn answered(&self) -> Option<Instant> {
        self.take(&self.answered)
    }

    pub(super) fn has_its_answer(&self, now: Instant) {
        self.put(&self.answered, now);
    }

    /// Both. Said once.
    pub(super) fn past(&self) -> Past {
        let texts = self.promised_texts.load(Relaxed);
        Past { answered: self.answered(), promised: self.take(&self.promised).map(|due| Promise { due, texts }) }
    }

    pub(super) fn is_to_come_back(&self, Promise { due, texts }: Promise) {
        self.promised_texts.store(texts, Relaxed);
        self.put(&self.promised, due);
    }

    fn take(&self, from: &AtomicU64) -> Option<Instant> {
        match from.swap(0, Relaxed) {
            0 => None,
            micros => Some(self.since + Duration::from_micros(micros)),
        }
    }

    fn put(&self, into: &AtomicU64, instant: Instant) {
        let micros = u64::try_from(instant.saturating_duration_since(self.since).as_micros()).unwrap_or(u64::MAX);
        into.store(micros.max(1), Relaxed);
    }
}
