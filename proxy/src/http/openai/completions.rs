//! `POST /v1/completions`.

use std::sync::Arc;
use std::time::SystemTime;

use pillion_protocol::frame::Prompt;
use serde::Serialize;
use serde_json::Value;

use super::super::call::{Call, Shape};
use super::super::fields::{Fields, MOST_NEW_TOKENS, fault, kind, whole};
use super::super::response::{Api, ApiError, ok};
use super::super::{Answer, Limits, events};
use super::options::{Sampling, neutral, refuse_what_cannot_be_done, several};
use super::{Body, Head, Streamed, Told, Usage, all, done, failed, finish_reason, model, seconds};
use crate::batcher::Handle;
use crate::job::{Ask, Completion, End, prompt_bytes};

/// What OpenAI gives where nothing is said.
const DEFAULT_TOKENS: u32 = 16;

/// Reads and checks a body.
pub(in super::super) fn parse(body: &[u8], limits: &Limits, handle: &Handle, id: &str) -> Result<Call, ApiError> {
    let mut fields = Fields::of(body)?;
    let (name, model) = model(&mut fields, handle)?;
    let prompts = prompts(&mut fields, limits.texts)?;
    let given = fields.integer("max_tokens", 1, MOST_NEW_TOKENS)?;
    let Sampling { class, stop, min_tokens, n } = Sampling::read(&mut fields, model.as_ref(), given)?;
    // A limit that nobody gave refuses nothing: it gives way to the least, and to what the prompt leaves of the positions.
    let (max_new_tokens, fit) = (given.unwrap_or(DEFAULT_TOKENS.max(min_tokens)), given.is_none());
    let streamed = Streamed::read(&mut fields)?;
    let timeout = fields.timeout(limits.request_timeout)?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    let best = fields.integer("best_of", 1, u32::MAX)?;
    if best.is_some_and(|best| best as usize != n) {
        let why = "all answers are given, and none is chosen among more".to_owned();
        return Err(ApiError::Unsupported { param: "best_of".into(), why });
    }
    refuse_what_cannot_be_done(&mut fields)?;
    neutral(&mut fields, "suffix", "the engine continues texts, it does not fill in", |value| {
        value.as_str() == Some("")
    })?;
    fields.no_more()?;
    if prompts.len() * n > limits.texts {
        let message = format!("{} prompts with {n} answers each are more than {} texts", prompts.len(), limits.texts);
        return Err(fault("n", message));
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
    let ask = |prompt: &Prompt| {
        let (prompt, stop, chat_template_kwargs) = (prompt.clone(), stop.clone(), Arc::default());
        Ask { prompt, class, max_new_tokens, fit, stop, chat_template_kwargs }
    };
    let asks = prompts.iter().flat_map(|prompt| std::iter::repeat_with(|| ask(prompt)).take(n)).collect();
    let head =
        Head { id: format!("cmpl-{id}"), object: "text_completion", created: seconds(SystemTime::now()), model: name };
    let begun = vec![false; prompts.len() * n];
    let shape = Completions { head, n, echo, begun, include_usage: streamed.include_usage, usage: Usage::default() };
    Ok(Call { asks, timeout, stream: streamed.stream, shape: Box::new(shape) })
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
        None => return Err(fault("prompt", format!("prompt is missing: {WHAT}"))),
        Some(Value::String(text)) => return Ok(vec![one_text(text)?]),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(fault("prompt", format!("prompt must be {WHAT}, not {}", kind(&other)))),
    };
    match items.first() {
        None => return Err(fault("prompt", "prompt must not be empty")),
        Some(Value::Number(_)) => return Ok(vec![one_of_ids(&items)?]),
        _ if items.len() > most => {
            return Err(fault("prompt", format!("prompt must hold at most {most} prompts, not {}", items.len())));
        }
        _ => {}
    }
    let prompts = items.into_iter().map(|item| match item {
        Value::String(text) => one_text(text),
        Value::Array(ids) => one_of_ids(&ids),
        other => Err(fault("prompt", format!("prompt must be {WHAT}, and holds {}", kind(&other)))),
    });
    prompts.collect()
}

fn one_text(text: String) -> Result<Prompt, ApiError> {
    if text.is_empty() { Err(fault("prompt", "a prompt must not be empty")) } else { Ok(Prompt::Text(text)) }
}

fn one_of_ids(items: &[Value]) -> Result<Prompt, ApiError> {
    match items.iter().map(whole).collect::<Option<Vec<u32>>>() {
        Some(ids) if ids.is_empty() => Err(fault("prompt", "a prompt must not be empty")),
        Some(ids) => Ok(Prompt::Ids(ids)),
        None => Err(fault("prompt", "token ids must be whole numbers from 0 to 4294967295")),
    }
}

/// How the answers are written.
#[derive(Debug)]
struct Completions {
    head: Head,
    n: usize,
    /// The prompts, where the answers are to begin with them.
    echo: Option<Vec<String>>,
    /// By text, whether something was said.
    begun: Vec<bool>,
    include_usage: bool,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct Choice<'a> {
    text: std::borrow::Cow<'a, str>,
    index: usize,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

impl Completions {
    fn prompt(&self, text: usize) -> &str {
        self.echo.as_ref().and_then(|prompts| prompts.get(text / self.n)).map_or("", String::as_str)
    }
}

impl Shape for Completions {
    fn whole(&self, ends: &[End]) -> Result<Answer, ApiError> {
        let completions = all(ends)?;
        let choices = completions.iter().enumerate().map(|(index, completion)| Choice {
            text: match self.prompt(index) {
                "" => completion.text.as_str().into(),
                prompt => format!("{prompt}{}", completion.text).into(),
            },
            index,
            logprobs: None,
            finish_reason: Some(finish_reason(completion.reason)),
        });
        let choices = choices.collect();
        let usage = Usage::of(completions.iter().copied().enumerate(), self.n);
        Ok(ok(&Body { head: &self.head, choices, usage: Told::Now(usage) }))
    }

    fn news(&mut self, text: usize, piece: &str, end: Option<&Completion>, out: &mut Vec<u8>) {
        if let Some(completion) = end {
            self.usage.add(text, completion, self.n);
        }
        let begun = self.begun.get_mut(text).is_some_and(|begun| std::mem::replace(begun, true));
        let said = match self.prompt(text) {
            prompt if !begun && !prompt.is_empty() => format!("{prompt}{piece}").into(),
            _ => piece.into(),
        };
        let finish_reason = end.map(|completion| finish_reason(completion.reason));
        let choice = Choice { text: said, index: text, logprobs: None, finish_reason };
        let usage = Told::later(self.include_usage);
        events::write(out, None, &Body { head: &self.head, choices: vec![choice], usage });
    }

    fn failed(&mut self, _text: usize, error: ApiError, api: Api, request_id: &str, out: &mut Vec<u8>) {
        failed(&error, api, request_id, out);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.include_usage {
            events::write(
                out,
                None,
                &Body { head: &self.head, choices: Vec::<Choice<'_>>::new(), usage: Told::Now(self.usage) },
            );
        }
        done(out);
    }
}
