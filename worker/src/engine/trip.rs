//! One batch on one engine: split into cohorts, a call for each, and calls that fail split again.

use std::collections::VecDeque;
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use pillion_protocol::frame::{BatchCost, FailureCode, FinishReason};

use super::replicas::{Replicas, Spell};
use super::ride::Ride;
use super::{Call, CallTime, Engine, EngineFailed};
use crate::batch::{Ending, Event, Job, Progress};
use crate::cohort;
use crate::liveness::silence;
use crate::shared::Shared;
use crate::tokens::Answer;

/// An engine's own message is cut to so many characters.
const LONGEST_MESSAGE: usize = 300;

/// Where a batch is served.
#[derive(Clone, Copy)]
pub(super) struct Site<'a> {
    pub(super) engine: &'a dyn Engine,
    pub(super) shared: &'a Shared,
    /// The number of the thread.
    pub(super) feeder: usize,
    pub(super) replicas: &'a Replicas,
}

/// Serves a batch to its end: every rider ends once, and DONE comes last. The `turn` is given up with what is expected to
/// be the last call, so that the next batch's first is ready when it ends.
pub(super) fn serve(mut job: Job, site: Site<'_>, turn: MutexGuard<'_, ()>) {
    let shared = site.shared;
    let mut turn = Some(turn);
    let mut cost = BatchCost::default();
    let all: Vec<usize> = (0..job.riders.len()).collect();
    let mut cohorts: VecDeque<Vec<usize>> = split(&job, &all, shared).into();
    let mut announced = false;
    while let Some(mut cohort) = cohorts.pop_front() {
        settle(&mut job, &mut cohort, shared);
        if cohort.is_empty() {
            continue;
        }
        if cohort.len() > 1 && tokens(&job, &cohort) > shared.budget.tokens() {
            // The budget has shrunk since the batch was split.
            split(&job, &cohort, shared).into_iter().rev().for_each(|piece| cohorts.push_front(piece));
            continue;
        }
        let is_last = cohorts.is_empty();
        let turn_ends = turn.take_if(|_| is_last);
        let result = call(&mut job, &cohort, site, !announced && is_last, turn_ends);
        cost.engine_us = cost.engine_us.saturating_add(micros(result.spell.busy));
        cost.idle_us = cost.idle_us.saturating_add(micros(result.spell.idle));
        cost.cohorts = cost.cohorts.saturating_add(1);
        cost.steps = cost.steps.saturating_add(result.steps);
        cost.forced_steps = cost.forced_steps.saturating_add(result.forced);
        announced |= result.announced;
        if let Some(message) = result.failure {
            // What was too much at once is split by the budget, and all else in halves: the split does both.
            for half in halves(&mut job, &cohort, result.unfinished, &message, shared) {
                cohorts.extend(split(&job, &half, shared));
            }
        }
    }
    // Where the session is gone, nobody needs to know.
    let _ = job.events.blocking_send(Event::Done(job.batch, cost));
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn split(job: &Job, places: &[usize], shared: &Shared) -> Vec<Vec<usize>> {
    let shapes: Vec<cohort::Shape> = places.iter().map(|&place| job.riders[place].shape()).collect();
    let rules = cohort::Rules {
        look_back: job.options.look_back(),
        max_tokens: shared.budget.tokens(),
        allowance: shared.limits().allowance,
        window: shared.limits().window,
        cost: shared.pace.cost(),
    };
    let cohorts = cohort::split(&shapes, rules);
    cohorts.into_iter().map(|cohort| cohort.into_iter().map(|nth| places[nth]).collect()).collect()
}

/// Tokens, prompts and answers, that a call of these may come to.
fn tokens(job: &Job, cohort: &[usize]) -> u64 {
    let tokens = |shape: cohort::Shape| u64::from(shape.prompt) + u64::from(shape.most);
    cohort.iter().map(|&place| tokens(job.riders[place].shape())).sum()
}

/// Ends the riders that need no engine any more.
fn settle(job: &mut Job, cohort: &mut Vec<usize>, shared: &Shared) {
    let now = Instant::now();
    let mut progress = Progress::of(job.batch);
    cohort.retain(|&place| {
        let rider = &mut job.riders[place];
        let ending = match job.signals.interruption(rider.member, rider.deadline, now) {
            None if rider.produced() >= rider.most => Some(Ending::Finished(FinishReason::Length)),
            interruption => interruption,
        };
        match ending {
            Some(how) => {
                rider.end(how, &shared.tokens, &mut progress);
                false
            }
            None => true,
        }
    });
    send(job, progress);
}

fn send(job: &Job, progress: Progress) {
    if !progress.is_empty() && job.events.blocking_send(Event::Progress(progress)).is_err() {
        job.signals.cancel_all();
    }
}

struct Outcome {
    unfinished: Vec<usize>,
    failure: Option<String>,
    announced: bool,
    steps: u64,
    forced: u64,
    spell: Spell,
}

fn call(
    job: &mut Job,
    cohort: &[usize],
    site: Site<'_>,
    announce: bool,
    turn_ends: Option<MutexGuard<'_, ()>>,
) -> Outcome {
    let Site { engine, shared, feeder, .. } = site;
    // The engine reads the prompts while the riders grow, so it gets copies.
    let prompts: Vec<Vec<u32>> = cohort.iter().map(|&place| job.riders[place].tokens.clone()).collect();
    let shapes: Vec<cohort::Shape> = cohort.iter().map(|&place| job.riders[place].shape()).collect();
    let shortest = shapes.iter().map(|shape| shape.prompt).min().unwrap_or(0);
    let longest = shapes.iter().map(|shape| shape.prompt).max().unwrap_or(0);
    let call = Call {
        prompts: prompts.iter().map(Vec::as_slice).collect(),
        options: job.options,
        least: shapes.first().map_or(0, |shape| shape.least),
        most: shapes.iter().map(|shape| shape.most).max().unwrap_or(1),
    };
    let fed = u64::from(shortest.saturating_sub(1)).saturating_mul(cohort.len() as u64);
    let forced = u64::from(longest.saturating_sub(shortest));
    let called = Instant::now();
    shared.liveness.call(feeder, called, silence(&shared.pace, fed, forced));
    let mut ride = Ride::new(job, cohort, site, announce);
    ride.depart(fed);
    drop(turn_ends);
    let result = engine.generate(&call, &mut |token| ride.hear(token));
    let arrival = ride.arrive(called);
    shared.liveness.idle(feeder, Instant::now());
    let time = CallTime { fed, ..arrival.time };
    shared.pace.called(time);
    // A call that failed did not do what it was asked to.
    if result.is_ok() && arrival.steps > 0 {
        shared.pace.learn(&time.load(), arrival.spell.busy);
    }
    // One alone says nothing of how many fit: something else may have had the memory.
    if let Err(EngineFailed::OutOfMemory(_)) = &result
        && cohort.len() > 1
    {
        let tokens = shapes.iter().map(|shape| u64::from(shape.prompt) + u64::from(shape.most)).sum();
        let budget = shared.budget.exceeded(tokens);
        tracing::warn!(tokens, budget, "the device has not enough memory for such a call: none will be as large again");
    }
    let failure = match result {
        Err(error) => Some(error.to_string().chars().take(LONGEST_MESSAGE).collect()),
        Ok(()) if arrival.unfinished.is_empty() => None,
        Ok(()) => Some("the engine returned without an end of the answer".to_owned()),
    };
    Outcome {
        unfinished: arrival.unfinished,
        failure,
        announced: announce && arrival.announced,
        steps: arrival.steps,
        forced: arrival.forced,
        spell: arrival.spell,
    }
}

/// After a failed call: a rider that was alone has failed; others try again in two halves, with what they have produced.
/// Where options look back they start again, since the engine would take produced tokens for prompt.
fn halves(
    job: &mut Job,
    cohort: &[usize],
    mut unfinished: Vec<usize>,
    message: &str,
    shared: &Shared,
) -> Vec<Vec<usize>> {
    tracing::warn!(batch = job.batch.0, riders = cohort.len(), unfinished = unfinished.len(), message, "a call failed");
    let mut progress = Progress::of(job.batch);
    let alone = cohort.len() == 1;
    let look_back = job.options.look_back();
    unfinished.retain(|&place| {
        let rider = &mut job.riders[place];
        let failure = if alone {
            Some((FailureCode::Engine, message.to_owned()))
        } else if !look_back && rider.produced() > 0 && !shared.limits().allows(rider.shape()) {
            let message = "the engine failed, and the memory does not hold what would have to be fed again".to_owned();
            Some((FailureCode::Engine, message))
        } else if look_back && rider.told > rider.prompt as usize {
            let message = "the engine failed after a part was sent, and these options allow no continuation".to_owned();
            Some((FailureCode::NotResumable, message))
        } else {
            None
        };
        if let Some((code, message)) = failure {
            rider.end(Ending::Failed(code, message), &shared.tokens, &mut progress);
            return false;
        }
        if look_back {
            rider.tokens.truncate(rider.prompt as usize);
            rider.text.clear();
            if !rider.stop.is_empty() {
                rider.answer = Some(Answer::new(&rider.context, rider.stop.clone()));
            }
        }
        true
    });
    send(job, progress);
    let second = unfinished.split_off(unfinished.len() / 2);
    [unfinished, second].into_iter().filter(|half| !half.is_empty()).collect()
}
