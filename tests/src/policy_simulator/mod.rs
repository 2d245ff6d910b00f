//! Simulates the batching policy under a discrete-event clock. Hours of load take a second, and the same seed gives the
//! same results.
//!
//! The proxy's own code decides: [`Policy`](pillion_proxy::policy::Policy), [`Queue`], [`Workers`], and what they
//! learn. The rest is modelled: the clients ([`Clients`]), the engines, whose batches take the times that were measured
//! ([`Engine`]), and the one processor that runs everything else ([`Host`]). `tests/bench/RESULTS.md` compares the
//! simulator's predictions with measurements.
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

/// Simulates a load until every request that was sent has been answered.
pub fn simulate(setting: &Setting) -> Report {
    world::World::new(setting).run()
}
