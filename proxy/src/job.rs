//! What travels through the proxy: a job is one text of one request, on its way to exactly one terminal event.

mod feed;
mod reply;

use std::ops::Range;
use std::sync::Arc;

use pillion_protocol::frame::{Options, Prompt};
use tokio::time::Instant;

pub use self::feed::{Feed, Held, News};
pub use self::reply::{Completion, End, Failure, Reply};

use crate::admission::QueueSlot;
use crate::policy::forecast::Asked;
use crate::policy::preemption::MOST_TIMES;

/// A job's number. Numbers rise with admission, so a smaller one is older.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// The jobs of one request: consecutive numbers.
pub type JobRange = Range<u64>;

/// The model that a job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId(u32);

impl ModelId {
    /// Any will do.
    pub const ANY: Self = Self(0);

    /// That of a model; `number` is at least 1.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }
}

/// What must be equal for two jobs to share a batch: the engine takes these for a whole call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Class {
    topk: u32,
    topp: u32,
    temperature: u32,
    penalty: u32,
    ngram: u32,
    min_new_tokens: u32,
    model: ModelId,
}

impl Class {
    /// The class of requests with these options.
    pub fn new(options: &Options, min_new_tokens: u32) -> Self {
        Self {
            topk: options.sampling_topk,
            topp: options.sampling_topp.to_bits(),
            temperature: options.sampling_temperature.to_bits(),
            penalty: options.repetition_penalty.to_bits(),
            ngram: options.no_repeat_ngram_size,
            min_new_tokens,
            model: ModelId::ANY,
        }
    }

    /// The same for one model, or for [any](ModelId::ANY).
    #[must_use]
    pub fn of_model(self, model: ModelId) -> Self {
        Self { model, ..self }
    }

    /// Whether a worker with this model can serve it.
    pub fn is_for(&self, model: ModelId) -> bool {
        self.model == ModelId::ANY || self.model == model
    }

    /// Whether one worker may serve both, as far as the model goes.
    pub fn may_share_a_worker(&self, other: &Self) -> bool {
        self.is_for(other.model) || other.model == ModelId::ANY
    }

    /// The options that every member of the class has.
    pub fn options(&self) -> Options {
        Options {
            sampling_topk: self.topk,
            sampling_topp: f32::from_bits(self.topp),
            sampling_temperature: f32::from_bits(self.temperature),
            repetition_penalty: f32::from_bits(self.penalty),
            no_repeat_ngram_size: self.ngram,
        }
    }

    /// The least number of new tokens that every member of the class has.
    pub fn min_new_tokens(&self) -> u32 {
        self.min_new_tokens
    }
}

/// Bytes that a message of a chat takes on the wire beside its texts.
const MESSAGE: usize = 32;

/// What a request is called in logs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Its `x-request-id`.
    pub request_id: String,
    /// Its `traceparent`.
    pub traceparent: String,
}

/// What a client asked of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// What to continue.
    pub prompt: Prompt,
    /// What it can share a batch with.
    pub class: Class,
    /// The most tokens to produce, at least 1.
    pub max_new_tokens: u32,
    /// Whether fewer will do, where the prompt leaves fewer of the model's positions.
    pub fit: bool,
    /// Texts at which the answer ends.
    pub stop: Arc<[String]>,
}

impl Ask {
    /// A guess at the tokens that prompt and answer take, made before anything is tokenised: a token is rarely shorter
    /// than three bytes of text. The worker counts exactly and splits a batch that is too large for it.
    pub fn estimated_tokens(&self) -> u64 {
        let prompt = match &self.prompt {
            Prompt::Text(text) => text.len() / 3 + 1,
            Prompt::Ids(ids) => ids.len(),
            Prompt::Chat(messages) => messages.iter().map(|said| said.content.len() / 3 + 5).sum(),
        };
        prompt as u64 + u64::from(self.max_new_tokens)
    }

    /// Bytes that the prompt takes on the wire, before JSON's escapes.
    pub fn bytes(&self) -> usize {
        prompt_bytes(&self.prompt) + self.stop.iter().map(String::len).sum::<usize>()
    }
}

