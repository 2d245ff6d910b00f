//! The batching policy under a discrete-event clock: hours of load in a second, the same each time from a seed.
//!
//! What decides is the proxy's own code ([`Policy`](pillion_proxy::policy::Policy), [`Queue`], [`Workers`] and what they
//! learn); around it are models of what cannot run here: clients ([`Clients`]), engines whose batches cost what was measured
//! ([`Engine`]), and the one processor that everything else shares ([`Host`]). `tests/bench/RESULTS.md` says how near
//! its predictions come to the real thing.
//!
//! [`Queue`]: pillion_proxy::scheduler::queue::Queue
//! [`Workers`]: pillion_proxy::scheduler::workers::Workers

mod ablation;
mod clients;
mod engine;
mod loads;
mod mechanism;
mod report;
mod setting;
mod world;

pub use ablation::ablation;
pub use clients::Clients;
pub use engine::{Engine, Request};
pub use loads::{Load, MODELS, engine_loads, loads};
pub use mechanism::Mechanism;
pub use report::Report;
pub use setting::{Host, Rule, Setting};

/// Runs a load to its end: until what was sent is answered.
pub fn simulate(setting: &Setting) -> Report {
    world::World::new(setting).run()
}
