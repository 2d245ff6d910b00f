//! The settings of a simulation: clients, requests, engines, the host, and the rule by which batches leave.

use std::time::Duration;

use super::{Clients, Engine, Mechanism, Request};

/// The machine besides the engines. One processor runs the clients and the proxy, and turns text into tokens and back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Host {
    /// The processor's time for each request, from when the client sends it until it is in the queue.
    pub request: Duration,
    /// The time from a request's head to the end of its body. Waiting for the body takes no processor time.
    pub body: Duration,
    /// The processor's time for each answer, from when the engine has made it until the client has it.
    pub answer: Duration,
    /// The time from when a batch leaves the queue until the engine can begin it. Threads wake up and prompts are
    /// tokenised in this time.
    pub handover: Duration,
    /// The time before a batch's end at which the worker grants the next credit.
    pub lead: Duration,
}

/// The rule that decides when a batch leaves the queue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Pillion's policy.
    Pillion,
    /// A batch leaves as soon as there is credit. Waiting requests of all sizes share it.
    AtOnce,
    /// A batch leaves when it is full, or when its oldest request has waited for this time. A batch leaves only while
    /// the engine is idle. Home-made servers work in this way.
    Timer(Duration),
}

/// All settings of a simulation.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// When clients send requests.
    pub clients: Clients,
    /// The kinds of requests that the clients send.
    pub requests: Vec<Request>,
    /// The engines. Each one has a worker of its own.
    pub engines: Vec<Engine>,
    /// The machine besides the engines.
    pub host: Host,
    /// The rule that decides when a batch leaves the queue.
    pub rule: Rule,
    /// The part of Pillion's policy that is switched off, if one is.
    pub without: Option<Mechanism>,
    /// The most members of a batch.
    pub max_batch_size: usize,
    /// The time during which clients send requests.
    pub span: Duration,
    /// The seed of all random numbers.
    pub seed: u64,
}
