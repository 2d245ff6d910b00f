//! What a simulated worker is like.

use std::path::PathBuf;
use std::time::Duration;

use pillion_protocol::VERSIONS;
use pillion_protocol::frame::{Hello, UnitCost};

/// What a simulated worker says of itself, how long its work takes, and what it does wrong.
#[derive(Clone, Debug)]
pub struct Profile {
    /// What it says first.
    pub hello: Hello,
    /// Time from a batch's start to its first step.
    pub batch_cost: Duration,
    /// Time from one step of a batch to the next; every member gets a token a step.
    pub step_cost: Duration,
    /// Whether TOKENS are sent every step for all members, not only for those that stream.
    pub eager: bool,
    /// No batch takes a step while this file is there: lets a test say when.
    pub gate: Option<PathBuf>,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// How long the engine may go without a step, as the heartbeats say.
    pub silence: Duration,
    /// How long a drain may take before the remaining members are yielded.
    pub drain_timeout: Duration,
    /// Whether it grants credit at all.
    pub grants: bool,
    /// What it does wrong.
    pub fault: Option<Fault>,
}

impl Default for Profile {
    /// A worker with one slot and plenty of room that answers at once.
    fn default() -> Self {
        Self {
            hello: Hello {
                versions: VERSIONS.to_vec(),
                software: concat!("simulated-worker ", env!("CARGO_PKG_VERSION")).to_owned(),
                pid: std::process::id(),
                model: "simulated".to_owned(),
                fingerprint: "00".to_owned(),
                positions: 4096,
                vocabulary: 8192,
                max_batch_tokens: 1 << 20,
                slots: 1,
                chat: true,
                cost: UnitCost::default(),
                age_ms: 0,
            },
            batch_cost: Duration::ZERO,
            step_cost: Duration::ZERO,
            eager: false,
            gate: None,
            heartbeat: Duration::from_secs(1),
            silence: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(65),
            grants: true,
            fault: None,
        }
    }
}

/// Something done wrong once in a worker's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// In which batch, counted from 1 over all connections.
    pub batch: u64,
    /// After how many of that batch's steps.
    pub step: u64,
}

/// What a worker can do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum FaultKind {
    /// End the process without a word; in memory, as `Close`.
    Abort,
    /// Close the connection without a word.
    Close,
    /// Never step that batch again, while heartbeats go on.
    Stall,
    /// Send bytes that are no frame.
    Garbage,
    /// Send the first half of a frame and close.
    HalfFrame,
    /// Send the terminal entries of one step twice.
    AnswerTwice,
    /// Send tokens for a member that the batch does not have.
    UnknownMember,
    /// Send tokens for a batch that never was.
    UnknownBatch,
}
