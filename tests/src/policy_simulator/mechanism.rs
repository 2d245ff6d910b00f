//! The parts of the batching policy, each of which can be switched off to see what it is worth.
//!
//! The policy's own code does not change. To switch a mechanism off, the simulator gives the policy other information:
//! for example, it does not tell the policy that clients were answered, or it says that no batch has waited yet.

use std::time::Duration;

use pillion_proxy::policy::View;
use pillion_proxy::policy::candidates::Bucket;
use tokio::time::Instant;

/// A longer time than any request of a simulated load waits in the queue.
pub(super) const LONG_AGO: Duration = Duration::from_secs(24 * 60 * 60);

/// A part of the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mechanism {
    /// The policy holds a batch if more texts are expected soon. Without it every batch leaves at once.
    Holds,
    /// The policy expects requests from clients that were just answered. Without it every client is a new one.
    Returns,
    /// The policy expects that the clients of the running batch send their next requests. It expects this before the
    /// batch has ended.
    Endings,
    /// The policy expects requests whose bodies are being read.
    Arriving,
    /// Only requests of similar length share a batch. Without it, all requests with equal options may share one.
    Grouping,
    /// The batch that serves most requests a second goes first. Without it, the batch with the oldest request goes
    /// first.
    ShortestFirst,
    /// A batch that has waited for long goes first and is not interrupted. Without it no batch is ever due.
    Aging,
    /// A running batch with few members left is interrupted if many requests wait. Without it, no batch is interrupted.
    Preemption,
    /// The idle workers share the waiting requests. Without it, the first idle worker takes as many as it can.
    Sharing,
}

impl Mechanism {
    /// All mechanisms.
    pub const ALL: [Self; 9] = [
        Self::Holds,
        Self::Returns,
        Self::Endings,
        Self::Arriving,
        Self::Grouping,
        Self::ShortestFirst,
        Self::Aging,
        Self::Preemption,
        Self::Sharing,
    ];

    /// The mechanism's name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Returns => "returns",
            Self::Endings => "endings",
            Self::Arriving => "arriving",
            Self::Grouping => "grouping",
            Self::ShortestFirst => "shortest first",
            Self::Aging => "aging",
            Self::Preemption => "preemption",
            Self::Sharing => "sharing",
        }
    }
}

/// Returns the buckets that the policy is shown instead of those that wait. All buckets must have the same batch key.
pub(super) fn seen(mut buckets: Vec<Bucket>, without: Option<Mechanism>, now: Instant) -> Vec<Bucket> {
    match without {
        Some(Mechanism::Grouping) => {
            let all = buckets.into_iter().reduce(|all, bucket| Bucket {
                since: all.since.min(bucket.since),
                demand: all.demand.and(&bucket.demand),
                ..all
            });
            return all.into_iter().collect();
        }
        // This makes all buckets due. Of buckets that are due, the oldest goes first.
        Some(Mechanism::ShortestFirst) => buckets.iter_mut().for_each(|bucket| bucket.since -= LONG_AGO),
        Some(Mechanism::Aging) => buckets.iter_mut().for_each(|bucket| bucket.since = now),
        _ => {}
    }
    buckets
}

/// Returns the view that the policy is given instead of the true one.
pub(super) fn view(known: View, without: Option<Mechanism>) -> View {
    match without {
        // A batch that costs nothing is not worth holding.
        Some(Mechanism::Holds) => View { fixed_cost: Duration::ZERO, ..known },
        Some(Mechanism::Endings) => View { ending: 0, ..known },
        Some(Mechanism::Arriving) => View { arriving: 0, ..known },
        _ => known,
    }
}
