//! One call of the engine while it runs.
//!
//! [`RunningCall::on_token`] runs on the engine's thread, between two decode steps of all members of the call, so it must be
//! short. For a member that is not streamed it pushes an id and compares a few numbers; it makes text only to find stop
//! strings. It must not panic, since its caller is C++.

use std::time::{Duration, Instant};

use pillion_protocol::frame::FinishReason;

use super::call::NewToken;
use super::replicas::ReplicaTime;
use super::thread::EngineThread;
use crate::batch::{Ending, Event, PreparedBatch, Progress};
use crate::credit;
use crate::pace::CallTime;
use crate::steps::Steps;

/// Steps after which a call's own pace predicts its end better than the pace of earlier calls.
const TELLING_STEPS: u64 = 4;

/// A call that runs.
pub(super) struct RunningCall<'a> {
    batch: &'a mut PreparedBatch,
    /// The members in this call, by their indexes in the batch.
    cohort: &'a [usize],
    thread: EngineThread<'a>,
    /// Whether a member has ended, by its index in the call.
    ended: Vec<bool>,
    steps: Steps,
    /// Steps of the members that have ended.
    member_steps: u64,
    /// Tokens and ends that are not sent yet.
    progress: Progress,
    /// Whether this call is the batch's last and the batch's end is still to be announced.
    announce: bool,
    /// Whether the session is gone, so that events are not received.
    abandoned: bool,
    /// When the present step began.
    now: Instant,
    /// When members that are not streamed were last reported.
    reported: Instant,
    /// Whether the present step reports members that are not streamed. With options that look back, no step does: another
    /// worker could not continue from what was reported.
    reports_all: bool,
    first: Option<(Instant, u64)>,
    /// When the engine was last active before this call. `None` until the first token.
    before: Option<Instant>,
    /// Steps that were already counted as progress.
    counted: u64,
}

impl<'a> RunningCall<'a> {
    pub(super) fn new(
        batch: &'a mut PreparedBatch,
        cohort: &'a [usize],
        thread: EngineThread<'a>,
        announce: bool,
    ) -> Self {
        let shapes = cohort.iter().map(|&index| batch.members[index].shape());
        let now = Instant::now();
        Self {
            cohort,
            thread,
            ended: vec![false; cohort.len()],
            steps: Steps::new(shapes.map(|shape| (shape.prompt, shape.most))),
            member_steps: 0,
            progress: Progress::of(batch.id),
            batch,
            announce,
            abandoned: false,
            now,
            reported: now,
            reports_all: false,
            first: None,
            before: None,
            counted: 0,
        }
    }

    /// Announces the batch's end at once if the whole call, which feeds `fed` tokens in bulk, is predicted to be shorter than
    /// the lead.
    pub(super) fn start(&mut self, fed: u64) {
        let pace = &self.thread.shared.pace;
        self.announce_if_near(pace.step(), pace.feeding(fed));
    }

    /// Takes a token. Returns true if its member ends.
    pub(super) fn on_token(&mut self, token: NewToken) -> bool {
        let Some(&index) = self.cohort.get(token.member) else { return true };
        if self.ended[token.member] {
            return true;
        }
        if self.first.is_none() || token.step >= self.steps.taken() {
            self.begin_step(token.step);
        }
        let shared = self.thread.shared;
        let member = &mut self.batch.members[index];
        let ending = member.push(token.id, &shared.tokens).or_else(|| {
            if self.abandoned {
                return Some(Ending::Finished(FinishReason::Cancelled));
            }
            let interruption = self.batch.signals.interruption(member.index, member.deadline, self.now);
            // Another worker would have to feed the whole answer at once. If it could not, the member stays: the answer does not
            // fit the memory, or a part of it was streamed and the options look back over it.
            let can_move = || {
                let is_begun = member.stream && member.reported > member.prompt as usize;
                shared.limits().allows(member.shape()) && !(is_begun && self.batch.options.look_back())
            };
            interruption.filter(|how| *how != Ending::Yielded || can_move())
        });
        let ends = ending.is_some();
        if let Some(how) = ending {
            self.ended[token.member] = true;
            self.member_steps += token.step + 1;
            member.end(how, &shared.tokens, &mut self.progress);
        } else if member.stream || self.reports_all {
            member.report(&mut self.progress);
        }
        if self.steps.on_token(token.step, token.member, ends) {
            self.end_step();
        }
        ends
    }

