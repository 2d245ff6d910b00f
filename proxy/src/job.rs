//! What travels through the proxy: a job is one text of one request, on its way to exactly one terminal event.

mod feed;
mod reply;

use std::cmp::Ordering;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use pillion_protocol::frame::{Options, Prompt};
use serde_json::{Map, Value};
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

/// Workers that can go on with each other's answers: their models and tokenizers have one fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Build(u64);

impl Build {
    /// Any will do.
    pub const ANY: Self = Self(0);

    /// That of workers with this fingerprint.
    pub fn of(fingerprint: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        fingerprint.hash(&mut hasher);
        Self(hasher.finish().max(1))
    }
}

/// What a worker is, as far as it decides whom it can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// Its model's name.
    pub model: ModelId,
    /// Its model's fingerprint.
    pub build: Build,
}

/// How much company a job may have that was there when workers died, and may have been why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Trial {
    /// It is not suspected.
    None,
    /// It rides with a few others who are suspected too.
    Few,
    /// It rides alone.
    Alone,
}

impl Trial {
    /// The most members of its batch.
    pub fn most(self) -> usize {
        match self {
            Self::None => usize::MAX,
            Self::Few => 8,
            Self::Alone => 1,
        }
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
    build: Build,
    trial: Trial,
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
            build: Build::ANY,
            trial: Trial::None,
        }
    }

    /// The same for one model, or for [any](ModelId::ANY).
    #[must_use]
    pub fn of_model(self, model: ModelId) -> Self {
        Self { model, ..self }
    }

    /// The same for workers of one build alone, since the answer has begun there.
    #[must_use]
    pub fn of_build(self, build: Build) -> Self {
        Self { build, ..self }
    }

    /// The same on trial.
    #[must_use]
    pub fn on_trial(self, trial: Trial) -> Self {
        Self { trial, ..self }
    }

    /// The same for whichever worker: what is left says who can share a batch.
    #[must_use]
    pub fn for_any(self) -> Self {
        Self { model: ModelId::ANY, build: Build::ANY, ..self }
    }

    /// Whether it is on trial.
    pub fn trial(&self) -> Trial {
        self.trial
    }

    /// Whether only workers of one build can serve it.
    pub fn is_tied(&self) -> bool {
        self.build != Build::ANY
    }

    /// Whether a worker of this kind can serve it.
    pub fn is_for(&self, kind: Kind) -> bool {
        (self.model == ModelId::ANY || self.model == kind.model) && (!self.is_tied() || self.build == kind.build)
    }

    /// Whether one worker may serve both, as far as that is known.
    pub fn may_share_a_worker(&self, other: &Self) -> bool {
        let models = [self.model, other.model];
        let builds = [self.build, other.build];
        (models[0] == models[1] || models.contains(&ModelId::ANY))
            && (builds[0] == builds[1] || builds.contains(&Build::ANY))
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
    /// Where the answer ends.
    pub stop: Arc<Stops>,
    /// What a chat's template is told besides the messages.
    pub chat_template_kwargs: Arc<TemplateKwargs>,
}

/// What a chat's template is told besides the messages.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TemplateKwargs {
    /// Names and values.
    pub map: Map<String, Value>,
    /// Bytes that they take as JSON.
    pub bytes: usize,
}

/// Where an answer ends, besides the model's own end tokens. Neither is part of the answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stops {
    /// Texts, none empty.
    pub strings: Vec<String>,
    /// Token ids.
    pub token_ids: Vec<u32>,
}

impl Ask {
    /// To continue a text, with nothing else asked.
    pub fn text(text: &str, class: Class, max_new_tokens: u32) -> Self {
        let prompt = Prompt::Text(text.to_owned());
        Self { prompt, class, max_new_tokens, fit: false, stop: Arc::default(), chat_template_kwargs: Arc::default() }
    }

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
        let stops = self.stop.strings.iter().map(String::len).sum::<usize>() + self.stop.token_ids.len() * 4;
        prompt_bytes(&self.prompt) + stops + self.chat_template_kwargs.bytes
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
    /// How often a worker has died with it though it was not told to stop, and had produced nothing for it.
    pub strikes: u32,
    /// Tokens that it had when it last left the queue.
    pub had: usize,
    /// How often it has been made to give way to others.
    pub gave_way: u32,
    /// Its place in the queue's bound; dropped when it leaves the queue.
    pub slot: Option<QueueSlot>,
    /// Where its terminal event goes.
    pub reply: Reply,
}

