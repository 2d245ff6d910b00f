//! The frames as values. `PROTOCOL.md` says which side sends each frame, when, and how it is written.

use std::cmp::Ordering;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use serde_json::{Map, Value};

use crate::{BatchId, MemberIndex};

/// One frame.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// Worker to proxy, the first frame on a connection: describes the worker.
    Hello(Hello),
    /// Proxy to worker: accepts HELLO.
    Welcome(Welcome),
    /// In either direction, the last frame on a connection: why the connection ends.
    Goodbye(Goodbye),
    /// Worker to proxy: grants credits. Each one permits the proxy to send one batch.
    Credit {
        /// The number of credits, from 1 to 1,024.
        grant: u32,
    },
    /// Proxy to worker: a batch, which uses up one credit.
    Batch(BatchId, Batch),
    /// Worker to proxy: the tokens and the text that members have produced.
    Tokens(BatchId, Vec<MemberTokens>),
    /// Worker to proxy: members that have finished.
    Finished(BatchId, Vec<MemberFinished>),
    /// Worker to proxy: members that have failed.
    Failed(BatchId, Vec<MemberFailed>),
    /// Worker to proxy: members that are given back unfinished. They can be resumed with what they have produced.
    Yielded(BatchId, Vec<MemberIndex>),
    /// Worker to proxy: every member of the batch has ended. Reports what the batch cost.
    Done(BatchId, BatchCost),
    /// Proxy to worker: nobody waits for these members any more.
    Cancel(BatchId, Vec<MemberIndex>),
    /// Proxy to worker: asks the worker to give back the batch's unfinished members.
    Yield(BatchId),
    /// Worker to proxy: the engine's progress.
    Heartbeat(Heartbeat),
    /// Worker to proxy: the worker wants to leave, and goes on serving until RELEASE.
    Draining,
    /// Proxy to worker: the worker is not needed any more. The proxy sends it no further batch.
    Release,
}

/// Describes a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Protocol versions that the worker speaks.
    pub versions: Vec<u8>,
    /// The worker's software and its version, for logs.
    pub software: String,
    /// The worker's process id, for logs; 0 if it has none.
    #[serde(default)]
    pub pid: u32,
    /// The model's name in requests and metrics, 1 to 256 bytes.
    pub model: String,
    /// Hexadecimal digest of the model and its tokenizer. Only a worker with the same fingerprint may continue a member.
    pub fingerprint: String,
    /// Positions of the model: the most tokens that a prompt and its answer may have together.
    pub positions: u32,
    /// Entries in the model's vocabulary, which is also the largest allowed `sampling_topk`.
    pub vocabulary: u32,
    /// The most tokens, prompts and answers together, in one batch.
    pub max_batch_tokens: u32,
    /// Batches that the worker runs at once.
    pub slots: u32,
    /// Whether the worker accepts chats as prompts. It turns a chat into a text with the model's template, or with a plain
    /// one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub chat: bool,
    /// The cost of the engine's work, measured before the worker connected; all zeros if it was not measured.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cost: UnitCost,
    /// Milliseconds since the worker loaded its model. Of two models with the same name, the one that was loaded last is the
    /// newer, in whatever order their workers connect.
    #[serde(default, skip_serializing_if = "is_default")]
    pub age_ms: u64,
}

/// The time that the parts of a batch take the engine, in nanoseconds. The proxy starts from this estimate and then learns
/// from [`BatchCost`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnitCost {
    /// For each decode step, independent of its number of members.
    pub step_ns: u64,
    /// For each member in a decode step.
    pub member_ns: u64,
    /// For each prompt token that is fed in bulk.
    pub prompt_ns: u64,
}

/// The proxy's answer to HELLO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol version of the frames that follow.
    pub version: u8,
    /// The most members that the proxy will put into one batch. The worker can size its buffers by it.
    pub max_batch_size: u32,
}

/// Says why a connection ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    /// The reason, for the other side's program.
    pub reason: GoodbyeReason,
    /// A message for the other side's log.
    pub message: String,
}

