//! A worker whose engine crashes on some prompts, to test what happens to the other requests.
//!
//! A prompt whose last twelve tokens have at most two different values, such as `~ ~ ~ ~ ~ ~ ~ ~ ~ ~ ~ ~ ~`, makes the process
//! die by a segmentation fault in the second step of its call, for all members of the call.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;

use nix::sys::signal::{Signal, raise};
use pillion_worker::engine::{Call, Engine, EngineFailed, NewToken};
use pillion_worker::program;

const LAST: usize = 12;
const KINDS: usize = 2;

struct Poisonable(Arc<dyn Engine>);

fn is_poison(prompt: &[u32]) -> bool {
    let last = prompt.len().checked_sub(LAST).and_then(|from| prompt.get(from..));
    last.is_some_and(|last| last.iter().collect::<BTreeSet<_>>().len() <= KINDS)
}

impl Engine for Poisonable {
    fn generate(
        &self,
        call: &Call<'_>,
        on_token: &mut (dyn FnMut(NewToken) -> bool + Send),
    ) -> Result<(), EngineFailed> {
        let is_poisoned = call.prompts.iter().any(|prompt| is_poison(prompt));
        self.0.generate(call, &mut |token| {
            // Rust's handler takes the first signal for a stack overflow, restores the default handler, and returns.
            if is_poisoned && token.step > 0 {
                loop {
                    let _ = raise(Signal::SIGSEGV);
                }
            }
            on_token(token)
        })
    }
}

fn main() -> ExitCode {
    program::run(|engine| Arc::new(Poisonable(engine)))
}
