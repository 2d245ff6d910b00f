//! `POST /v1/completions`.

use std::borrow::Cow;
use std::sync::Arc;

use pillion_protocol::frame::Prompt;
use serde::Serialize;
use serde_json::Value;

use super::common::{Answer, Head, StreamOptions, finish_reason, model, unix_seconds};
use super::options::{Sampling, allow_neutral, check_prompt_bytes, refuse_unsupported};
use crate::api::call::{Call, ParseContext, Renderer};
use crate::api::error::{ApiError, FieldNames};
use crate::api::fields::{Fields, MAX_NEW_TOKENS, as_u32, field_error, kind};
use crate::domain::{Completion, GenerationRequest, Outcome, prompt_bytes};

/// OpenAI's field names for the prompt and the most new tokens.
pub(super) const FIELDS: FieldNames = FieldNames { prompt: "prompt", max_tokens: "max_tokens" };
/// OpenAI's default limit of an answer, in tokens.
const DEFAULT_TOKENS: u32 = 16;

/// Parses and validates a body.
pub(super) fn parse(body: &[u8], context: &ParseContext<'_>) -> Result<Call, ApiError> {
    let limits = context.limits;
    let mut fields = Fields::parse(body)?;
    let (name, model) = model(&mut fields, context.models)?;
    let prompts = prompts(&mut fields, limits.texts)?;
    let given = fields.integer("max_tokens", 1, MAX_NEW_TOKENS)?;
    let Sampling { key, stop, min_tokens, n } = Sampling::read(&mut fields, model, given)?;
    // Without `max_tokens`, the limit is the default, or `min_tokens` if that is larger. `fit` lets the worker lower this
    // limit to the positions that the prompt leaves, so that it never refuses the request because of the limit.
    let (max_new_tokens, fit) = (given.unwrap_or(DEFAULT_TOKENS.max(min_tokens)), given.is_none());
    let stream_options = StreamOptions::read(&mut fields)?;
    let timeout = fields.timeout(limits.request_timeout)?;
    let echo = fields.boolean("echo")?.unwrap_or(false);
    let best = fields.integer("best_of", 1, u32::MAX)?;
    if best.is_some_and(|best| best as usize != n) {
        let why = "it must be equal to n, since all answers are returned".to_owned();
        return Err(ApiError::Unsupported { param: "best_of".into(), why });
    }
    refuse_unsupported(&mut fields)?;
    allow_neutral(&mut fields, "suffix", "the engine continues texts and cannot fill gaps", |value| {
        value.as_str() == Some("")
    })?;
    fields.refuse_unknown()?;
    if prompts.len() * n > limits.texts {
        let message =
            format!("{} prompts with {n} answers each exceed the limit of {} answers", prompts.len(), limits.texts);
        return Err(field_error("n", message));
    }
    check_prompt_bytes(n, prompts.iter().map(prompt_bytes).sum(), limits)?;
    let echo = match (echo, prompts.iter().map(prompt_text).collect::<Option<Vec<_>>>()) {
        (false, _) => None,
        (true, Some(texts)) => Some(texts),
        (true, None) => {
            let why = "a prompt of token ids cannot be echoed as text".to_owned();
            return Err(ApiError::Unsupported { param: "echo".into(), why });
        }
    };
    let request = |prompt: &Prompt| {
        let (prompt, stop, chat_template_kwargs) = (prompt.clone(), stop.clone(), Arc::default());
        GenerationRequest { prompt, key, max_new_tokens, fit, stop, chat_template_kwargs }
    };
    let requests = prompts.iter().flat_map(|prompt| std::iter::repeat_with(|| request(prompt)).take(n)).collect();
    let (id, created) = (format!("cmpl-{}", context.request_id), unix_seconds(context.now));
    let head = Head { id, object: "text_completion", created, model: name };
    let begun = vec![false; prompts.len() * n];
    let renderer = Box::new(Completions { answer: Answer::new(head, n, FIELDS, stream_options), echo, begun });
    Ok(Call { requests, timeout, stream: stream_options.stream, renderer })
}