/// Why a connection ends, for a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GoodbyeReason {
    /// The two ends have no protocol version in common.
    Version,
    /// The sender has finished its work and exits.
    Drained,
    /// The peer broke the protocol.
    Protocol,
    /// The sender failed.
    Internal,
    /// A reason that this build does not know.
    #[serde(other)]
    Other,
}

/// Prompts that a worker runs together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// Decoding options, which apply to every member.
    pub options: Options,
    /// The members: at least one, at most [`MAX_BATCH_MEMBERS`](crate::codec::MAX_BATCH_MEMBERS).
    pub members: Vec<Member>,
}

/// Decoding options. CTranslate2 takes them for a whole call, so only members with equal options can share a batch.
/// They are ordered in some way, so that they can be keys.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Options {
    /// The number of likeliest tokens to draw from; 1 is greedy, 0 is the whole vocabulary.
    pub sampling_topk: u32,
    /// Draw from the fewest tokens whose probabilities sum to this. Over 0, at most 1.
    #[serde(serialize_with = "finite", deserialize_with = "read_finite")]
    pub sampling_topp: f32,
    /// Over 0. A higher number makes the choice more random.
    #[serde(serialize_with = "finite", deserialize_with = "read_finite")]
    pub sampling_temperature: f32,
    /// Over 0. Above 1, tokens that were already produced become less likely.
    #[serde(serialize_with = "finite", deserialize_with = "read_finite")]
    pub repetition_penalty: f32,
    /// No sequence of this many tokens occurs twice; 0 allows all.
    pub no_repeat_ngram_size: u32,
}

impl Options {
    /// Whether these options look back over the output: the earlier tokens then change the choice of the next token not only
    /// through the model. The prompts of a call with such options must have equal lengths, because the engine counts prompt
    /// tokens that it feeds one at a time as output.
    #[allow(clippy::float_cmp, reason = "the neutral value is exact")]
    pub fn look_back(&self) -> bool {
        self.repetition_penalty != 1.0 || self.no_repeat_ngram_size != 0
    }

    /// All options, floating-point numbers as their bits, which are equal only if the numbers are the same.
    fn bits(&self) -> [u32; 5] {
        let Self { sampling_topk, sampling_topp, sampling_temperature, repetition_penalty, no_repeat_ngram_size } =
            self;
        let floats = [sampling_topp, sampling_temperature, repetition_penalty].map(|number| number.to_bits());
        [*sampling_topk, floats[0], floats[1], floats[2], *no_repeat_ngram_size]
    }
}

impl PartialEq for Options {
    fn eq(&self, other: &Self) -> bool {
        self.bits() == other.bits()
    }
}

impl Eq for Options {}

impl PartialOrd for Options {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Options {
    fn cmp(&self, other: &Self) -> Ordering {
        self.bits().cmp(&other.bits())
    }
}

impl Default for Options {
    /// Greedy decoding without penalties.
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

/// One prompt of a batch. A member can be resumed on another worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The prompt to continue.
    pub prompt: Prompt,
    /// The most tokens to produce, including `produced`; at least 1.
    pub max_new_tokens: u32,
    /// Whether the worker may lower `max_new_tokens`: to the positions and the memory that the prompt leaves, if it leaves
    /// any.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fit: bool,
    /// The answer does not end with an end-of-sequence token before it has this many tokens, including `produced`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub min_new_tokens: u32,
    /// Texts at which the answer ends. The text is removed from the answer. None is empty.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stop: Vec<String>,
    /// Token ids at which the answer ends, besides the model's own end tokens. They are not part of the answer.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stop_token_ids: Vec<u32>,
    /// Variables for a chat's template, besides the messages; empty for other prompts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub chat_template_kwargs: Map<String, Value>,
    /// Milliseconds from the sending of this frame to the member's deadline.
    pub deadline_ms: u64,
    /// Whether the worker should send TOKENS as soon as they are produced. If not, it may hold them back until the member
    /// ends.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stream: bool,
    /// Token ids that the member produced in earlier attempts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub produced: Vec<u32>,
    /// Bytes of the member's text that TOKENS of earlier attempts delivered.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sent: u64,
    /// The request's id in the proxy's log, for the worker's log; empty if the request belongs to no trace.
    #[serde(default, skip_serializing_if = "is_default")]
    pub request_id: String,
    /// The client's `traceparent`, for the worker's log; empty if the client sent none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub traceparent: String,
}

/// The fields of a [`Member`] except its prompt, in the same order, to be written as JSON.
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

/// The prompt of a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// A text, in which special tokens are plain text.
    Text(String),
    /// Token ids, used as they are.
    Ids(Vec<u32>),
    /// A chat, which the model's template turns into a text. Only a worker with [`Hello::chat`] gets one.
    Chat(Vec<Message>),
}

