//! A worker without a model: it answers by rule, waits where an engine would work, and misbehaves when told to.
//!
//! Its answer to a prompt is the prompt's words in reverse, a word a token, so that a test can tell from the prompt
//! alone whether it got its own answer ([`echo::expected`]). Time is tokio's, and nothing burns CPU.

pub mod echo;
mod ending;
mod misbehaviour;
mod profile;
mod running;
mod session;

pub use ending::{Ending, SessionError};
pub use profile::{Fault, FaultKind, Profile};
pub use running::POISON;
pub use session::FakeWorker;