fn prompt_text(prompt: &Prompt) -> Option<String> {
    match prompt {
        Prompt::Text(text) => Some(text.clone()),
        _ => None,
    }
}

/// Takes `prompt`: a text, a list of texts, the token ids of one prompt, or a list of such lists.
fn prompts(fields: &mut Fields, most: usize) -> Result<Vec<Prompt>, ApiError> {
    const TYPES: &str = "a string, a list of strings, a list of token ids or a list of lists of token ids";
    let items = match fields.take("prompt") {
        None => return Err(field_error("prompt", format!("prompt is missing; it must be {TYPES}"))),
        Some(Value::String(text)) => return Ok(vec![text_prompt(text)?]),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(field_error("prompt", format!("prompt must be {TYPES}, not {}", kind(&other)))),
    };
    match items.first() {
        None => return Err(field_error("prompt", "prompt must not be empty")),
        Some(Value::Number(_)) => return Ok(vec![ids_prompt(&items)?]),
        _ if items.len() > most => {
            return Err(field_error("prompt", format!("prompt must hold at most {most} prompts, not {}", items.len())));
        }
        _ => {}
    }
    let prompts = items.into_iter().map(|item| match item {
        Value::String(text) => text_prompt(text),
        Value::Array(ids) => ids_prompt(&ids),
        other => Err(field_error("prompt", format!("prompt must be {TYPES}, but it holds {}", kind(&other)))),
    });
    prompts.collect()
}

fn text_prompt(text: String) -> Result<Prompt, ApiError> {
    if text.is_empty() { Err(field_error("prompt", "a prompt must not be empty")) } else { Ok(Prompt::Text(text)) }
}

fn ids_prompt(items: &[Value]) -> Result<Prompt, ApiError> {
    match items.iter().map(as_u32).collect::<Option<Vec<u32>>>() {
        Some(ids) if ids.is_empty() => Err(field_error("prompt", "a prompt must not be empty")),
        Some(ids) => Ok(Prompt::Ids(ids)),
        None => Err(field_error("prompt", "token ids must be whole numbers from 0 to 4294967295")),
    }
}

/// Writes the answers.
#[derive(Debug)]
struct Completions {
    answer: Answer,
    /// The prompts, if each answer begins with its prompt.
    echo: Option<Vec<String>>,
    /// For each text, whether a piece of its answer was written.
    begun: Vec<bool>,
}

#[derive(Debug, Serialize)]
struct Choice<'a> {
    text: Cow<'a, str>,
    index: usize,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

impl Completions {
    /// The first piece of a text's answer, after the prompt if that is echoed.
    fn echoed<'a>(&self, text: usize, piece: &'a str) -> Cow<'a, str> {
        match self.echo.as_ref().and_then(|prompts| prompts.get(text / self.answer.n)) {
            Some(prompt) => format!("{prompt}{piece}").into(),
            None => piece.into(),
        }
    }
}

impl Renderer for Completions {
    fn whole(&self, outcomes: &[Outcome]) -> Result<Vec<u8>, ApiError> {
        self.answer.whole(outcomes, |index, completion| {
            let finish_reason = Some(finish_reason(completion.reason));
            Choice { text: self.echoed(index, &completion.text), index, logprobs: None, finish_reason }
        })
    }

    fn piece(&mut self, text: usize, piece: &str, completion: Option<&Completion>, out: &mut Vec<u8>) {
        if let Some(completion) = completion {
            self.answer.count(text, completion);
        }
        let begun = self.begun.get_mut(text).is_some_and(|begun| std::mem::replace(begun, true));
        let piece = if begun { piece.into() } else { self.echoed(text, piece) };
        let finish_reason = completion.map(|completion| finish_reason(completion.reason));
        self.answer.event(Choice { text: piece, index: text, logprobs: None, finish_reason }, out);
    }

    fn failed(&mut self, _text: usize, error: ApiError, request_id: &str, out: &mut Vec<u8>) {
        self.answer.failed(&error, request_id, out);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.answer.end(out);
    }
}
