//! The OpenAI API (`/v1/…`), as far as it goes: what is asked becomes the same calls as `/generate` makes, and the answers
//! are written in OpenAI's words.
//!
//! What an option of theirs means and this engine cannot do is refused by the option's name, never silently ignored; their
//! neutral values are taken, since clients send them unasked.

pub(super) mod chat;
pub(super) mod completions;
pub(super) mod models;
mod options;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pillion_protocol::frame::FinishReason;
use serde::Serialize;
use serde_json::Value;

use super::events;
use super::fields::{Fields, fault};
use super::response::{Api, ApiError};
use crate::batcher::Handle;
use crate::batcher::models::Model;
use crate::job::{Completion, End, ModelId};

/// What both kinds of completions say first.
#[derive(Clone, Debug, Serialize)]
struct Head {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
}

/// An answer, or a part of a streamed one.
#[derive(Debug, Serialize)]
struct Body<'a, C> {
    #[serde(flatten)]
    head: &'a Head,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "Told::is_not")]
    usage: Told,
}

/// Whether an answer's usage is told with it.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Told {
    /// Not at all.
    Not,
    /// With the last part.
    Later,
    Now(Usage),
}

impl Told {
    /// In a part that is not the last.
    fn later(include_usage: bool) -> Self {
        if include_usage { Self::Later } else { Self::Not }
    }

    fn is_not(&self) -> bool {
        matches!(self, Self::Not)
    }
}

/// Tokens, summed over the texts of a request.
#[allow(clippy::struct_field_names, reason = "they are OpenAI's")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

impl Usage {
    /// Of texts of which so many in a row have one prompt: it counts once.
    fn of<'a>(completions: impl Iterator<Item = (usize, &'a Completion)>, per_prompt: usize) -> Self {
        let mut usage = Self::default();
        for (text, completion) in completions {
            usage.add(text, completion, per_prompt);
        }
        usage
    }

    fn add(&mut self, text: usize, completion: &Completion, per_prompt: usize) {
        if text.is_multiple_of(per_prompt) {
            self.prompt_tokens += u64::from(completion.prompt_tokens);
        }
        self.completion_tokens += u64::from(completion.completion_tokens);
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// What a request says of its stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Streamed {
    stream: bool,
    include_usage: bool,
}

impl Streamed {
    fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let stream = fields.flag("stream")?.unwrap_or(false);
        let Some(options) = fields.take("stream_options") else { return Ok(Self { stream, include_usage: false }) };
        if !stream {
            return Err(fault("stream_options", "stream_options is only for requests with stream true"));
        }
        let Value::Object(options) = options else {
            return Err(fault("stream_options", "stream_options must be an object"));
        };
        let mut options = Fields::inner(options);
        let include_usage = options.flag("include_usage")?.unwrap_or(false);
        // It asks for padding against eavesdroppers, of which there is none here.
        options.flag("include_obfuscation")?;
        options.no_more()?;
        Ok(Self { stream, include_usage })
    }
}

/// The model that a request names: one that a worker has announced. While none has, any will be waited for.
fn model(fields: &mut Fields, handle: &Handle) -> Result<(String, Option<Model>), ApiError> {
    let name = match fields.take("model") {
        Some(Value::String(name)) => name,
        Some(_) => return Err(fault("model", "model must be a string")),
        None => return Err(fault("model", "model is missing; GET /v1/models lists what there is")),
    };
    match handle.model(&name) {
        Some(model) => Ok((name, Some(model))),
        None if handle.knows_no_model() => Ok((name, None)),
        None => Err(ApiError::NoModel { name }),
    }
}

fn id_of(model: Option<&Model>) -> ModelId {
    model.map_or(ModelId::ANY, |model| model.id)
}

/// OpenAI has no word for a deadline, nor for the other ends.
fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length | FinishReason::Deadline | FinishReason::Cancelled => "length",
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// All completions, or the first failure: there is no form for an answer of which a part has failed.
fn all(ends: &[End]) -> Result<Vec<&Completion>, ApiError> {
    ends.iter().map(|end| end.as_ref().map_err(|failure| failure.clone().into())).collect()
}

/// An error in a stream, as OpenAI's clients look for it.
fn failed(error: &ApiError, api: Api, request_id: &str, out: &mut Vec<u8>) {
    #[derive(Serialize)]
    struct Failed {
        error: super::response::ErrorBody,
    }
    events::write(out, None, &Failed { error: error.body(Some(request_id), api) });
}

/// The last of a stream.
fn done(out: &mut Vec<u8>) {
    out.extend(b"data: [DONE]\n\n");
}
