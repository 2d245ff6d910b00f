//! One batch on an engine thread: the batch is split into cohorts, each cohort is one call, and a call that fails is split
//! again.

use std::collections::VecDeque;
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use pillion_protocol::frame::{BatchCost, FailureCode, FinishReason};

use super::call::{Call, EngineFailed};
use super::running_call::{CallOutcome, RunningCall};
use super::thread::EngineThread;
use crate::batch::{Ending, Event, PreparedBatch, Progress};
use crate::cohort::{self, Shape};
use crate::liveness::allowed_silence;
use crate::pace::CallTime;
use crate::shared::Shared;
use crate::tokens::Answer;

/// Characters that are kept of an engine's own message.
const LONGEST_MESSAGE: usize = 300;

/// Serves a batch to its end: every member ends once, and `Done` is the last event. The thread gives up its `turn` with the
/// call that is expected to be the last, so that the first call of the next batch is ready when that call ends.
pub(super) fn run(mut batch: PreparedBatch, thread: EngineThread<'_>, turn: MutexGuard<'_, ()>) {
    let shared = thread.shared;
    let mut turn = Some(turn);
    let mut cost = BatchCost::default();
    let all: Vec<usize> = (0..batch.members.len()).collect();
    let mut cohorts: VecDeque<Vec<usize>> = split(&batch, &all, shared).into();
    let mut announced = false;
    while let Some(mut cohort) = cohorts.pop_front() {
        end_what_needs_no_call(&mut batch, &mut cohort, shared);
        if cohort.is_empty() {
            continue;
        }
        let tokens = cohort.iter().map(|&index| batch.members[index].shape().tokens()).sum();
        if cohort.len() > 1 && tokens > shared.budget.tokens() {
            // The budget has shrunk since the batch was split.
            split(&batch, &cohort, shared).into_iter().rev().for_each(|piece| cohorts.push_front(piece));
            continue;
        }
        let is_last = cohorts.is_empty();
        let turn_ends = turn.take_if(|_| is_last);
        let (outcome, failure) = call(&mut batch, &cohort, tokens, thread, !announced && is_last, turn_ends);
        cost.engine_us = cost.engine_us.saturating_add(micros(outcome.on_replica.busy));
        cost.idle_us = cost.idle_us.saturating_add(micros(outcome.on_replica.idle));
        cost.cohorts = cost.cohorts.saturating_add(1);
        cost.steps = cost.steps.saturating_add(outcome.steps);
        cost.forced_steps = cost.forced_steps.saturating_add(outcome.forced);
        announced |= is_last && outcome.announced;
        if let Some(message) = failure {
            // Each half is split again, since a call that was too large for the memory has also lowered the budget.
            for half in halves(&mut batch, &cohort, outcome.unfinished, &message, shared) {
                cohorts.extend(split(&batch, &half, shared));
            }
        }
    }
    // If the session is gone, the event is not needed.
    let _ = batch.events.blocking_send(Event::Done(batch.id, cost));
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Splits these members of a batch, given by their indexes in it, into cohorts.
fn split(batch: &PreparedBatch, indexes: &[usize], shared: &Shared) -> Vec<Vec<usize>> {
    let shapes: Vec<Shape> = indexes.iter().map(|&index| batch.members[index].shape()).collect();
    let rules = cohort::Rules {
        look_back: batch.options.look_back(),
        max_tokens: shared.budget.tokens(),
        allowance: shared.limits().allowance,
        window: shared.limits().window,
        cost: shared.pace.cost(),
    };
    let cohorts = cohort::split(&shapes, rules);
    cohorts.into_iter().map(|cohort| cohort.into_iter().map(|nth| indexes[nth]).collect()).collect()
}

/// Ends the members that need no call any more, and removes them from the cohort.
fn end_what_needs_no_call(batch: &mut PreparedBatch, cohort: &mut Vec<usize>, shared: &Shared) {
    let now = Instant::now();
    let mut progress = Progress::of(batch.id);
    cohort.retain(|&index| {
        let member = &mut batch.members[index];
        let ending = match batch.signals.interruption(member.index, member.deadline, now) {
            None if member.produced() >= member.most => Some(Ending::Finished(FinishReason::Length)),
            interruption => interruption,
        };
        let stays = ending.is_none();
        if let Some(how) = ending {
            member.end(how, &shared.tokens, &mut progress);
        }
        stays
    });
    send(batch, progress);
}

fn send(batch: &PreparedBatch, progress: Progress) {
    if !progress.is_empty() && batch.events.blocking_send(Event::Progress(progress)).is_err() {
        batch.signals.cancel_all();
    }
}

/// Makes one call of `tokens` tokens. Returns how it went, and why it failed if it did.
fn call(
    batch: &mut PreparedBatch,
    cohort: &[usize],
    tokens: u64,
    thread: EngineThread<'_>,
    announce: bool,
    turn_ends: Option<MutexGuard<'_, ()>>,
) -> (CallOutcome, Option<String>) {
    let EngineThread { engine, shared, index, .. } = thread;
    // The engine reads the prompts while the members grow, so it gets copies.
    let prompts: Vec<Vec<u32>> = cohort.iter().map(|&index| batch.members[index].tokens.clone()).collect();
    let shapes: Vec<Shape> = cohort.iter().map(|&index| batch.members[index].shape()).collect();
    let shortest = shapes.iter().map(|shape| shape.prompt).min().unwrap_or(0);
    let longest = shapes.iter().map(|shape| shape.prompt).max().unwrap_or(0);
    let call = Call {
        prompts: prompts.iter().map(Vec::as_slice).collect(),
        options: batch.options,
        least: shapes.first().map_or(0, |shape| shape.least),
        most: shapes.iter().map(|shape| shape.most).max().unwrap_or(1),
    };
    let fed = u64::from(shortest.saturating_sub(1)).saturating_mul(cohort.len() as u64);
    let forced = u64::from(longest.saturating_sub(shortest));
    let called = Instant::now();
    shared.liveness.call(index, called, allowed_silence(&shared.pace, fed, forced));
    let mut running = RunningCall::new(batch, cohort, thread, announce);
    running.start(fed);
    drop(turn_ends);
    let result = engine.generate(&call, &mut |token| running.on_token(token));
    let outcome = running.finish(called);
    shared.liveness.idle(index, Instant::now());
    let time = CallTime { fed, ..outcome.time };
    shared.pace.called(time);
    // A call that failed did not do all of its work, so its time teaches nothing.
    if result.is_ok() && outcome.steps > 0 {
        shared.pace.learn(&time.load(), outcome.on_replica.busy);
    }
    // A member alone does not show how many tokens fit: something else may have held the memory.
    if let Err(EngineFailed::OutOfMemory(_)) = &result
        && cohort.len() > 1
    {
        let budget = shared.budget.exceeded(tokens);
        tracing::warn!(
            tokens,
            budget,
            "a call needed more memory than the device has: the members are tried again in smaller calls, and from now on \
             no call of several members has more than `budget` tokens"
        );
    }
    let failure = match result {
        Err(error) => Some(error.to_string().chars().take(LONGEST_MESSAGE).collect()),
        Ok(()) if outcome.unfinished.is_empty() => None,
        Ok(()) => Some("the engine returned without an end of the answer".to_owned()),
    };
    (outcome, failure)
}

/// After a failed call. A member that was alone fails; several members are tried again in two halves and continue from what
/// they have produced. With options that look back they start again, since the engine would take produced tokens for prompt.
fn halves(
    batch: &mut PreparedBatch,
    cohort: &[usize],
    mut unfinished: Vec<usize>,
    message: &str,
    shared: &Shared,
) -> Vec<Vec<usize>> {
    tracing::warn!(
        batch = batch.id.0,
        members = cohort.len(),
        unfinished = unfinished.len(),
        message,
        "a call of the engine failed: its unfinished members are tried again in two halves; a member alone fails"
    );
    let mut progress = Progress::of(batch.id);
    let alone = cohort.len() == 1;
    let look_back = batch.options.look_back();
    unfinished.retain(|&index| {
        let member = &mut batch.members[index];
        let failure = if alone {
            Some((FailureCode::Engine, message))
        } else if !look_back && member.produced() > 0 && !shared.limits().allows(member.shape()) {
            Some((
                FailureCode::Engine,
                "the engine failed, and the memory does not hold what would have to be fed again",
            ))
        } else if look_back && member.reported > member.prompt as usize {
            let message = "the engine failed after a part was sent, and these options allow no continuation";
            Some((FailureCode::NotResumable, message))
        } else {
            None
        };
        if let Some((code, message)) = failure {
            member.end(Ending::Failed(code, message.to_owned()), &shared.tokens, &mut progress);
            return false;
        }
        if look_back {
            member.tokens.truncate(member.prompt as usize);
            member.text.clear();
            if !member.stop.is_empty() {
                member.answer = Some(Answer::new(&member.context, member.stop.clone()));
            }
        }
        true
    });
    send(batch, progress);
    let second = unfinished.split_off(unfinished.len() / 2);
    [unfinished, second].into_iter().filter(|half| !half.is_empty()).collect()
}
