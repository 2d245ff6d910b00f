//! What completions and chat completions have in common.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pillion_protocol::frame::FinishReason;
use serde::Serialize;

use crate::api::error::{ApiError, ErrorBody, FieldNames};
use crate::api::fields::{Fields, field_error, missing};
use crate::api::write;
use crate::domain::{Completion, Outcome};
use crate::scheduler::models::{Model, Models};

/// The first fields of an answer, or of an event of a streamed answer.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Head {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: String,
}

/// An answer, or an event of a streamed answer.
#[derive(Debug, Serialize)]
struct Body<'a, C> {
    #[serde(flatten)]
    head: &'a Head,
    choices: Vec<C>,
    /// `null` in an event before the last, which has the usage.
    #[allow(clippy::option_option, reason = "absent, `null` or a value")]
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
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
    /// Adds an answer to this prompt. A prompt with several answers counts once, with the first that ends. If the proxy ends an
    /// answer for a worker that is late, it does not know the prompt's tokens, and another answer may.
    fn add(&mut self, completion: &Completion, prompt: usize, counted: &mut BTreeSet<usize>) {
        if completion.prompt_tokens > 0 && counted.insert(prompt) {
            self.prompt_tokens += u64::from(completion.prompt_tokens);
        }
        self.completion_tokens += u64::from(completion.completion_tokens);
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// What the renderers of both endpoints have in common.
#[derive(Debug)]
pub(super) struct Answer {
    pub head: Head,
    /// Answers to each prompt.
    pub n: usize,
    pub fields: FieldNames,
    include_usage: bool,
    usage: Usage,
    /// The prompts whose tokens are in the usage.
    counted: BTreeSet<usize>,
}

impl Answer {
    pub(super) fn new(head: Head, n: usize, fields: FieldNames, stream_options: StreamOptions) -> Self {
        let (include_usage, usage, counted) = (stream_options.include_usage, Usage::default(), BTreeSet::new());
        Self { head, n, fields, include_usage, usage, counted }
    }

    /// The whole answer. One failed text fails the request, since OpenAI's format has no place for the error of one text.
    pub(super) fn whole<'a, C: Serialize>(
        &self,
        outcomes: &'a [Outcome],
        choice: impl Fn(usize, &'a Completion) -> C,
    ) -> Result<Vec<u8>, ApiError> {
        let (mut usage, mut counted) = (Usage::default(), BTreeSet::new());
        let mut choices = Vec::with_capacity(outcomes.len());
        for (text, outcome) in outcomes.iter().enumerate() {
            let completion = outcome.as_ref().map_err(Clone::clone)?;
            usage.add(completion, text / self.n, &mut counted);
            choices.push(choice(text, completion));
        }
        Ok(write::json(&Body { head: &self.head, choices, usage: Some(Some(usage)) }))
    }

    /// Adds a streamed text that has ended to the usage.
    pub(super) fn count(&mut self, text: usize, completion: &Completion) {
        self.usage.add(completion, text / self.n, &mut self.counted);
    }

    /// Appends the event for a change of one choice.
    pub(super) fn event(&self, choice: impl Serialize, out: &mut Vec<u8>) {
        let (choices, usage) = (vec![choice], self.include_usage.then_some(None));
        write::event(out, None, &Body { head: &self.head, choices, usage });
    }

    /// Appends an error, in the form that OpenAI's clients expect in a stream.
    pub(super) fn failed(&self, error: &ApiError, request_id: &str, out: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Failed {
            error: ErrorBody,
        }
        write::event(out, None, &Failed { error: error.body(Some(request_id), self.fields) });
    }

    /// Appends the usage, if the request asks for it, and the end of the stream.
    pub(super) fn end(&self, out: &mut Vec<u8>) {
        if self.include_usage {
            let (choices, usage) = (Vec::<()>::new(), Some(Some(self.usage)));
            write::event(out, None, &Body { head: &self.head, choices, usage });
        }
        out.extend(b"data: [DONE]\n\n");
    }
}

/// The request's fields `stream` and `stream_options`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StreamOptions {
    pub stream: bool,
    include_usage: bool,
}

impl StreamOptions {
    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, ApiError> {
        const NAME: &str = "stream_options";
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let Some(options) = fields.take(NAME) else { return Ok(Self { stream, include_usage: false }) };
        if !stream {
            return Err(field_error(NAME, "stream_options is allowed only if stream is true"));
        }
        let mut options = Fields::of_object(NAME, options)?;
        let include_usage = options.boolean("include_usage")?.unwrap_or(false);
        // Accepted and ignored: it asks for padding that hides the length of events from eavesdroppers.
        options.boolean("include_obfuscation")?;
        options.refuse_unknown()?;
        Ok(Self { stream, include_usage })
    }
}

/// The model that a request names, if a worker has announced it. Until any model is announced, every name is accepted.
pub(super) fn model<'a>(fields: &mut Fields<'_>, models: &'a Models) -> Result<(String, Option<&'a Model>), ApiError> {
    let name: Option<String> = fields.read("model", "a string")?;
    let name = name.ok_or_else(|| missing("model", "a string; GET /v1/models lists the models"))?;
    match models.named(&name) {
        None if !models.is_empty() => Err(ApiError::NoModel { name }),
        model => Ok((name, model)),
    }
}

/// The finish reason. OpenAI's format has none for a deadline or a cancellation, so both become `length`.
pub(super) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length | FinishReason::Deadline | FinishReason::Cancelled => "length",
    }
}

/// Seconds since the Unix epoch.
pub(super) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_counts_once_with_the_first_answer_that_knows_its_tokens() {
        let answer = |prompt_tokens| Completion {
            text: String::new(),
            reason: FinishReason::Stop,
            prompt_tokens,
            completion_tokens: 2,
            first_token_at: None,
            dispatch: None,
        };
        // Two prompts with three answers each. The first answer to each has failed, and the proxy has ended the second.
        let (mut usage, mut counted) = (Usage::default(), BTreeSet::new());
        for (text, prompt_tokens) in [(1, 0), (4, 0), (5, 7), (2, 5)] {
            usage.add(&answer(prompt_tokens), text / 3, &mut counted);
        }
        assert_eq!(usage, Usage { prompt_tokens: 12, completion_tokens: 8, total_tokens: 20 });
    }
}
