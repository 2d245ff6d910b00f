//! What both kinds of completions have in common.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pillion_protocol::frame::FinishReason;
use serde::Serialize;
use serde_json::Value;

use crate::api::error::{ApiError, ErrorBody, FieldNames};
use crate::api::fields::{Fields, field_error};
use crate::api::write;
use crate::domain::{Completion, ModelId, Outcome};
use crate::scheduler::models::{Model, Models};

/// What an answer, or a part of a streamed one, says first.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Head {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: String,
}

/// An answer, or a part of a streamed one.
#[derive(Debug, Serialize)]
struct Body<'a, C> {
    #[serde(flatten)]
    head: &'a Head,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "UsageField::is_absent")]
    usage: UsageField,
}

/// The field `usage` of a body.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(untagged)]
enum UsageField {
    Absent,
    /// `null`: it comes with the last part.
    Later,
    Now(Usage),
}

impl UsageField {
    fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
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
    /// Adds a text; with several answers to one prompt, `is_first` says whether it is the first of them: the prompt counts
    /// once.
    fn add(&mut self, completion: &Completion, is_first: bool) {
        if is_first {
            self.prompt_tokens += u64::from(completion.prompt_tokens);
        }
        self.completion_tokens += u64::from(completion.completion_tokens);
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// What the renderers of both have in common.
#[derive(Debug)]
pub(super) struct Answer {
    pub head: Head,
    /// Answers to each prompt.
    pub n: usize,
    pub fields: FieldNames,
    include_usage: bool,
    usage: Usage,
}

impl Answer {
    pub(super) fn new(head: Head, n: usize, fields: FieldNames, streamed: Streamed) -> Self {
        Self { head, n, fields, include_usage: streamed.include_usage, usage: Usage::default() }
    }

    /// The whole answer. It is an error if one text failed: there is no form for an answer of which a part has failed.
    pub(super) fn whole<'a, C: Serialize>(
        &self,
        outcomes: &'a [Outcome],
        choice: impl Fn(usize, &'a Completion) -> C,
    ) -> Result<Vec<u8>, ApiError> {
        let mut usage = Usage::default();
        let mut choices = Vec::with_capacity(outcomes.len());
        for (text, outcome) in outcomes.iter().enumerate() {
            let completion = outcome.as_ref().map_err(Clone::clone)?;
            usage.add(completion, text.is_multiple_of(self.n));
            choices.push(choice(text, completion));
        }
        Ok(write::json(&Body { head: &self.head, choices, usage: UsageField::Now(usage) }))
    }

    /// Counts a text of a stream that has ended.
    pub(super) fn count(&mut self, text: usize, completion: &Completion) {
        self.usage.add(completion, text.is_multiple_of(self.n));
    }

    /// Appends the event for a change of one choice.
    pub(super) fn event(&self, choice: impl Serialize, out: &mut Vec<u8>) {
        let usage = if self.include_usage { UsageField::Later } else { UsageField::Absent };
        write::event(out, None, &Body { head: &self.head, choices: vec![choice], usage });
    }

    /// Appends an error, as OpenAI's clients look for it in a stream.
    pub(super) fn failed(&self, error: &ApiError, request_id: &str, out: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Failed {
            error: ErrorBody,
        }
        write::event(out, None, &Failed { error: error.body(Some(request_id), self.fields) });
    }

    /// Appends what ends a stream.
    pub(super) fn end(&self, out: &mut Vec<u8>) {
        if self.include_usage {
            let (choices, usage) = (Vec::<()>::new(), UsageField::Now(self.usage));
            write::event(out, None, &Body { head: &self.head, choices, usage });
        }
        out.extend(b"data: [DONE]\n\n");
    }
}

/// What a request says of its stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Streamed {
    pub stream: bool,
    include_usage: bool,
}

impl Streamed {
    pub(super) fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let stream = fields.flag("stream")?.unwrap_or(false);
        let Some(options) = fields.take("stream_options") else { return Ok(Self { stream, include_usage: false }) };
        if !stream {
            return Err(field_error("stream_options", "stream_options is only for requests with stream true"));
        }
        let Value::Object(options) = options else {
            return Err(field_error("stream_options", "stream_options must be an object"));
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
pub(super) fn model<'a>(fields: &mut Fields, models: &'a Models) -> Result<(String, Option<&'a Model>), ApiError> {
    let name = match fields.take("model") {
        Some(Value::String(name)) => name,
        Some(_) => return Err(field_error("model", "model must be a string")),
        None => return Err(field_error("model", "model is missing; GET /v1/models lists what there is")),
    };
    match models.named(&name) {
        None if !models.is_empty() => Err(ApiError::NoModel { name }),
        model => Ok((name, model)),
    }
}

pub(super) fn id_of(model: Option<&Model>) -> ModelId {
    model.map_or(ModelId::ANY, |model| model.id)
}

/// OpenAI has no word for a deadline, nor for the other ends.
pub(super) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length | FinishReason::Deadline | FinishReason::Cancelled => "length",
    }
}

/// Seconds since 1970.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