    fn begin_step(&mut self, step: u64) {
        self.now = Instant::now();
        self.first.get_or_insert((self.now, step));
        let before = self.thread.replicas.is_active(self.now);
        self.before.get_or_insert(before);
        let unreported = self.now.saturating_duration_since(self.reported);
        self.reports_all = unreported >= self.thread.shared.held_back && !self.batch.options.look_back();
        if self.reports_all {
            self.reported = self.now;
        }
    }

    fn end_step(&mut self) {
        self.count_steps(self.now);
        self.announce_if_near(self.step_time(), Duration::ZERO);
        self.send_progress();
    }

    fn count_steps(&mut self, now: Instant) {
        let taken = self.steps.taken();
        self.thread.shared.liveness.step(self.thread.index, now, taken.saturating_sub(self.counted));
        self.counted = taken;
    }

    fn step_time(&self) -> Duration {
        let (first, step) = self.first.unwrap_or((self.now, 0));
        let steps = self.steps.taken().saturating_sub(step).saturating_sub(1);
        match u32::try_from(steps) {
            Ok(steps) if u64::from(steps) >= TELLING_STEPS => self.now.saturating_duration_since(first) / steps,
            _ => self.thread.shared.pace.step(),
        }
    }

    fn announce_if_near(&mut self, step: Duration, before: Duration) {
        if self.announce {
            let lead = credit::lead(self.thread.shared.pace.handover()).saturating_sub(before);
            if credit::ends_within(lead, self.steps.remaining(), step) {
                self.announce = false;
                self.send(Event::EndsSoon(self.batch.id));
            }
        }
    }

    fn send_progress(&mut self) {
        if !self.progress.is_empty() {
            let progress = std::mem::replace(&mut self.progress, Progress::of(self.batch.id));
            self.send(Event::Progress(progress));
        }
    }

    fn send(&mut self, event: Event) {
        self.abandoned |= self.batch.events.blocking_send(event).is_err();
    }

    /// The engine has returned from the call made at `called`: sends what is left to send, and returns how the call went.
    pub(super) fn finish(mut self, called: Instant) -> CallOutcome {
        let steps = self.steps.taken();
        let on_replica = match self.before {
            Some(before) => ReplicaTime::new(called, before, self.now),
            // The engine gave no token, so the call has failed.
            None => self.thread.replicas.silent(called, Instant::now()),
        };
        self.count_steps(Instant::now());
        self.send_progress();
        let unfinished = self.ended.iter().zip(self.cohort).filter(|(ended, _)| !**ended).map(|(_, &index)| index);
        let unfinished: Vec<usize> = unfinished.collect();
        let (first, first_step) = self.first.unwrap_or((self.now, 0));
        CallOutcome {
            announced: !self.announce,
            steps,
            forced: self.steps.forced(),
            time: CallTime {
                first: first.saturating_duration_since(on_replica.began),
                rest: self.now.saturating_duration_since(first),
                steps: steps.saturating_sub(first_step).saturating_sub(1),
                fed: 0,
                member_steps: self.member_steps + steps * unfinished.len() as u64,
            },
            unfinished,
            on_replica,
        }
    }
}

/// How a call went.
pub(super) struct CallOutcome {
    /// Members that have not ended, by their indexes in the batch.
    pub(super) unfinished: Vec<usize>,
    /// Whether the batch's end needs no announcement any more.
    pub(super) announced: bool,
    /// Steps, and those of them in which some member only fed its prompt.
    pub(super) steps: u64,
    pub(super) forced: u64,
    pub(super) time: CallTime,
    pub(super) on_replica: ReplicaTime,
}
