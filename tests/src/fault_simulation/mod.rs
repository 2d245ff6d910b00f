//! The whole system in one thread, over pipes in memory and with tokio's time paused: a proxy, simulated workers that die,
//! lie, stall, leave and are replaced, and clients who want their answers. What happens comes from a seed.
//!
//! - [`plan`]: what will happen, drawn from the seed. Plain data.
//! - [`verdict`]: what an answer must be, given what was asked and what was planned. Plain data.
//! - [`run()`]: carries a plan out and judges it.
//!
//! (Testing a system so: Zhou et al., `FoundationDB`: a distributed unbundled transactional key value store, 2021, section 4.)

pub mod plan;
mod run;
pub mod verdict;

pub use run::{Outcome, run};