/// A message of a chat. Special tokens in it are plain text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The author: `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// The tokens and the text that one member has produced since its last TOKENS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberTokens {
    /// The member's number.
    pub member: MemberIndex,
    /// The new token ids; may be empty.
    pub ids: Vec<u32>,
    /// The new text. It may be empty, because text waits until a character, or a possible stop string, is complete.
    pub text: String,
}

/// A member that has finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberFinished {
    /// The member's number.
    pub member: MemberIndex,
    /// Why the member finished.
    pub reason: FinishReason,
    /// Tokens in its prompt.
    pub prompt_tokens: u32,
    /// Tokens that the member produced in all attempts, without an end-of-sequence token.
    pub completion_tokens: u32,
}

/// Why a member finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The answer reached an end-of-sequence token, a stop string or a stop token.
    Stop,
    /// The answer reached `max_new_tokens`.
    Length,
    /// The member's deadline passed.
    Deadline,
    /// The proxy sent CANCEL.
    Cancelled,
}

/// A member that has failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberFailed {
    /// The member's number.
    pub member: MemberIndex,
    /// The reason, for the proxy's program.
    pub code: FailureCode,
    /// A message for people: what was wrong, and what is allowed.
    pub message: String,
}

/// Why a member failed. The proxy maps each code to an answer of its own. No code reaches a client under this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The prompt has no tokens.
    EmptyPrompt,
    /// Prompt and `max_new_tokens` together exceed the model's positions, or the worker's memory.
    TooManyTokens,
    /// The model cannot take an option, a token id, a text or a chat of the request.
    InvalidRequest,
    /// A part of the member's text was sent, and its options allow no continuation; or the memory does not hold the tokens
    /// that would be fed again.
    NotResumable,
    /// The engine failed on this member alone.
    Engine,
    /// Something else in the worker failed on this member alone, for example its tokenizer.
    Internal,
    /// A failure that this build does not know.
    #[serde(other)]
    Other,
}

/// The time and the steps that a batch took the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchCost {
    /// Microseconds for which the engine was busy with the batch.
    pub engine_us: u64,
    /// Cohorts of the batch. Each one is an engine call.
    pub cohorts: u32,
    /// Decode steps of all cohorts together.
    pub steps: u64,
    /// The decode steps among these in which some member only fed its prompt.
    pub forced_steps: u64,
    /// Microseconds for which the engine that ran the batch was idle before it.
    #[serde(default)]
    pub idle_us: u64,
}

/// The engine's progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Decode steps since the worker started.
    pub steps: u64,
    /// Milliseconds for which the engine may go without a step from now on before it counts as stuck.
    pub silence_ms: u64,
}

fn is_empty<T>(values: &[T]) -> bool {
    values.is_empty()
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Writes a finite number and refuses others. JSON cannot express other numbers: serde would write `null`, and the peer
/// would close the connection.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn finite<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    if value.is_finite() { serializer.serialize_f32(*value) } else { Err(ser::Error::custom("a number is not finite")) }
}

/// Reads a number and refuses one that is too large for its type. Serde would read it as infinite, and an infinite number
/// could not be written again.
fn read_finite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    let value = f32::deserialize(deserializer)?;
    if value.is_finite() { Ok(value) } else { Err(de::Error::custom("a number is too large")) }
}
