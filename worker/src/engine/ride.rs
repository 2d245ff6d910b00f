//! One call of the engine, heard token by token.
//!
//! [`Ride::hear`] runs on the engine's thread, between two decode steps of everybody aboard: it must be tiny. A member
//! whose tokens nobody waits for costs a push and a few comparisons; text is made here only to find stop strings.
//! Nothing here may panic: there is C++ above.

use std::time::{Duration, Instant};

use pillion_protocol::frame::FinishReason;

use super::replicas::{Replicas, Spell};
use super::trip::Site;
use super::{CallTime, NewToken};
use crate::batch::{Ending, Event, Job, Progress};
use crate::credit;
use crate::shared::Shared;
use crate::steps::Steps;

/// Steps after which a call's own pace says more than that of the calls before it.
const TELLING_STEPS: u64 = 4;

/// A call under way.
pub(super) struct Ride<'a> {
    job: &'a mut Job,
    /// The riders in this call, by their places in the job.
    cohort: &'a [usize],
    /// By place in the call.
    ended: Vec<bool>,
    steps: Steps,
    /// Of the members that have ended.
    member_steps: u64,
    progress: Progress,
    shared: &'a Shared,
    feeder: usize,
    /// Whether the batch's end is still to be announced, and is the end of this call.
    announce: bool,
    /// Nobody takes the events any more.
    abandoned: bool,
    now: Instant,
    /// When those whom nobody streams last told what they have, and whether they do so in this step. Where options look back
    /// they never do: what was told could not be gone on with.
    told: Instant,
    tells_all: bool,
    first: Option<(Instant, u64)>,
    replicas: &'a Replicas,
    /// When the engine was last active before this call, once the call has begun.
    before: Option<Instant>,
    counted: u64,
}

impl<'a> Ride<'a> {
    pub(super) fn new(job: &'a mut Job, cohort: &'a [usize], site: Site<'a>, announce: bool) -> Self {
        let Site { shared, feeder, replicas, .. } = site;
        let shapes = cohort.iter().map(|&place| job.riders[place].shape());
        let steps = Steps::new(shapes.map(|shape| (shape.prompt, shape.most)));
        let progress = Progress::of(job.batch);
        let ended = vec![false; cohort.len()];
        let now = Instant::now();
        Self {
            job,
            cohort,
            ended,
            steps,
            member_steps: 0,
            progress,
            shared,
            feeder,
            announce,
            abandoned: false,
            now,
            told: now,
            tells_all: false,
            first: None,
            replicas,
            before: None,
            counted: 0,
        }
    }

    /// Announces the batch's end at once where the whole call is shorter than the lead.
    pub(super) fn depart(&mut self, fed: u64) {
        self.announce_if_near(self.shared.pace.step(), self.shared.pace.feeding(fed));
    }

    /// Takes a token; true where its member ends.
    pub(super) fn hear(&mut self, token: NewToken) -> bool {
        let Some(&place) = self.cohort.get(token.member) else { return true };
        if self.ended[token.member] {
            return true;
        }
        let step_is_new = self.first.is_none() || token.step >= self.steps.taken();
        if step_is_new {
            self.now = Instant::now();
            self.first.get_or_insert((self.now, token.step));
            let before = self.replicas.is_active(self.now);
            self.before.get_or_insert(before);
            let held_back = self.now.saturating_duration_since(self.told);
            self.tells_all = held_back >= self.shared.held_back && !self.job.options.look_back();
            if self.tells_all {
                self.told = self.now;
            }
        }
        let Self { job, shared, progress, now, .. } = self;
        let rider = &mut job.riders[place];
        let ending = rider.take(token.id, &shared.tokens).or_else(|| {
            if self.abandoned {
                return Some(Ending::Finished(FinishReason::Cancelled));
            }
            let interruption = job.signals.interruption(rider.member, rider.deadline, *now);
            // Whoever takes it on would have to feed all of it at once.
            interruption.filter(|how| *how != Ending::Yielded || shared.limits().allows(rider.shape()))
        });
        let ends = ending.is_some();
        if let Some(how) = ending {
            self.ended[token.member] = true;
            self.member_steps += token.step + 1;
            rider.end(how, &shared.tokens, progress);
        } else if rider.stream || self.tells_all {
            rider.tell(progress);
        }
        if self.steps.hear(token.step, token.member, ends).last {
            self.step_is_over();
        }
        ends
    }

    fn step_is_over(&mut self) {
        let taken = self.steps.taken();
        self.shared.liveness.step(self.feeder, self.now, taken.saturating_sub(self.counted));
        self.counted = taken;
        self.announce_if_near(self.step_time(), Duration::ZERO);
        self.send_progress();
    }

    fn step_time(&self) -> Duration {
        let (first, step) = self.first.unwrap_or((self.now, 0));
        let steps = self.steps.taken().saturating_sub(step).saturating_sub(1);
        match u32::try_from(steps) {
            Ok(steps) if u64::from(steps) >= TELLING_STEPS => self.now.saturating_duration_since(first) / steps,
            _ => self.shared.pace.step(),
        }
    }

    fn announce_if_near(&mut self, step: Duration, before: Duration) {
        if self.announce {
            let lead = credit::lead(self.shared.pace.handover()).saturating_sub(before);
            if credit::is_near(self.steps.remaining(), step, lead) {
                self.announce = false;
                self.send(Event::Near(self.job.batch));
            }
        }
    }

    fn send_progress(&mut self) {
        if !self.progress.is_empty() {
            let progress = std::mem::replace(&mut self.progress, Progress::of(self.job.batch));
            self.send(Event::Progress(progress));
        }
    }

    fn send(&mut self, event: Event) {
        if self.job.events.blocking_send(event).is_err() {
            self.abandoned = true;
        }
    }

    /// The engine, called at `called`, has returned: tells what is left to tell, and returns how it went.
    pub(super) fn arrive(mut self, called: Instant) -> Arrival {
        let taken = self.steps.taken();
        let spell = match self.before {
            Some(before) => Spell::new(called, before, self.now),
            // It said nothing, so it has failed.
            None => self.replicas.silent(called, Instant::now()),
        };
        let began = spell.began;
        self.shared.liveness.step(self.feeder, Instant::now(), taken.saturating_sub(self.counted));
        self.send_progress();
        let unfinished = self.ended.iter().zip(self.cohort).filter(|(ended, _)| !**ended).map(|(_, &place)| place);
        let unfinished: Vec<usize> = unfinished.collect();
        let (first, step) = self.first.unwrap_or((self.now, 0));
        Arrival {
            announced: !self.announce,
            steps: taken,
            forced: self.steps.forced(),
            time: CallTime {
                first: first.saturating_duration_since(began),
                rest: self.now.saturating_duration_since(first),
                steps: taken.saturating_sub(step).saturating_sub(1),
                fed: 0,
                member_steps: self.member_steps + taken * unfinished.len() as u64,
            },
            unfinished,
            spell,
        }
    }
}

/// What a call came to.
pub(super) struct Arrival {
    /// Riders that have not ended, by their places in the job.
    pub(super) unfinished: Vec<usize>,
    /// Whether the batch's end need not be announced any more.
    pub(super) announced: bool,
    pub(super) steps: u64,
    pub(super) forced: u64,
    pub(super) time: CallTime,
    pub(super) spell: Spell,
}
