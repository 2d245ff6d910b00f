//! The engine that generates tokens, and the threads that call it.
//!
//! [`Engine`] is the interface: [`ct2`] implements it with CTranslate2, tests with a script. [`EnginePool`] has two threads
//! per slot. Each thread takes one batch at a time and makes as many calls of the engine as the batch needs.

mod batch_run;
mod call;
pub mod ct2;
mod pool;
mod replicas;
mod running_call;
#[cfg(test)]
pub(crate) mod script;
mod thread;

pub use call::{Call, Engine, EngineFailed, NewToken};
pub use pool::{EnginePool, PoolFull, ReceivedBatch};
