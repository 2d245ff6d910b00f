//! `POST /v1/completions`.

use std::borrow::Cow;
use std::sync::Arc;

use pillion_protocol::frame::Prompt;
use serde::Serialize;
use serde_json::Value;

use super::common::{Answer, Head, Streamed, finish_reason, model, seconds};
use super::options::{Sampling, neutral, refuse_unsupported, several};
use crate::api::call::{Call, ParseContext, Renderer};
use crate::api::error::{ApiError, FieldNames};
use crate::api::fields::{Fields, MOST_NEW_TOKENS, field_error, kind, whole};
use crate::domain::{Completion, GenerationRequest, Outcome, prompt_bytes};

/// OpenAI's words for the prompt and for the most new tokens.
pub(super) const FIELDS: FieldNames = FieldNames { prompt: "prompt", max_tokens: "max_tokens" };
/// What OpenAI gives where nothing is said.
const DEFAULT_TOKENS: u32 = 16;

/// Reads and checks a body.
pub(super) fn parse(body: &[u8], context: &ParseContext<'_>) -> Result<Call, ApiError> {
    let limits = context.limits;
    let mut fields = Fields::of(body)?;
    let (name, model) = model(&mut fields, context.models)?;
    let prompts = prompts(&mut fields, limits.texts)?;
    let given = fields.integer("max_tokens", 1, MOST_NEW_TOKENS)?;
    let Sampling { key, stop, min_tokens, n } = Sampling::read(&mut fields, model, given)?;
    // A default limit refuses nothing: it gives way to min_tokens, and to what the prompt leaves of the positions.
    let (max_new_tokens, fit) = (given.unwrap_or(DEFAULT_TOKENS.max(min_tokens)), given.is_none());
    let streamed = Streamed::read(&mut fields)?;
    let timeout = fields.timeout(limits.request_timeout)?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    let best = fields.integer("best_of", 1, u32::MAX)?;
    if best.is_some_and(|best| best as usize != n) {
        let why = "all answers are given, and none is chosen among more".to_owned();
        return Err(ApiError::Unsupported { param: "best_of".into(), why });
    }
    refuse_unsupported(&mut fields)?;
    neutral(&mut fields, "suffix", "the engine continues texts, it does not fill in", |value| {
        value.as_str() == Some("")
    })?;
    fields.no_more()?;
    if prompts.len() * n > limits.texts {
        let message = format!("{} prompts with {n} answers each are more than {} texts", prompts.len(), limits.texts);
        return Err(field_error("n", message));
    }
    several(n, prompts.iter().map(prompt_bytes).sum(), limits)?;
    let echo = match (echo, prompts.iter().map(text).collect::<Option<Vec<_>>>()) {
        (false, _) => None,
        (true, Some(texts)) => Some(texts),
        (true, None) => {
            let why = "a prompt of token ids is not turned into a text".to_owned();
            return Err(ApiError::Unsupported { param: "echo".into(), why });
        }
    };
    let request = |prompt: &Prompt| {
        let (prompt, stop, chat_template_kwargs) = (prompt.clone(), stop.clone(), Arc::default());
        GenerationRequest { prompt, key, max_new_tokens, fit, stop, chat_template_kwargs }
    };
    let requests = prompts.iter().flat_map(|prompt| std::iter::repeat_with(|| request(prompt)).take(n)).collect();
    let (id, created) = (format!("cmpl-{}", context.request_id), seconds(context.now));
    let head = Head { id, object: "text_completion", created, model: name };
    let begun = vec![false; prompts.len() * n];
    let renderer = Box::new(Completions { answer: Answer::new(head, n, FIELDS, streamed), echo, begun });
    Ok(Call { requests, timeout, stream: streamed.stream, renderer })
}

fn text(prompt: &Prompt) -> Option<String> {
    match prompt {
        Prompt::Text(text) => Some(text.clone()),
        _ => None,
    }
}

/// A text, texts, the token ids of one prompt, or those of several.
fn prompts(fields: &mut Fields, most: usize) -> Result<Vec<Prompt>, ApiError> {
    const WHAT: &str = "a string, a list of strings, a list of token ids or a list of lists of token ids";
    let items = match fields.take("prompt") {
        None => return Err(field_error("prompt", format!("prompt is missing: {WHAT}"))),
        Some(Value::String(text)) => return Ok(vec![one_text(text)?]),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(field_error("prompt", format!("prompt must be {WHAT}, not {}", kind(&other)))),
    };
    match items.first() {
        None => return Err(field_error("prompt", "prompt must not be empty")),
        Some(Value::Number(_)) => return Ok(vec![one_of_ids(&items)?]),
        _ if items.len() > most => {
            return Err(field_error("prompt", format!("prompt must hold at most {most} prompts, not {}", items.len())));
        }
        _ => {}
    }
    let prompts = items.into_iter().map(|item| match item {
        Value::String(text) => one_text(text),
        Value::Array(ids) => one_of_ids(&ids),
        other => Err(field_error("prompt", format!("prompt must be {WHAT}, and holds {}", kind(&other)))),
    });
    prompts.collect()
}

fn one_text(text: String) -> Result<Prompt, ApiError> {
    if text.is_empty() { Err(field_error("prompt", "a prompt must not be empty")) } else { Ok(Prompt::Text(text)) }
}

fn one_of_ids(items: &[Value]) -> Result<Prompt, ApiError> {
    match items.iter().map(whole).collect::<Option<Vec<u32>>>() {
        Some(ids) if ids.is_empty() => Err(field_error("prompt", "a prompt must not be empty")),
        Some(ids) => Ok(Prompt::Ids(ids)),
        None => Err(field_error("prompt", "token ids must be whole numbers from 0 to 4294967295")),
    }
}

/// How the answers are written.
#[derive(Debug)]
struct Completions {
    answer: Answer,
    /// The prompts, if the answers are to begin with them.
    echo: Option<Vec<String>>,
    /// By text, whether a piece was written.
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
    /// The first piece of a text's answer, behind its prompt if that is echoed.
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
        let said = if begun { piece.into() } else { self.echoed(text, piece) };
        let finish_reason = completion.map(|completion| finish_reason(completion.reason));
        self.answer.event(Choice { text: said, index: text, logprobs: None, finish_reason }, out);
    }

    fn failed(&mut self, _text: usize, error: ApiError, request_id: &str, out: &mut Vec<u8>) {
        self.answer.failed(&error, request_id, out);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.answer.end(out);
    }
}