impl Job {
    /// A job that is admitted now, whose answer goes to `reply`.
    pub fn new(id: JobId, ask: Ask, admitted: Instant, deadline: Instant, reply: Reply) -> Self {
        Self {
            id,
            ask,
            origin: None,
            admitted,
            waits_since: admitted,
            deadline,
            progress: Progress::default(),
            boarding: None,
            attempts: 0,
            strikes: 0,
            had: 0,
            gave_way: 0,
            slot: None,
            reply,
        }
    }

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
        self.had = self.progress.produced.len();
        self.boarding = Some(Boarding { first: self.boarding.map_or(now, |boarding| boarding.first), members });
        let foreign = self.progress.fingerprint.as_ref().is_some_and(|theirs| theirs != fingerprint);
        if foreign || self.ask.class.options().look_back() {
            if self.has_been_heard() {
                return Err(if foreign { Failure::ModelGone } else { Failure::NotResumable });
            }
            self.progress = Progress::default();
            self.had = 0;
        }
        Ok(())
    }

    /// Its worker has died, and was serving it. Where that had produced nothing for it, it may have been why: it is struck,
    /// and once it was so often enough it goes on with less company, until it fails for having been alone.
    ///
    /// # Errors
    /// It has been struck `most` times, the last time alone; or once, where that is all that it may be.
    pub fn strike(&mut self, most: u32) -> Result<(), Failure> {
        if self.progress.produced.len() > self.had {
            return Ok(());
        }
        self.strikes += 1;
        let was_alone = self.boarding.is_some_and(|boarding| boarding.members == 1);
        if self.strikes >= most && (was_alone || most <= 1) {
            return Err(Failure::WorkerLost { attempts: self.attempts });
        }
        let trial = match self.strikes.saturating_add(1).cmp(&most) {
            Ordering::Less => Trial::None,
            Ordering::Equal => Trial::Few,
            Ordering::Greater => Trial::Alone,
        };
        self.ask.class = self.ask.class.on_trial(trial);
        Ok(())
    }

    /// It waits again. Where a part of its answer has reached the client, only a worker of the same build can go on.
    ///
    /// # Errors
    /// Not even that, since its options look back.
    pub fn come_back(&mut self) -> Result<(), Failure> {
        let Some(fingerprint) = self.progress.fingerprint.as_ref().filter(|_| self.has_been_heard()) else {
            return Ok(());
        };
        if self.ask.class.options().look_back() {
            return Err(Failure::NotResumable);
        }
        self.ask.class = self.ask.class.of_build(Build::of(fingerprint));
        Ok(())
    }

    /// Whether a part of its answer has reached the client.
    fn has_been_heard(&self) -> bool {
        self.reply.is_stream() && self.progress.sent > 0
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
    fn a_class_says_which_workers_can_serve_it() {
        let any = Class::new(&Options::default(), 0);
        let kind = |model, fingerprint| Kind { model: ModelId::new(model), build: Build::of(fingerprint) };
        let named = any.of_model(ModelId::new(1));
        assert!(any.is_for(kind(1, "a")) && named.is_for(kind(1, "a")) && !named.is_for(kind(2, "a")));
        let tied = named.of_build(Build::of("a"));
        assert!(tied.is_tied() && tied.is_for(kind(1, "a")) && !tied.is_for(kind(1, "b")));
        assert!(any.may_share_a_worker(&named) && named.may_share_a_worker(&any) && any.may_share_a_worker(&tied));
        assert!(!any.of_model(ModelId::new(2)).may_share_a_worker(&named));
        assert!(!tied.may_share_a_worker(&any.of_build(Build::of("b"))));
    }

    fn job() -> Job {
        let ask = Ask::text("why", Class::new(&Options::default(), 0), 10);
        Job::new(JobId(1), ask, Instant::now(), Instant::now(), Reply::new().0)
    }

    /// What becomes of a job whose worker dies once for each number of members that it rides with.
    fn strikes(most: u32, rides: &[usize]) -> Vec<Option<Trial>> {
        let (mut job, fingerprint) = (job(), Arc::from("a"));
        let mut ride = |&members| {
            job.leave_queue(&fingerprint, members, Instant::now()).unwrap();
            job.strike(most).ok().map(|()| job.ask.class.trial())
        };
        rides.iter().map(&mut ride).collect()
    }

    #[test]
    fn whoever_is_struck_has_less_and_less_company_and_fails_alone() {
        use Trial::{Alone, Few};
        assert_eq!(strikes(3, &[50, 50, 8, 1]), [Some(Trial::None), Some(Few), Some(Alone), None]);
        assert_eq!(strikes(3, &[1, 1, 1]), [Some(Trial::None), Some(Few), None]);
        assert_eq!(strikes(2, &[50, 8, 1]), [Some(Few), Some(Alone), None]);
        assert_eq!(strikes(1, &[50]), [None], "it was to be tried once");
    }

    #[test]
    fn an_attempt_that_got_on_is_no_strike() {
        let (mut job, fingerprint) = (job(), Arc::from("a"));
        for produced in 1..9 {
            job.leave_queue(&fingerprint, 1, Instant::now()).unwrap();
            job.progress.produced.push(produced);
            job.strike(1).unwrap();
        }
        job.leave_queue(&fingerprint, 1, Instant::now()).unwrap();
        assert!(job.strike(1).is_err());
    }

    #[test]
    fn requests_with_other_penalties_are_of_other_classes() {
        let one = Class::new(&Options::default(), 0);
        let other = Class::new(&Options { repetition_penalty: 1.1, ..Options::default() }, 0);
        assert_ne!(one, other);
    }
}
