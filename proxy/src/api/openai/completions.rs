//! `POST /v1/completions`.

use std::borrow::Cow;
use std::sync::Arc;

use pillion_protocol::frame::Prompt;
use serde::Serialize;
use serde_json::value::RawValue;

use super::common::{Answer, Head, StreamOptions, finish_reason, model, unix_seconds};
use super::options::{Sampling, Unsupported, check_prompt_bytes, refuse_others};
use crate::api::call::{Call, ParseContext, Renderer};
use crate::api::error::{ApiError, FieldNames};
use crate::api::fields::{Fields, MAX_NEW_TOKENS, Whole, field_error, is_list, missing, string, typed};
use crate::domain::{Completion, GenerationRequest, Outcome, prompt_bytes};

/// OpenAI's field names for the prompt and the most new tokens.
pub(super) const FIELDS: FieldNames = FieldNames { prompt: "prompt", max_tokens: "max_tokens" };
/// OpenAI's default limit of an answer, in tokens.
const DEFAULT_TOKENS: u32 = 16;
/// The option that only completions have, and that the engine does not support.
const SUFFIX: Unsupported = ("suffix", |value| value == "", "the engine continues texts and cannot fill gaps");

/// Parses and validates a body.
pub(super) fn parse(body: &[u8], context: &ParseContext<'_>) -> Result<Call, ApiError> {
    let limits = context.limits;
    let mut fields = Fields::parse(body)?;
    let (name, model) = model(&mut fields, context.models)?;
    let prompts = prompts(&mut fields, limits.texts)?;
    let given = fields.integer("max_tokens", 1, MAX_NEW_TOKENS)?;
    let Sampling { key, stop, n } = Sampling::read(&mut fields, model, given)?;
    let stream_options = StreamOptions::read(&mut fields)?;
    let timeout = fields.timeout(limits.request_timeout)?;
    let echo = fields.boolean("echo")?.unwrap_or(false);
    let best = fields.integer("best_of", 1, u32::MAX)?;
    if best.is_some_and(|best| best as usize != n) {
        let why = "it must be equal to n, since all answers are returned".to_owned();
        return Err(ApiError::Unsupported { param: "best_of".into(), why });
    }
    refuse_others(fields, &[SUFFIX])?;
    if prompts.len() * n > limits.texts {
        let message =
            format!("{} prompts with {n} answers each exceed the limit of {} answers", prompts.len(), limits.texts);
        return Err(field_error("n", message));
    }
    check_prompt_bytes(n, prompts.iter().map(prompt_bytes).sum(), limits)?;
    let text = |prompt: &Prompt| if let Prompt::Text(text) = prompt { Some(text.clone()) } else { None };
    let echo = match (echo, prompts.iter().map(text).collect::<Option<Vec<_>>>()) {
        (false, _) => None,
        (true, Some(texts)) => Some(texts),
        (true, None) => {
            let why = "a prompt of token ids cannot be echoed as text".to_owned();
            return Err(ApiError::Unsupported { param: "echo".into(), why });
        }
    };
    let request = |prompt: &Prompt| GenerationRequest {
        prompt: prompt.clone(),
        key,
        max_new_tokens: given.unwrap_or(DEFAULT_TOKENS.max(key.min_new_tokens)),
        // Without a limit of the request's own, the worker may lower the default to the positions that the prompt leaves.
        fit: given.is_none(),
        stop: stop.clone(),
        chat_template_kwargs: Arc::default(),
    };
    let requests = prompts.iter().flat_map(|prompt| std::iter::repeat_with(|| request(prompt)).take(n)).collect();
    let (id, created) = (format!("cmpl-{}", context.request_id), unix_seconds((context.clock)()));
    let head = Head { id, object: "text_completion", created, model: name };
    let begun = vec![false; prompts.len() * n];
    let renderer = Box::new(Completions { answer: Answer::new(head, n, FIELDS, stream_options), echo, begun });
    Ok(Call { requests, timeout, stream: stream_options.stream, renderer })
}

/// Takes `prompt`: a text, a list of texts, the token ids of one prompt, or a list of such lists.
fn prompts(fields: &mut Fields<'_>, most: usize) -> Result<Vec<Prompt>, ApiError> {
    const TYPES: &str = "a string, a list of strings, a list of token ids or a list of lists of token ids";
    let raw = fields.take("prompt").ok_or_else(|| missing("prompt", TYPES))?;
    let prompt = |raw: &RawValue| {
        if is_list(raw) {
            let ids: Vec<Whole> = typed("prompt", raw, TYPES)?;
            return Ok(Prompt::Ids(ids.into_iter().map(|Whole(id)| id).collect()));
        }
        string("prompt", raw, TYPES).map(Prompt::Text)
    };
    let prompts = if is_list(raw) && raw.get()[1..].trim_ascii_start().starts_with(['"', '[']) {
        let items: Vec<&RawValue> = typed("prompt", raw, TYPES)?;
        if items.len() > most {
            return Err(field_error("prompt", format!("prompt must hold at most {most} prompts, not {}", items.len())));
        }
        items.into_iter().map(prompt).collect::<Result<_, _>>()?
    } else {
        vec![prompt(raw)?]
    };
    if prompts.iter().any(|prompt| prompt_bytes(prompt) == 0) {
        return Err(field_error("prompt", "a prompt must not be empty"));
    }
    Ok(prompts)
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
