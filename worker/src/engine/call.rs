//! The engine's interface: one call continues several prompts.

use pillion_protocol::frame::Options;

/// One call: prompts that are decoded together.
#[derive(Debug)]
pub struct Call<'a> {
    /// The token ids to feed for each member; no prompt is empty.
    pub prompts: Vec<&'a [u32]>,
    /// Decoding options.
    pub options: Options,
    /// New tokens that every member gets before its sequence may end.
    pub least: u32,
    /// The most new tokens of any member; at least 1.
    pub most: u32,
}

/// A token of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// The decode step of the call, from 0. Steps that only feed the rest of longer prompts count too.
    pub step: u64,
    /// The member's index in the call.
    pub member: usize,
    /// The token.
    pub id: u32,
}

/// A call failed as a whole. The error does not say which member caused it.
#[derive(Debug, thiserror::Error)]
pub enum EngineFailed {
    /// The device has too little memory for the call.
    #[error("not enough memory: {0}")]
    OutOfMemory(String),
    /// Something the device computes with is missing or does not work, for example a CUDA library.
    #[error("{0}")]
    Device(String),
    /// Any other reason.
    #[error("{0}")]
    Other(String),
}

/// Continues prompts.
pub trait Engine: Send + Sync {
    /// Runs a call to its end and blocks the calling thread meanwhile. As many calls run at once as there are slots; further
    /// calls wait inside, in the order in which they were made. The engine calls `on_token` for every new token of every
    /// member, end-of-sequence tokens included, possibly on another thread. If `on_token` returns true, that member ends.
    ///
    /// # Errors
    /// The whole call failed.
    fn generate(
        &self,
        call: &Call<'_>,
        on_token: &mut (dyn FnMut(NewToken) -> bool + Send),
    ) -> Result<(), EngineFailed>;
}
