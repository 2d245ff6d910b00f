//! The values that cross the socket. `PROTOCOL.md` says who sends which, when, and how each is written.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use serde_json::{Map, Value};

use crate::{BatchId, MemberIndex};

/// One frame.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// Worker to proxy, first on a connection: what the worker is and can take.
    Hello(Hello),
    /// Proxy to worker, the answer to HELLO.
    Welcome(Welcome),
    /// Either way, last on a connection: why it ends.
    Goodbye(Goodbye),
    /// Worker to proxy: it will take so many batches more.
    Credit {
        /// How many, at least 1.
        grant: u32,
    },
    /// Proxy to worker: a batch, moved into one credit.
    Batch(BatchId, Batch),
    /// Worker to proxy: what members produced.
    Tokens(BatchId, Vec<MemberTokens>),
    /// Worker to proxy: members that ended well.
    Finished(BatchId, Vec<MemberFinished>),
    /// Worker to proxy: members that ended badly.
    Failed(BatchId, Vec<MemberFailed>),
    /// Worker to proxy: members given back unfinished, to be resumed with what they have produced.
    Yielded(BatchId, Vec<MemberIndex>),
    /// Worker to proxy: every member has had its terminal frame; what the batch cost.
    Done(BatchId, BatchCost),
    /// Proxy to worker: nobody waits for these members any more.
    Cancel(BatchId, Vec<MemberIndex>),
    /// Proxy to worker: give the batch's unfinished members back.
    Yield(BatchId),
    /// Worker to proxy: the engine's progress.
    Heartbeat(Heartbeat),
    /// Worker to proxy: it wants to leave, and serves on until RELEASE.
    Draining,
    /// Proxy to worker: it is needed no longer; nothing more will be sent into its credit.
    Release,
}

/// What a worker is and can take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Protocol versions the worker speaks.
    pub versions: Vec<u8>,
    /// The worker's software and its version, for logs.
    pub software: String,
    /// The worker's process number, for logs; 0 where it has none to tell.
    #[serde(default)]
    pub pid: u32,
    /// The model's name, as clients and metrics say it.
    pub model: String,
    /// Hexadecimal digest of the model and its tokenizer: only a worker with the same one may continue a member.
    pub fingerprint: String,
    /// Positions of the model: the most tokens that prompt and answer may have together.
    pub positions: u32,
    /// Entries in the model's vocabulary: the largest `sampling_topk` allowed.
    pub vocabulary: u32,
    /// The most tokens (prompts and answers) that one batch may hold.
    pub max_batch_tokens: u32,
    /// Batches the worker runs at once.
    pub slots: u32,
    /// Whether it takes chats as prompts: it has, or makes do with, a template that turns them into a text.
    #[serde(default, skip_serializing_if = "is_default")]
    pub chat: bool,
    /// What the engine's work costs, as measured before the worker dialled; nothing where it was not measured.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cost: UnitCost,
    /// Milliseconds since the worker loaded its model: of two models of one name the one that was loaded last is the newer,
    /// in whatever order their workers dial.
    #[serde(default, skip_serializing_if = "is_default")]
    pub age_ms: u64,
}

/// What the parts of a batch cost the engine, in nanoseconds: a first guess for the proxy, which then learns from
/// [`BatchCost`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnitCost {
    /// A decode step, however many members it has.
    pub step_ns: u64,
    /// A member in a decode step.
    pub member_ns: u64,
    /// A prompt token fed in bulk.
    pub prompt_ns: u64,
}

/// The proxy's answer to HELLO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version spoken from the next frame on.
    pub version: u8,
    /// The most members the proxy will put into one batch, for sizing buffers.
    pub max_batch_size: u32,
}

/// Why a connection ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    /// For the other side's program.
    pub reason: GoodbyeReason,
    /// For the other side's log.
    pub message: String,
}

/// Why a connection ends, for a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GoodbyeReason {
    /// No protocol version in common.
    Version,
    /// The sender has drained and exits.
    Drained,
    /// The peer broke the protocol.
    Protocol,
    /// The sender failed inside.
    Internal,
    /// A reason that this build does not know.
    #[serde(other)]
    Other,
}

