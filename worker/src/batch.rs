//! A batch inside the worker: the members prepared for the engine, the signals that the session sends to them, and the events
//! that come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use pillion_protocol::frame::{BatchCost, FailureCode, FinishReason, Options};
use pillion_protocol::{BatchId, MemberIndex};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::Sender;

use crate::cohort::Shape;
use crate::tokens::{Answer, Context, Tokens};

/// Signals from the session to a batch that an engine thread has.
#[derive(Debug)]
pub struct BatchSignals {
    cancelled: Vec<AtomicBool>,
    yielding: AtomicBool,
}

impl BatchSignals {
    /// The signals of a batch of this many members.
    pub fn new(members: usize) -> Self {
        Self { cancelled: (0..members).map(|_| AtomicBool::new(false)).collect(), yielding: AtomicBool::new(false) }
    }

    /// Cancels a member. An index that the batch does not have is ignored.
    pub fn cancel(&self, member: MemberIndex) {
        if let Some(flag) = self.cancelled.get(member as usize) {
            flag.store(true, Relaxed);
        }
    }

    /// Cancels all members.
    pub fn cancel_all(&self) {
        self.cancelled.iter().for_each(|flag| flag.store(true, Relaxed));
    }

    /// Asks for the unfinished members back, so that another worker can continue them.
    pub fn request_yield(&self) {
        self.yielding.store(true, Relaxed);
    }

    /// How a member must end now, if it must end before its answer is complete.
    pub fn interruption(&self, member: MemberIndex, deadline: Instant, now: Instant) -> Option<Ending> {
        if self.cancelled.get(member as usize).is_some_and(|flag| flag.load(Relaxed)) {
            Some(Ending::Finished(FinishReason::Cancelled))
        } else if now >= deadline {
            Some(Ending::Finished(FinishReason::Deadline))
        } else if self.yielding.load(Relaxed) {
            Some(Ending::Yielded)
        } else {
            None
        }
    }
}

/// A member ready for the engine.
#[derive(Debug)]
pub struct PreparedMember {
    /// Its index in the batch.
    pub index: MemberIndex,
    /// The tokens to feed: the prompt, then what earlier attempts produced. New tokens are added.
    pub tokens: Vec<u32>,
    /// The number of `tokens` that are the prompt.
    pub prompt: u32,
    /// The most tokens to produce, including those already produced.
    pub most: u32,
    /// Tokens to produce before the sequence may end, including those already produced.
    pub least: u32,
    /// When the member ends with what it has produced so far.
    pub deadline: Instant,
    /// Whether the client streams the member's tokens.
    pub stream: bool,
    /// Its stop strings.
    pub stop: Vec<String>,
    /// Tokens that end the member, besides the model's own.
    pub stop_token_ids: Vec<u32>,
    /// The last ids of the prompt, which decide how the text begins. Empty once they were reported to the session.
    pub context: Context,
    /// The member's text, made here only to find stop strings in it.
    pub answer: Option<Answer>,
    /// Text that is ready and not yet reported.
    pub text: String,
    /// The number of `tokens` that need no report: the prompt, what earlier attempts produced, and what was reported since.
    pub reported: usize,
}

impl PreparedMember {
    /// Tokens produced so far, in all attempts.
    pub fn produced(&self) -> u32 {
        u32::try_from(self.tokens.len()).unwrap_or(u32::MAX).saturating_sub(self.prompt)
    }

    /// Takes a new token. Returns how the member ends, if it ends with this token.
    pub fn push(&mut self, id: u32, tokens: &Tokens) -> Option<Ending> {
        // The engine holds the model's own end tokens back until `least`; it does not know the request's stop tokens.
        if tokens.ends().contains(&id) || (self.stop_token_ids.contains(&id) && self.produced() >= self.least) {
            return Some(Ending::Finished(FinishReason::Stop));
        }
        self.tokens.push(id);
        if let Some(answer) = &mut self.answer {
            match answer.push(tokens.decoder(), id, &mut self.text) {
                Ok(true) => {
                    self.answer = None;
                    return Some(Ending::Finished(FinishReason::Stop));
                }
                Ok(false) => {}
                Err(error) => return Some(Ending::Failed(FailureCode::Internal, error.to_string())),
            }
        }
        (self.produced() >= self.most).then_some(Ending::Finished(FinishReason::Length))
    }

