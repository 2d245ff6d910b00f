//! What the end-to-end tests stand on: real processes, a client, a recording relay, and a worker without a model.
//!
//! - [`stack`]: a proxy and its workers as child processes, in a folder of their own, gone when dropped.
//! - [`campaign`]: real processes under load, to which something happens again and again.
//! - [`client`]: requests, well-formed and not.
//! - [`contract`]: the API's description, against which every answer is held.
//! - [`events`]: server-sent events, read as they come.
//! - [`fake_worker`]: the worker without a model.
//! - [`fault_simulation`]: the whole system in memory while everything goes wrong, from a seed.
//! - [`gate`]: holds a simulated worker's engine until a test lets it go on.
//! - [`load`]: what `load-driver` is made of, an HTTP load generator.
//! - [`memory`]: a proxy with simulated workers in one runtime, over pipes in memory.
//! - [`metrics`]: what `/metrics` says.
//! - [`policy_simulator`]: the batching policy under a discrete-event clock.
//! - [`random`]: numbers from a seed.
//! - [`scenes`]: what happens to real processes, one thing after another, and the table of it.
//! - [`tap`]: a relay between worker and proxy that records every frame.
//! - [`mod@reference`]: what CTranslate2's Python package answers, and the models that tests need.

pub mod campaign;
pub mod client;
pub mod contract;
pub mod events;
pub mod fake_worker;
pub mod fault_simulation;
pub mod floods;
pub mod folder;
pub mod gate;
pub mod load;
pub mod memory;
pub mod metrics;
pub mod policy_simulator;
pub mod process;
pub mod random;
pub mod reference;
pub mod scenes;
pub mod soak;
pub mod stack;
pub mod tap;
pub mod usage;

use std::io::Write;
use std::time::Duration;

/// The longest that a test waits for anything. Nothing is expected to take it; a loaded machine may.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Says something that is shown though the test passes.
pub fn say(text: &str) {
    // Not by `eprintln!`, which the test harness keeps to itself.
    drop(writeln!(std::io::stderr(), "{text}"));
}

/// Asks again and again until there is an answer.
///
/// # Panics
/// There is none within [`PATIENCE`].
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let asked = tokio::time::timeout(PATIENCE, asking).await;
    asked.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}
