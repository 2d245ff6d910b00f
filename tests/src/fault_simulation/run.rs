//! Carries a plan out and judges it.

use std::time::Duration;

use futures_util::future::Either;
use serde_json::{Map, Value, json};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use super::plan::{Act, Plan, Request};
use super::verdict::{Got, Wrong, judge};
use crate::fake_worker::Profile;
use crate::memory::{Memory, MemoryWorker};

/// No request takes longer than its deadline, a grace, and the workers' wait.
const LONGEST: Duration = Duration::from_secs(95);

/// What a simulation came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What the clients got, in the order of their requests; nothing where a client went away.
    pub got: Vec<Option<Got>>,
    /// What was wrong, if anything was.
    pub wrong: Vec<Wrong>,
    /// Workers that were lost.
    pub lost: i64,
    /// Texts that went on after their attempt ended early.
    pub resumed: i64,
    /// How long it took by its own clock.
    pub took: Duration,
}

struct Workers(Vec<(MemoryWorker, Profile)>);

/// Carries a plan out. In a runtime of one thread with paused time it goes the same way each time.
///
/// # Panics
/// A task of the proxy panics.
pub async fn run(plan: &Plan) -> Outcome {
    let flags: Vec<&str> = plan.flags.iter().map(String::as_str).collect();
    let begun = Instant::now();
    let mut memory = Memory::start(&flags);
    let mut workers = Workers(Vec::new());
    let mut told_to_leave = Vec::new();
    let mut asked: Vec<(Request, JoinHandle<Option<Got>>)> = Vec::new();
    for (after, act) in &plan.acts {
        sleep(*after).await;
        match act {
            Act::Worker(profile) => workers.0.push((memory.worker((**profile).clone()), (**profile).clone())),
            Act::Kill(nth) => workers.0[*nth].0.kill(),
            Act::Drain(nth) => {
                workers.0[*nth].0.drain();
                told_to_leave.push(*nth);
            }
            Act::Ask(request) => asked.push((request.clone(), tokio::spawn(ask(&mut memory, request)))),
        }
    }
    let swapped = workers.0.iter().any(|(_, profile)| profile.hello.fingerprint == "b");
    let mut outcome = Outcome::default();
    for (request, answer) in asked {
        match answer.await.expect("no client panics") {
            Some(got) if got.status == 0 => outcome.wrong.push(format!("no answer to {request:?}")),
            Some(got) => {
                outcome.wrong.extend(judge(&request, &got, swapped).err());
                outcome.got.push(Some(got));
            }
            None => outcome.got.push(None),
        }
    }
    sleep(Duration::from_secs(15)).await;
    let stayed = told_to_leave.iter().filter(|&&nth| !workers.0[nth].0.is_gone());
    outcome.wrong.extend(stayed.map(|nth| format!("worker {nth} was told to leave and is still there")));
    outcome.wrong.extend(at_rest(&memory).err());
    outcome.wrong.extend(nothing_leaked(&mut memory, &workers, plan).await.err());
    let metrics = memory.metrics();
    outcome.lost = metrics.sum("pillion_workers_lost_total");
    outcome.resumed = metrics.sum("pillion_resumed_total");
    outcome.took = begun.elapsed();
    outcome
}

/// What the client gets; nothing where it goes away first. A status of 0 says that it got nothing in all the time.
fn ask(memory: &mut Memory, request: &Request) -> impl Future<Output = Option<Got>> + Send + use<> {
    let (path, body) = (request.path(), request.body());
    let answer = match request.window {
        Some(window) => Either::Left(memory.post_http2(path, &body, window)),
        None => Either::Right(memory.post(path, &body)),
    };
    let (leaves, is_named) = (request.leaves, request.model.is_some());
    async move {
        let begun = Instant::now();
        match timeout(leaves.unwrap_or(LONGEST), answer).await {
            Ok(answer) => {
                let body = if is_named { without_time(&answer.body) } else { answer.body.to_vec() };
                Some(Got { status: answer.status, body, after: begun.elapsed() })
            }
            Err(_) if leaves.is_some() => None,
            Err(_) => Some(Got { status: 0, body: Vec::new(), after: begun.elapsed() }),
        }
    }
}

/// The answer of the OpenAI API without the time of day, which no seed determines.
fn without_time(body: &[u8]) -> Vec<u8> {
    let Ok(mut answer) = serde_json::from_slice::<Map<String, Value>>(body) else { return body.to_vec() };
    answer.remove("created");
    Value::Object(answer).to_string().into_bytes()
}

/// Nothing waits or runs when nobody asks.
fn at_rest(memory: &Memory) -> Result<(), Wrong> {
    let metrics = memory.metrics();
    let left = (metrics.sum("pillion_queue_depth"), metrics.sum("pillion_running"));
    if left == (0, 0) { Ok(()) } else { Err(format!("queued and running at the end: {left:?}")) }
}

/// No credit was lost and none was made up: of more texts than can be served at once, every slot takes a batch, and no more.
async fn nothing_leaked(memory: &mut Memory, workers: &Workers, plan: &Plan) -> Result<(), Wrong> {
    let here = || workers.0.iter().filter(|(worker, _)| !worker.is_gone()).map(|(_, profile)| &profile.hello);
    let newest = here().map(|hello| hello.fingerprint.clone()).max().unwrap_or_default();
    let slots: u32 = here().filter(|hello| hello.fingerprint == newest).map(|hello| hello.slots).sum();
    let most: u32 = plan.flags[1].parse().expect("the first flag is the batch size");
    let before = memory.metrics().sum("pillion_batches_total");
    let mut asked = JoinSet::new();
    for number in 0..2 * slots * most {
        // With a penalty nobody gives way to others.
        let request = json!({"text": format!("at last {number}"), "min_new_tokens": 900, "max_new_tokens": 900,
            "repetition_penalty": 1.3});
        asked.spawn(memory.generate(&request));
    }
    // Long enough for all to have left, and too short for any to have ended: a batch takes 900 steps.
    sleep(Duration::from_millis(1)).await;
    let metrics = memory.metrics();
    let batches = metrics.sum("pillion_batches_total") - before;
    if batches == i64::from(slots) {
        Ok(())
    } else {
        let waiting = metrics.sum("pillion_queue_depth");
        Err(format!("{slots} slots have taken {batches} batches while {waiting} texts wait"))
    }
}