/// Requests that ride together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// Decoding options, which hold for every member.
    pub options: Options,
    /// The members, at least one.
    pub members: Vec<Member>,
}

/// Decoding options that CTranslate2 takes for a whole call: what makes requests compatible.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Candidates to draw from, the most likely first; 1 is greedy, 0 the whole vocabulary.
    pub sampling_topk: u32,
    /// Draw from the fewest candidates whose probabilities sum to this, over 0 and at most 1.
    #[serde(serialize_with = "finite", deserialize_with = "read_finite")]
    pub sampling_topp: f32,
    /// Over 0; higher is more random.
    #[serde(serialize_with = "finite", deserialize_with = "read_finite")]
    pub sampling_temperature: f32,
    /// Over 0; above 1 punishes tokens already produced.
    #[serde(serialize_with = "finite", deserialize_with = "read_finite")]
    pub repetition_penalty: f32,
    /// No sequence of so many tokens twice; 0 allows any.
    pub no_repeat_ngram_size: u32,
}

impl Options {
    /// Whether the next token depends on the tokens before it by more than the model: such members need companions of
    /// their own prompt length, because the engine counts forced prompt tokens as output.
    #[allow(clippy::float_cmp, reason = "the neutral value is exact")]
    pub fn look_back(&self) -> bool {
        self.repetition_penalty != 1.0 || self.no_repeat_ngram_size != 0
    }
}

impl Default for Options {
    /// Greedy, without penalties.
    fn default() -> Self {
        Self {
            sampling_topk: 1,
            sampling_topp: 1.0,
            sampling_temperature: 1.0,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
        }
    }
}

/// One text of a batch, resumable anywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// What to continue.
    pub prompt: Prompt,
    /// The most tokens to produce, those already produced included; at least 1.
    pub max_new_tokens: u32,
    /// Whether fewer will do: `max_new_tokens` is then lowered to what the prompt leaves of the model's positions, if that is at
    /// least 1.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fit: bool,
    /// No end of sequence before so many, those already produced included.
    #[serde(default, skip_serializing_if = "is_default")]
    pub min_new_tokens: u32,
    /// Texts at which the answer ends, trimmed from it; none empty.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stop: Vec<String>,
    /// Token ids at which the answer ends, besides the model's own end tokens; no part of it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stop_token_ids: Vec<u32>,
    /// What a chat's template is told besides the messages; empty for other prompts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub chat_template_kwargs: Map<String, Value>,
    /// Milliseconds from the sending of this frame to the member's deadline.
    pub deadline_ms: u64,
    /// Whether TOKENS are wanted as they come. If not, the worker may hold them back to the member's end.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stream: bool,
    /// Token ids this member has produced in earlier attempts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub produced: Vec<u32>,
    /// Bytes of its text that have been sent on in earlier attempts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sent: u64,
    /// What its request is called in the proxy's log, for the worker's.
    #[serde(default, skip_serializing_if = "is_default")]
    pub request_id: String,
    /// The trace that its request belongs to, as its client said it in `traceparent`; empty where it did not.
    #[serde(default, skip_serializing_if = "is_default")]
    pub traceparent: String,
}

/// A member without its prompt, for writing. Its fields are those of [`Member`], in the same order.
#[derive(Serialize)]
pub(crate) struct ButPrompt<'a> {
    max_new_tokens: u32,
    #[serde(skip_serializing_if = "is_default")]
    fit: bool,
    #[serde(skip_serializing_if = "is_default")]
    min_new_tokens: u32,
    #[serde(skip_serializing_if = "is_empty")]
    stop: &'a [String],
    #[serde(skip_serializing_if = "is_empty")]
    stop_token_ids: &'a [u32],
    #[serde(skip_serializing_if = "Map::is_empty")]
    chat_template_kwargs: &'a Map<String, Value>,
    deadline_ms: u64,
    #[serde(skip_serializing_if = "is_default")]
    stream: bool,
    #[serde(skip_serializing_if = "is_empty")]
    produced: &'a [u32],
    #[serde(skip_serializing_if = "is_default")]
    sent: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    request_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    traceparent: &'a str,
}

