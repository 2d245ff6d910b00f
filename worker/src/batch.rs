//! A batch on its way through the worker: from the wire's members to members that the engine can take, and what comes
//! back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use pillion_protocol::frame::{BatchCost, FailureCode, FinishReason, Options};
use pillion_protocol::{BatchId, MemberIndex};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::Sender;

use crate::cohort::Shape;
use crate::tokens::{Answer, Context, Tokens};

/// What the session may still tell a batch that has left it.
#[derive(Debug)]
pub struct BatchSignals {
    cancelled: Vec<AtomicBool>,
    yielding: AtomicBool,
}

impl BatchSignals {
    /// For a batch of so many members.
    pub fn new(members: usize) -> Self {
        Self { cancelled: (0..members).map(|_| AtomicBool::new(false)).collect(), yielding: AtomicBool::new(false) }
    }

    /// Nobody waits for this member any more. A member that is none is ignored: it may have been heard of late.
    pub fn cancel(&self, member: MemberIndex) {
        if let Some(flag) = self.cancelled.get(member as usize) {
            flag.store(true, Relaxed);
        }
    }

    /// Nobody waits for any of them.
    pub fn cancel_all(&self) {
        self.cancelled.iter().for_each(|flag| flag.store(true, Relaxed));
    }

    /// Unfinished members are wanted back.
    pub fn request_yield(&self) {
        self.yielding.store(true, Relaxed);
    }

    /// Why a member should end before its answer does, if it should.
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
    /// What to feed: the prompt, and then what earlier attempts have produced.
    pub tokens: Vec<u32>,
    /// How many of `tokens` are the prompt.
    pub prompt: u32,
    /// The most tokens to produce, those already produced included.
    pub most: u32,
    /// No end of sequence before so many, those already produced included.
    pub least: u32,
    /// When it ends with what there is.
    pub deadline: Instant,
    /// Whether its tokens are wanted as they come.
    pub stream: bool,
    /// Its stop strings.
    pub stop: Vec<String>,
    /// Tokens at which it ends, besides the model's own.
    pub stop_token_ids: Vec<u32>,
    /// The last ids of its prompt, which decide how its text begins; none once the session knows of them.
    pub context: Context,
    /// Its text, made here only where stop strings must be found in it.
    pub answer: Option<Answer>,
    /// Text that is ready and has not left yet.
    pub text: String,
    /// How many of `tokens` need not be reported: the prompt, what earlier attempts produced, and what was reported since.
    pub reported: usize,
}

impl PreparedMember {
    /// Tokens produced so far, in all attempts.
    pub fn produced(&self) -> u32 {
        u32::try_from(self.tokens.len()).unwrap_or(u32::MAX).saturating_sub(self.prompt)
    }

    /// Takes a new token, and says how the member ends where it ends with it.
    pub fn push(&mut self, id: u32, tokens: &Tokens) -> Option<Ending> {
        // The engine sees to it that the model's own end tokens do not come before the least, but knows of no others.
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

    /// Puts what the member has produced since it was last reported of into `progress`.
    pub fn report(&mut self, progress: &mut Progress) {
        // Where its text is made here, the session makes none.
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

    /// Ends the member: its last tokens and its end go into `progress`.
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

    /// What the engine needs to know to place it.
    pub fn shape(&self) -> Shape {
        Shape {
            prompt: u32::try_from(self.tokens.len()).unwrap_or(u32::MAX),
            least: self.least.saturating_sub(self.produced()),
            most: self.most.saturating_sub(self.produced()),
        }
    }
}

/// A batch for the engine.
#[derive(Debug)]
pub struct PreparedBatch {
    /// Its number.
    pub id: BatchId,
    /// Decoding options.
    pub options: Options,
    /// Its members, but those that were found unfit.
    pub members: Vec<PreparedMember>,
    /// What the session has to say meanwhile.
    pub signals: Arc<BatchSignals>,
    /// Where its events go. Once the session is gone, nobody takes them.
    pub events: Sender<Event>,
    /// The batch's place in the worker: given back when the job is dropped.
    pub place: OwnedSemaphorePermit,
}

/// What happened to a batch, in the order in which it is to be reported.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// Members have produced something, or have ended.
    Progress(Progress),
    /// The batch is predicted to end within the lead of a credit; at most once for each batch.
    EndsSoon(BatchId),
    /// Every member has ended.
    Done(BatchId, BatchCost),
}

/// What members of one batch produced, and which of them ended with it.
#[derive(Debug, Default, PartialEq)]
pub struct Progress {
    /// The batch's number.
    pub batch: u64,
    /// The last ids of a member's prompt, before the first of its tokens.
    pub contexts: Vec<(MemberIndex, Context)>,
    /// A token of a member whose text is made by the session.
    pub tokens: Vec<(MemberIndex, u32)>,
    /// Several tokens of a member, with their text where it was made on the engine's side.
    pub chunks: Vec<Chunk>,
    /// Members that ended.
    pub ended: Vec<Ended>,
}

impl Progress {
    /// Nothing yet of this batch.
    pub fn of(batch: BatchId) -> Self {
        Self { batch: batch.0, ..Self::default() }
    }

    /// Whether there is nothing to tell.
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
    /// Their text where the member has stop strings; else the session makes it.
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
    /// Tokens it produced in all attempts, an end-of-sequence token not counted.
    pub completion_tokens: u32,
}

/// How a member ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Well.
    Finished(FinishReason),
    /// Badly: for the proxy's program, and for people.
    Failed(FailureCode, String),
    /// Given back unfinished.
    Yielded,
}
