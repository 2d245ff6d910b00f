//! What generates tokens, and the threads that own it.
//!
//! [`Engine`] is the seam: [`ct2`] is CTranslate2 behind it, tests put a script there. [`EnginePool`] is a thread per
//! slot, each of which takes one batch at a time through as many calls as it needs.

use std::time::Duration;

use pillion_protocol::frame::Options;
use pillion_protocol::service_time::Load;

use crate::config::FlagError;
use crate::model::ModelError;

pub mod ct2;
mod pool;
mod replicas;
mod ride;
#[cfg(test)]
pub(crate) mod script;
mod trip;

pub use pool::{Arrived, EnginePool, FEEDERS, Overrun};

/// One call: prompts that are decoded together.
#[derive(Debug)]
pub struct Call<'a> {
    /// Token ids to feed, none empty.
    pub prompts: Vec<&'a [u32]>,
    /// Decoding options.
    pub options: Options,
    /// No end of sequence before so many new tokens, for every member.
    pub least: u32,
    /// The most new tokens of any member, at least 1.
    pub most: u32,
}

/// A token of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// The decode step of the call, from 0: the steps that feed the rests of longer prompts count.
    pub step: u64,
    /// The member's place in the call.
    pub member: usize,
    /// The token.
    pub id: u32,
}

/// The engine failed in a call; no member of it is to blame for sure.
#[derive(Debug, thiserror::Error)]
pub enum EngineFailed {
    /// The device has not enough memory for the call.
    #[error("not enough memory: {0}")]
    OutOfMemory(String),
    /// What it computes with is not there or does not work: a library of CUDA, say.
    #[error("{0}")]
    Device(String),
    /// For another reason.
    #[error("{0}")]
    Other(String),
}

/// Why a model did not load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A flag's value is not for this device.
    #[error(transparent)]
    Flag(#[from] FlagError),
    /// The device is not to be had.
    #[error("{0}")]
    Device(String),
    /// A GPU is there, but not what computes on it.
    #[error("{0}")]
    Unusable(String),
    /// The engine does not take the model.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// Continues prompts.
pub trait Engine: Send + Sync {
    /// Runs a call to its end on the caller's time. Of calls made at the same time as many run as there are slots; the
    /// others wait inside, in their order. `on_token` is called for every new token of every member, an
    /// end-of-sequence token included, possibly on another thread; where it returns true, that member ends.
    ///
    /// # Errors
    /// The whole call failed.
    fn generate(
        &self,
        call: &Call<'_>,
        on_token: &mut (dyn FnMut(NewToken) -> bool + Send),
    ) -> Result<(), EngineFailed>;
}

/// What a finished call tells of the engine's speed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallTime {
    /// From the call to its first token.
    pub first: Duration,
    /// From its first token to its last.
    pub rest: Duration,
    /// Steps from the first token to the last.
    pub steps: u64,
    /// Prompt tokens fed before the first token.
    pub fed: u64,
    /// Steps of all members together, each from the first step to its own last, in which it may only be fed.
    pub member_steps: u64,
}

impl CallTime {
    /// What the engine had to do in it.
    #[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    pub fn load(&self) -> Load {
        let steps = (self.steps + 1) as f64;
        Load { calls: 1.0, steps, tokens: self.member_steps as f64, prompt: self.fed as f64 }
    }

    /// A step's mean time, if there was a step between tokens.
    pub fn step(&self) -> Option<Duration> {
        u32::try_from(self.steps).ok().filter(|steps| *steps > 0).map(|steps| self.rest / steps)
    }
}
