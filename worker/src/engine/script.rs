//! An engine for tests that behaves like CTranslate2. It feeds the shortest prompt in bulk and longer ones step by step without
//! callbacks. Within a step, members with longer prompts come first. An error fails the whole call, and calls made at the same
//! time run one after the other.
//!
//! Each character is followed by the next one of ASCII. `~` is followed by `!`, or by the end of the sequence if `ends` is set.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::call::{Call, Engine, EngineFailed, NewToken};

/// Tokens of one byte, in the order of `tokens::samples::bytes`: "!" is 0, "~" is 93.
const LAST: u32 = 93;
const EOS: u32 = 256;

/// How the engine behaves.
#[derive(Debug, Default)]
pub(crate) struct Script {
    /// If there is a gate, every step waits for a message through it.
    pub(crate) gate: Option<Mutex<Receiver<()>>>,
    /// A prompt with this character makes its call fail in this step.
    pub(crate) poison: Option<(char, u64)>,
    /// The most tokens, prompts and answers, that a call may have.
    pub(crate) memory: Option<u64>,
    /// The sequence ends after `~`.
    pub(crate) ends: bool,
    /// The prompt lengths of every call.
    pub(crate) calls: Mutex<Vec<Vec<usize>>>,
    /// The one replica, locked by the call that runs.
    pub(crate) replica: Mutex<()>,
}

impl Script {
    /// A script with a gate. Each message to the sender lets the engine make one step.
    pub(crate) fn gated() -> (Self, Sender<()>) {
        let (sender, receiver) = channel();
        (Self { gate: Some(Mutex::new(receiver)), ..Self::default() }, sender)
    }

    fn next(&self, id: u32, may_end: bool) -> u32 {
        match id {
            LAST if self.ends && may_end => EOS,
            LAST if self.ends => LAST,
            id if id >= LAST => 0,
            id => id + 1,
        }
    }

    fn wait(&self) -> Result<(), EngineFailed> {
        let Some(gate) = &self.gate else { return Ok(()) };
        let message = gate.lock().unwrap().recv_timeout(Duration::from_secs(20));
        message.map_err(|_| EngineFailed::Other("the gate is shut".to_owned()))
    }
}

impl Engine for Script {
    fn generate(
        &self,
        call: &Call<'_>,
        on_token: &mut (dyn FnMut(NewToken) -> bool + Send),
    ) -> Result<(), EngineFailed> {
        let _running = self.replica.lock().unwrap();
        self.calls.lock().unwrap().push(call.prompts.iter().map(|prompt| prompt.len()).collect());
        assert!(call.most > 0 && call.least <= call.most && call.prompts.iter().all(|prompt| !prompt.is_empty()));
        let tokens: u64 = call.prompts.iter().map(|prompt| prompt.len() as u64 + u64::from(call.most)).sum();
        if self.memory.is_some_and(|memory| tokens > memory) {
            return Err(EngineFailed::OutOfMemory("failed to allocate".to_owned()));
        }
        let shortest = call.prompts.iter().map(|prompt| prompt.len()).min().unwrap();
        let mut order: Vec<usize> = (0..call.prompts.len()).collect();
        order.sort_by_key(|&member| std::cmp::Reverse(call.prompts[member].len()));
        let mut last: Vec<Option<u32>> = call.prompts.iter().map(|prompt| prompt.last().copied()).collect();
        let mut step = 0;
        while last.iter().any(Option::is_some) {
            self.wait()?;
            let poisoned =
                |prompt: &&[u32]| self.poison.is_some_and(|(mark, _)| prompt.contains(&(u32::from(mark) - 33)));
            if self.poison.is_some_and(|(_, at)| at == step) && call.prompts.iter().any(poisoned) {
                return Err(EngineFailed::Other("poison".to_owned()));
            }
            for &member in &order {
                let behind = (call.prompts[member].len() - shortest) as u64;
                let Some(before) = last[member].filter(|_| step >= behind) else { continue };
                let id = self.next(before, step - behind >= call.least.into());
                let stops = on_token(NewToken { step, member, id });
                let over = id == EOS || step + 1 == behind + u64::from(call.most);
                last[member] = (!stops && !over).then_some(id);
            }
            step += 1;
        }
        Ok(())
    }
}
