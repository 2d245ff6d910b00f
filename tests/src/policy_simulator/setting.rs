//! What is simulated.

use std::time::Duration;

use super::{Clients, Engine, Mechanism, Request};

/// The rest of the machine: one processor for client, proxy, text and tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Host {
    /// Its time for a request, from the client's sending to its place in the queue.
    pub request: Duration,
    /// How long after a request's head the last of its body arrives. It costs the processor nothing.
    pub body: Duration,
    /// Its time for an answer, from the engine's end to the client.
    pub answer: Duration,
    /// From a batch's leaving to where an engine could begin it: wake-ups, and its text's tokens.
    pub handover: Duration,
    /// How long before a batch's end the worker grants the next credit.
    pub lead: Duration,
}

/// What decides when a batch leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Pillion's policy.
    Pillion,
    /// Whatever waits leaves as soon as there is credit, whoever rides with whom.
    AtOnce,
    /// A full batch, or one whose oldest member has waited so long, and only into an idle engine: what home-made servers
    /// do.
    Timer(Duration),
}

/// All of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// Who asks.
    pub clients: Clients,
    /// For what.
    pub requests: Vec<Request>,
    /// One worker for each.
    pub engines: Vec<Engine>,
    /// The rest of the machine.
    pub host: Host,
    /// What decides.
    pub rule: Rule,
    /// The part of Pillion's policy that is switched off, if one is.
    pub without: Option<Mechanism>,
    /// The most members of a batch.
    pub max_batch_size: usize,
    /// For how long requests are sent.
    pub span: Duration,
    /// For all that is random.
    pub seed: u64,
}
