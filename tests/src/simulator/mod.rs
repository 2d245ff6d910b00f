//! The batching policy under a discrete-event clock: hours of load in a second, the same each time from a seed.
//!
//! What decides is the proxy's own code ([`Policy`](pillion_proxy::policy::Policy), [`Workers`] and what they learn);
//! around it are models of what cannot run here: clients ([`Clients`]), engines whose batches cost what was measured
//! ([`Engine`]), and the one processor that everything else shares ([`Host`]). `tests/bench/RESULTS.md` says how near
//! its predictions come to the real thing.
//!
//! [`Workers`]: pillion_proxy::batcher::workers::Workers

mod clients;
mod report;
mod world;

pub use clients::Clients;
pub use report::Report;
pub use world::{Engine, Host, Rule, Setting, simulate};
