//! The context in which an engine thread serves batches.

use super::call::Engine;
use super::replicas::Replicas;
use crate::shared::Shared;

#[derive(Clone, Copy)]
pub(super) struct EngineThread<'a> {
    pub(super) engine: &'a dyn Engine,
    pub(super) shared: &'a Shared,
    pub(super) replicas: &'a Replicas,
    /// The thread's number, from 0.
    pub(super) index: usize,
}