/// Bytes that a prompt takes on the wire, before JSON's escapes.
pub fn prompt_bytes(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Text(text) => text.len(),
        Prompt::Ids(ids) => ids.len() * 8,
        Prompt::Chat(messages) => messages.iter().map(|said| said.content.len() + said.role.len() + MESSAGE).sum(),
    }
}

/// What a member has produced so far, over all attempts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Token ids.
    pub produced: Vec<u32>,
    /// Bytes of their text, as far as the worker has sent it.
    pub sent: usize,
    /// That text; nothing where it is streamed, for then it has gone on to the client.
    pub text: String,
    /// The fingerprint of the worker that produced them: only its equal may go on.
    pub fingerprint: Option<Arc<str>>,
    /// When the first of them arrived.
    pub first_token_at: Option<Instant>,
}

/// A job's leaving the queue with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boarding {
    /// When it first did.
    pub first: Instant,
    /// Members of the latest batch.
    pub members: usize,
}

/// One text on its way.
#[derive(Debug)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// What was asked.
    pub ask: Ask,
    /// Whose it is, for the worker's log, if it belongs to a trace.
    pub origin: Option<Arc<Origin>>,
    /// When it was admitted.
    pub admitted: Instant,
    /// Since when it waits for its turn: its admission, or when it last gave way to others.
    pub waits_since: Instant,
    /// When it is worth nothing any more.
    pub deadline: Instant,
    /// What it has so far.
    pub progress: Progress,
    /// Its latest batch.
    pub boarding: Option<Boarding>,
    /// How often it has been sent to a worker.
    pub attempts: u32,
    /// How often it has been made to give way to others.
    pub gave_way: u32,
    /// Its place in the queue's bound; dropped when it leaves the queue.
    pub slot: Option<QueueSlot>,
    /// Where its terminal event goes.
    pub reply: Reply,
}

impl Job {
    /// What it asks for, less what it has.
    pub fn asked(&self) -> Asked {
        let produced = self.progress.produced.len();
        let left = self.ask.max_new_tokens.saturating_sub(u32::try_from(produced).unwrap_or(u32::MAX));
        let mut asked = Asked::default();
        asked.add(self.ask.bytes(), left, produced);
        asked
    }

    /// Whether it can be given back by an engine once more, and go on later.
    pub fn may_give_way(&self) -> bool {
        self.gave_way < MOST_TIMES && !self.ask.class.options().look_back()
    }

    /// The job leaves the queue, with so many members, for a worker with this fingerprint. What another model produced is
    /// forgotten, and so is what was produced under options that look back: where nothing of it has reached the client, it
    /// starts again.
    ///
    /// # Errors
    /// Something has.
    pub fn leave_queue(&mut self, fingerprint: &Arc<str>, members: usize, now: Instant) -> Result<(), Failure> {
        self.slot = None;
        self.attempts += 1;
        self.boarding = Some(Boarding { first: self.boarding.map_or(now, |boarding| boarding.first), members });
        let foreign = self.progress.fingerprint.as_ref().is_some_and(|theirs| theirs != fingerprint);
        if foreign || self.ask.class.options().look_back() {
            if self.reply.is_stream() && self.progress.sent > 0 {
                return Err(if foreign { Failure::ModelGone } else { Failure::NotResumable });
            }
            self.progress = Progress::default();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_gives_back_its_options() {
        let options = Options { sampling_topp: 0.9, repetition_penalty: 1.2, ..Options::default() };
        assert_eq!(Class::new(&options, 3).options(), options);
    }

    #[test]
    fn a_class_of_one_model_is_for_that_model_alone() {
        let any = Class::new(&Options::default(), 0);
        let (one, two) = (ModelId::new(1), ModelId::new(2));
        assert!(any.is_for(one) && any.of_model(one).is_for(one) && !any.of_model(one).is_for(two));
        assert!(any.may_share_a_worker(&any.of_model(one)) && any.of_model(one).may_share_a_worker(&any));
        assert!(!any.of_model(two).may_share_a_worker(&any.of_model(one)));
    }

    #[test]
    fn requests_with_other_penalties_are_of_other_classes() {
        let one = Class::new(&Options::default(), 0);
        let other = Class::new(&Options { repetition_penalty: 1.1, ..Options::default() }, 0);
        assert_ne!(one, other);
    }
}