impl<'a> ButPrompt<'a> {
    pub(crate) fn of(member: &'a Member) -> Self {
        let Member { prompt: _, max_new_tokens, fit, min_new_tokens, stop, deadline_ms, .. } = member;
        let Member { stop_token_ids, chat_template_kwargs, .. } = member;
        let Member { stream, produced, sent, request_id, traceparent, .. } = member;
        Self {
            max_new_tokens: *max_new_tokens,
            fit: *fit,
            min_new_tokens: *min_new_tokens,
            stop,
            stop_token_ids,
            chat_template_kwargs,
            deadline_ms: *deadline_ms,
            stream: *stream,
            produced,
            sent: *sent,
            request_id,
            traceparent,
        }
    }
}

/// What a member continues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// A text, in which special tokens are plain text.
    Text(String),
    /// Token ids, taken as they are.
    Ids(Vec<u32>),
    /// A chat, which the model's template turns into a text; only for a worker whose HELLO says that it takes chats.
    Chat(Vec<Message>),
}

/// What somebody said in a chat. Special tokens in it are plain text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who: `system`, `user` or `assistant`.
    pub role: String,
    /// What.
    pub content: String,
}

/// What one member produced since its last TOKENS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberTokens {
    /// Which member.
    pub member: MemberIndex,
    /// The new token ids, possibly none.
    pub ids: Vec<u32>,
    /// The new text, possibly empty: a character, or a possible stop string, may be incomplete.
    pub text: String,
}

/// A member that ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberFinished {
    /// Which member.
    pub member: MemberIndex,
    /// Why it ended.
    pub reason: FinishReason,
    /// Tokens in its prompt.
    pub prompt_tokens: u32,
    /// Tokens it produced in all attempts, an end-of-sequence token not counted.
    pub completion_tokens: u32,
}

/// Why a member ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// End of sequence, or a stop string.
    Stop,
    /// `max_new_tokens` reached.
    Length,
    /// Its deadline passed while it was being decoded.
    Deadline,
    /// CANCEL.
    Cancelled,
}

/// A member that ended badly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberFailed {
    /// Which member.
    pub member: MemberIndex,
    /// For the proxy's program.
    pub code: FailureCode,
    /// For people: what was wrong, what is allowed.
    pub message: String,
}

/// Why a member ended badly. The proxy maps each to an answer; none reaches a client by this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The prompt has no tokens.
    EmptyPrompt,
    /// Prompt and `max_new_tokens` together exceed the model's positions.
    TooManyTokens,
    /// An option or a token id that this model cannot take.
    InvalidRequest,
    /// The member cannot be continued with its options, and something of it was sent.
    NotResumable,
    /// The engine failed on this member alone.
    Engine,
    /// Something else in the worker failed on this member alone: its tokenizer, say.
    Internal,
    /// A failure that this build does not know.
    #[serde(other)]
    Other,
}

/// What a batch cost the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchCost {
    /// Microseconds the engine was busy with it.
    pub engine_us: u64,
    /// Cohorts it was split into: calls of the engine.
    pub cohorts: u32,
    /// Decode steps of all cohorts together.
    pub steps: u64,
    /// Of them, steps of which some members only fed their prompts.
    pub forced_steps: u64,
    /// Microseconds for which the engine that took the batch had been idle before.
    #[serde(default)]
    pub idle_us: u64,
}

/// The engine's progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Decode steps since the worker started.
    pub steps: u64,
    /// Milliseconds for which the engine may now go without a step before it counts as stuck.
    pub silence_ms: u64,
}

fn is_empty<T>(values: &[T]) -> bool {
    values.is_empty()
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// JSON has no word for the other numbers: they would become `null`, at which the peer closes the connection.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn finite<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    if value.is_finite() { serializer.serialize_f32(*value) } else { Err(ser::Error::custom("a number is not finite")) }
}

/// A number that is too large for its type would be read as infinite, and could not be passed on.
fn read_finite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    let value = f32::deserialize(deserializer)?;
    if value.is_finite() { Ok(value) } else { Err(de::Error::custom("a number is too large")) }
}
