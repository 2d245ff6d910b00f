//! A batch in the hands of the simulated worker: plain data, the instant passed in.

use std::time::Duration;

use pillion_protocol::frame::{
    Batch, BatchCost, FailureCode, FinishReason, Hello, Member, MemberFailed, MemberFinished, MemberTokens,
};
use pillion_protocol::{BatchId, Frame, MemberIndex};
use tokio::time::Instant;

use super::{Profile, echo};

/// A prompt with this word fails with the code that follows it.
const FAIL: &str = "!fail:";

/// A prompt with this word kills whoever serves it, before its first step: its connection ends without a word.
pub const POISON: &str = "!die";

/// A batch that has not ended.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) id: BatchId,
    /// Its number in the worker's life, from 1.
    pub(super) number: u64,
    /// Steps done.
    pub(super) steps: u64,
    /// When the next step is due; `None` where it is stalled.
    pub(super) due: Option<Instant>,
    begun: Instant,
    /// For how long the engine had been idle before.
    idle_us: u64,
    live: Vec<Live>,
}

/// A member that has not ended.
#[derive(Debug)]
struct Live {
    member: MemberIndex,
    words: Vec<String>,
    produced: usize,
    max: usize,
    min: usize,
    deadline: Instant,
    stream: bool,
    /// Produced and not yet sent.
    held: MemberTokens,
}

impl Running {
    /// Takes a batch in. The frames say which members failed at once.
    pub(super) fn begin(
        id: BatchId,
        batch: Batch,
        profile: &Profile,
        number: u64,
        idle_us: u64,
        now: Instant,
    ) -> (Self, Option<Frame>) {
        let worker = &profile.hello;
        let mut live = Vec::new();
        let mut failed = Vec::new();
        for (member, index) in batch.members.into_iter().zip(0..) {
            let words = echo::words(&member.prompt);
            match unfit(&member, &words, worker, batch.options.look_back(), batch.options.sampling_topk) {
                Some(code) => {
                    failed.push(MemberFailed { member: index, code, message: format!("simulated: {code:?}") });
                }
                None => live.push(Live::new(index, &member, words, now, profile)),
            }
        }
        let running = Self { id, number, steps: 0, due: Some(now + profile.batch_cost), begun: now, idle_us, live };
        (running, (!failed.is_empty()).then_some(Frame::Failed(id, failed)))
    }

    /// Whether a member is of the kind that kills.
    pub(super) fn is_poisoned(&self) -> bool {
        self.live.iter().any(|live| live.words.iter().any(|word| word == POISON))
    }

    /// One step: a token for every member, and what ended by it. The members of one step end in one frame.
    pub(super) fn step(&mut self, now: Instant) -> Vec<Frame> {
        self.steps += 1;
        let mut ended = Vec::new();
        for live in &mut self.live {
            if let Some(reason) = live.advance(now) {
                ended.push((live.member, reason));
            }
        }
        self.end(&ended)
    }

    /// Ends the members named that still run.
    pub(super) fn cancel(&mut self, members: &[MemberIndex]) -> Vec<Frame> {
        let ended: Vec<_> = members.iter().map(|&member| (member, FinishReason::Cancelled)).collect();
        self.end(&ended)
    }

    fn end(&mut self, ended: &[(MemberIndex, FinishReason)]) -> Vec<Frame> {
        let reason = |live: &Live| ended.iter().find(|(member, _)| *member == live.member).map(|(_, reason)| *reason);
        let tokens: Vec<_> = self
            .live
            .iter_mut()
            .filter(|live| live.stream || reason(live).is_some())
            .filter_map(Live::release)
            .collect();
        let finished: Vec<_> = self.live.iter().filter_map(|live| Some(live.finished(reason(live)?))).collect();
        self.live.retain(|live| reason(live).is_none());
        let mut frames = Vec::new();
        if !tokens.is_empty() {
            frames.push(Frame::Tokens(self.id, tokens));
        }
        if !finished.is_empty() {
            frames.push(Frame::Finished(self.id, finished));
        }
        frames
    }

