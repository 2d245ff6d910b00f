//! What travels through the proxy: a job is one text of one request, on its way to exactly one terminal event.

mod feed;
mod reply;

use std::ops::Range;
use std::sync::Arc;

use pillion_protocol::frame::{Options, Prompt};
use tokio::time::Instant;

pub use self::feed::{Feed, News};
pub use self::reply::{Completion, End, Failure, Reply};

use crate::admission::QueueSlot;
use crate::policy::forecast::Asked;
use crate::policy::preemption::MOST_TIMES;

/// A job's number. Numbers rise with admission, so a smaller one is older.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// The jobs of one request: consecutive numbers.
pub type JobRange = Range<u64>;

/// What must be equal for two jobs to share a batch: the engine takes these for a whole call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Class {
    topk: u32,
    topp: u32,
    temperature: u32,
    penalty: u32,
    ngram: u32,
    min_new_tokens: u32,
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
        }
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

/// What a client asked of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// What to continue.
    pub prompt: Prompt,
    /// What it can share a batch with.
    pub class: Class,
    /// The most tokens to produce, at least 1.
    pub max_new_tokens: u32,
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
        };
        prompt as u64 + u64::from(self.max_new_tokens)
    }

    /// Bytes that the prompt takes on the wire, before JSON's escapes.
    pub fn bytes(&self) -> usize {
        let prompt = match &self.prompt {
            Prompt::Text(text) => text.len(),
            Prompt::Ids(ids) => ids.len() * 8,
        };
        prompt + self.stop.iter().map(String::len).sum::<usize>()
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

    /// The job leaves the queue, with so many members, for a worker with this fingerprint. What another model produced is forgotten, and so is
    /// what was produced under options that look back: where nothing of it has reached the client, it starts again.
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
    fn requests_with_other_penalties_are_of_other_classes() {
        let one = Class::new(&Options::default(), 0);
        let other = Class::new(&Options { repetition_penalty: 1.1, ..Options::default() }, 0);
        assert_ne!(one, other);
    }
}