    /// Moves what the member has produced since the last report into `progress`.
    pub fn report(&mut self, progress: &mut Progress) {
        // If the text is made here, the session needs no context.
        if self.stop.is_empty() && !self.context.is_empty() {
            progress.contexts.push((self.index, std::mem::take(&mut self.context)));
        }
        let ids = &self.tokens[self.reported.min(self.tokens.len())..];
        if self.stop.is_empty() && self.stream {
            progress.tokens.extend(ids.iter().map(|&id| (self.index, id)));
        } else if !ids.is_empty() || !self.text.is_empty() {
            let text = (!self.stop.is_empty()).then(|| std::mem::take(&mut self.text));
            progress.chunks.push(Chunk { member: self.index, ids: ids.to_vec(), text });
        }
        self.reported = self.tokens.len();
    }

    /// Ends the member: its last tokens and its end are added to `progress`.
    pub fn end(&mut self, mut how: Ending, tokens: &Tokens, progress: &mut Progress) {
        if let (Ending::Finished(_), Some(mut answer)) = (&how, self.answer.take())
            && let Err(error) = answer.finish(tokens.decoder(), &mut self.text)
        {
            how = Ending::Failed(FailureCode::Internal, error.to_string());
        }
        self.report(progress);
        let completion_tokens = self.produced();
        progress.ended.push(Ended { member: self.index, how, prompt_tokens: self.prompt, completion_tokens });
    }

    /// The member's lengths, by which it is put into a cohort.
    pub fn shape(&self) -> Shape {
        Shape {
            prompt: u32::try_from(self.tokens.len()).unwrap_or(u32::MAX),
            least: self.least.saturating_sub(self.produced()),
            most: self.most.saturating_sub(self.produced()),
        }
    }
}

/// A batch that is ready for the engine.
#[derive(Debug)]
pub struct PreparedBatch {
    /// Its number.
    pub id: BatchId,
    /// Decoding options.
    pub options: Options,
    /// Its members, without those that ended during preparation.
    pub members: Vec<PreparedMember>,
    /// Signals from the session.
    pub signals: Arc<BatchSignals>,
    /// Sends events to the session. Sending fails once the session is gone.
    pub events: Sender<Event>,
    /// The batch's place in the worker, which is free again when this is dropped.
    pub place: OwnedSemaphorePermit,
}

/// An event of a batch. Events must be handled in their order.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// Members have produced tokens or have ended.
    Progress(Progress),
    /// The batch is predicted to end within the credit's lead. Sent at most once for each batch.
    EndsSoon(BatchId),
    /// Every member has ended.
    Done(BatchId, BatchCost),
}

/// The tokens that members of one batch have produced, and the members that have ended.
#[derive(Debug, Default, PartialEq)]
pub struct Progress {
    /// The batch's number.
    pub batch: u64,
    /// The last ids of a member's prompt, before the first of its tokens.
    pub contexts: Vec<(MemberIndex, Context)>,
    /// Tokens of members whose text the session makes.
    pub tokens: Vec<(MemberIndex, u32)>,
    /// Several tokens of a member, with their text if an engine thread made it.
    pub chunks: Vec<Chunk>,
    /// Members that ended.
    pub ended: Vec<Ended>,
}

impl Progress {
    /// The progress of a batch that has none yet.
    pub fn of(batch: BatchId) -> Self {
        Self { batch: batch.0, ..Self::default() }
    }

    /// Whether there is nothing to report.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty() && self.chunks.is_empty() && self.ended.is_empty()
    }
}

/// Tokens of one member.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Which member.
    pub member: MemberIndex,
    /// The tokens.
    pub ids: Vec<u32>,
    /// Their text, if the member has stop strings; else the session makes it.
    pub text: Option<String>,
}

/// A member's end.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    /// Which member.
    pub member: MemberIndex,
    /// How it ended.
    pub how: Ending,
    /// Tokens in its prompt.
    pub prompt_tokens: u32,
    /// Tokens that the member produced in all attempts, without an end-of-sequence token.
    pub completion_tokens: u32,
}

/// How a member ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The answer is complete.
    Finished(FinishReason),
    /// The member failed, with a code for the proxy and a message for people.
    Failed(FailureCode, String),
    /// The member goes back to the proxy unfinished.
    Yielded,
}