    /// Gives all unfinished members back.
    pub(super) fn give_back(&mut self) -> Vec<Frame> {
        let tokens: Vec<_> = self.live.iter_mut().filter_map(Live::release).collect();
        let members: Vec<_> = self.live.drain(..).map(|live| live.member).collect();
        let mut frames = Vec::new();
        if !tokens.is_empty() {
            frames.push(Frame::Tokens(self.id, tokens));
        }
        if !members.is_empty() {
            frames.push(Frame::Yielded(self.id, members));
        }
        frames
    }

    /// What the batch cost, once it has no member left.
    pub(super) fn done(&self, now: Instant) -> Option<Frame> {
        let engine_us = u64::try_from((now - self.begun).as_micros()).unwrap_or(u64::MAX);
        let cost = BatchCost { engine_us, cohorts: 1, steps: self.steps, forced_steps: 0, idle_us: self.idle_us };
        self.live.is_empty().then_some(Frame::Done(self.id, cost))
    }
}

impl Live {
    fn new(index: MemberIndex, member: &Member, words: Vec<String>, now: Instant, profile: &Profile) -> Self {
        let produced = member.produced.len();
        let text: String = (0..produced).map(|k| echo::text(&words, k)).collect();
        let room = (profile.hello.positions as usize).saturating_sub(words.len());
        let max = member.max_new_tokens as usize;
        let sent = usize::try_from(member.sent).unwrap_or(usize::MAX);
        Self {
            member: index,
            words,
            produced,
            max: if member.fit { max.min(room) } else { max },
            min: member.min_new_tokens as usize,
            // A century is as good as never, and within what an instant can hold.
            deadline: now + Duration::from_millis(member.deadline_ms).min(Duration::from_secs(3_000_000_000)),
            stream: member.stream || profile.eager,
            held: MemberTokens {
                member: index,
                ids: Vec::new(),
                text: text.get(sent..).unwrap_or_default().to_owned(),
            },
        }
    }

    fn advance(&mut self, now: Instant) -> Option<FinishReason> {
        if now >= self.deadline {
            return Some(FinishReason::Deadline);
        }
        let ends = |produced| echo::ends(&self.words, produced, self.max, self.min);
        if let Some(reason) = ends(self.produced) {
            return Some(reason);
        }
        self.held.ids.push(echo::id(&self.words, self.produced));
        self.held.text.push_str(&echo::text(&self.words, self.produced));
        self.produced += 1;
        ends(self.produced)
    }

    fn release(&mut self) -> Option<MemberTokens> {
        let empty = MemberTokens { member: self.member, ids: Vec::new(), text: String::new() };
        (self.held != empty).then(|| std::mem::replace(&mut self.held, empty))
    }

    fn finished(&self, reason: FinishReason) -> MemberFinished {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        MemberFinished {
            member: self.member,
            reason,
            prompt_tokens: count(self.words.len()),
            completion_tokens: count(self.produced),
        }
    }
}

/// Why the worker cannot take a member, if it cannot.
fn unfit(member: &Member, words: &[String], worker: &Hello, look_back: bool, topk: u32) -> Option<FailureCode> {
    if words.is_empty() {
        return Some(FailureCode::EmptyPrompt);
    }
    let least = if member.fit { member.min_new_tokens.max(1) } else { member.max_new_tokens };
    if words.len() as u64 + u64::from(least) > u64::from(worker.positions) {
        return Some(FailureCode::TooManyTokens);
    }
    let strange = |(k, id): (usize, &u32)| *id != echo::id(words, k);
    if topk > worker.vocabulary || member.produced.iter().enumerate().any(strange) {
        return Some(FailureCode::InvalidRequest);
    }
    if look_back && !member.produced.is_empty() {
        return Some(FailureCode::NotResumable);
    }
    words.iter().find_map(|word| word.strip_prefix(FAIL)).map(|code| match code {
        "empty_prompt" => FailureCode::EmptyPrompt,
        "too_many_tokens" => FailureCode::TooManyTokens,
        "invalid_request" => FailureCode::InvalidRequest,
        "not_resumable" => FailureCode::NotResumable,
        "engine" => FailureCode::Engine,
        _ => FailureCode::Other,
    })
}
