//! The numbers that identify batches and members on the wire.

use std::fmt;

/// The number of a batch, unique for the life of one connection. The header of every frame that concerns the batch has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId(pub u64);

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch-{}", self.0)
    }
}

/// The number of a member: its index, from 0, in the list of its BATCH frame.
pub type MemberIndex = u32;
