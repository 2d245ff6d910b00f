//! The parts of the batching policy, each of which can be switched off to see what it is worth.
//!
//! The policy's own code stays as it is. A mechanism is switched off by what the policy is told: it is not told that clients
//! were answered, for example, or every batch looks to it as if it had waited for no time at all.

use std::time::Duration;

use pillion_proxy::policy::View;
use pillion_proxy::policy::candidates::Bucket;
use tokio::time::Instant;

/// Longer than any request of a simulated load waits for its turn.
pub(super) const LONG_AGO: Duration = Duration::from_secs(24 * 60 * 60);

/// One part of the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mechanism {
    /// The policy holds a batch if more texts are expected soon. Without it every batch leaves at once.
    Holds,
    /// The policy expects requests from clients that were just answered. Without it every client is a new one.
    Returns,
    /// The policy expects back those whose answers the running batch is about to give, before they are given.
    Endings,
    /// The policy expects requests whose bodies are being read.
    Arriving,
    /// Only requests of similar length share a batch. Without it all with equal options do.
    Grouping,
    /// The batch that serves most requests a second goes first. Without it the one with the oldest request does.
    ShortestFirst,
    /// A batch that has waited for long goes first and is not interrupted. Without it no batch is ever due.
    Aging,
    /// A batch of which little is left gives way to those who wait.
    Preemption,
    /// What waits is shared among the workers that are idle. Without it the first of them takes all that it can.
    Sharing,
}

impl Mechanism {
    /// All of them.
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

    /// Its name in a table.
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

/// The buckets that the policy sees instead of those that wait. All have one batch key.
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
        // All are due, and of those the oldest goes first.
        Some(Mechanism::ShortestFirst) => buckets.iter_mut().for_each(|bucket| bucket.since -= LONG_AGO),
        Some(Mechanism::Aging) => buckets.iter_mut().for_each(|bucket| bucket.since = now),
        _ => {}
    }
    buckets
}

/// What the policy is told instead of what is known.
pub(super) fn view(known: View, without: Option<Mechanism>) -> View {
    match without {
        // A batch that costs nothing is not worth holding.
        Some(Mechanism::Holds) => View { fixed_cost: Duration::ZERO, ..known },
        Some(Mechanism::Endings) => View { ending: 0, ..known },
        Some(Mechanism::Arriving) => View { arriving: 0, ..known },
        _ => known,
    }
}
