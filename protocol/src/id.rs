//! The names of things on the wire.

use std::fmt;

/// A batch, unique for the life of one connection; it travels in the header of every frame that concerns the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId(pub u64);

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch-{}", self.0)
    }
}

/// A member's place in the list that its BATCH frame carried, from 0.
pub type MemberIndex = u32;
