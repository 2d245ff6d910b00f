//! `POST /v1/chat/completions`.

use std::sync::Arc;

use pillion_protocol::frame::{Message, Prompt};
use serde::Serialize;
use serde_json::Value;

use super::common::{Answer, Head, Streamed, finish_reason, model, seconds};
use super::options::{Sampling, neutral, refuse_unsupported, several};
use crate::api::call::{Call, ParseContext, Renderer};
use crate::api::error::{ApiError, FieldNames};
use crate::api::fields::{Fields, MOST_NEW_TOKENS, field_error, kind};
use crate::domain::{Completion, GenerationRequest, Outcome, TemplateKwargs, prompt_bytes};
use crate::scheduler::models::Model;

/// OpenAI's words for the prompt and for the most new tokens.
pub(super) const FIELDS: FieldNames = FieldNames { prompt: "messages", max_tokens: "max_completion_tokens" };
/// The most messages of a chat.
const MOST_MESSAGES: usize = 4096;
/// The most bytes of `chat_template_kwargs`, as JSON.
const MOST_KWARGS: usize = 64 * 1024;
/// The most levels of a value in it: what is read as JSON here must be read again, some levels deeper, by the worker.
const DEEPEST_KWARG: usize = 32;
/// Where neither the request nor a model says how long an answer may be.
const UNKNOWN_TOKENS: u32 = 1024;

/// Reads and checks a body.
pub(super) fn parse(body: &[u8], context: &ParseContext<'_>) -> Result<Call, ApiError> {
    let limits = context.limits;
    let mut fields = Fields::of(body)?;
    let (name, model) = model(&mut fields, context.models)?;
    if model.is_some_and(|model| !model.chat) {
        return Err(field_error("model", format!("the worker of {name} is of a version that takes no chats")));
    }
    let messages = messages(&mut fields)?;
    let chat_template_kwargs = Arc::new(template_kwargs(&mut fields)?);
    let (max_new_tokens, fit) = max_tokens(&mut fields, model)?;
    let Sampling { key, stop, n, .. } = Sampling::read(&mut fields, model, Some(max_new_tokens))?;
    let streamed = Streamed::read(&mut fields)?;
    let timeout = fields.timeout(limits.request_timeout)?;
    refuse_unsupported(&mut fields)?;
    refuse_unsupported_in_chats(&mut fields)?;
    fields.no_more()?;
    if n > limits.texts {
        return Err(field_error("n", format!("{n} answers are more than {} texts", limits.texts)));
    }
    let prompt = Prompt::Chat(messages);
    several(n, prompt_bytes(&prompt) + chat_template_kwargs.bytes, limits)?;
    let request = || {
        let (prompt, stop, chat_template_kwargs) = (prompt.clone(), stop.clone(), chat_template_kwargs.clone());
        GenerationRequest { prompt, key, max_new_tokens, fit, stop, chat_template_kwargs }
    };
    let requests = std::iter::repeat_with(request).take(n).collect();
    let (id, created) = (format!("chatcmpl-{}", context.request_id), seconds(context.now));
    let head = Head { id, object: "chat.completion", created, model: name };
    let renderer = Box::new(Chat(Answer::new(head, n, FIELDS, streamed)));
    Ok(Call { requests, timeout, stream: streamed.stream, renderer })
}

/// The most tokens of an answer; and whether fewer will do, where the request does not say: then it may be as long as the
/// prompt leaves room for.
fn max_tokens(fields: &mut Fields, model: Option<&Model>) -> Result<(u32, bool), ApiError> {
    let new = fields.integer("max_completion_tokens", 1, MOST_NEW_TOKENS)?;
    let old = fields.integer("max_tokens", 1, MOST_NEW_TOKENS)?;
    if let (Some(new), Some(old)) = (new, old)
        && new != old
    {
        let message = format!("max_tokens is {old} and max_completion_tokens {new}: they are the same; give one");
        return Err(field_error("max_tokens", message));
    }
    Ok(match new.or(old) {
        Some(tokens) => (tokens, false),
        None => (model.map_or(UNKNOWN_TOKENS, |model| model.positions.saturating_sub(1).max(1)), true),
    })
}

fn messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let items = match fields.take("messages") {
        Some(Value::Array(items)) => items,
        Some(other) => return Err(field_error("messages", format!("messages must be a list, not {}", kind(&other)))),
        None => return Err(field_error("messages", "messages is missing: a list of objects with role and content")),
    };
    if items.is_empty() || items.len() > MOST_MESSAGES {
        return Err(field_error("messages", format!("messages must hold 1 to {MOST_MESSAGES}, not {}", items.len())));
    }
    items.into_iter().enumerate().map(|(at, item)| message(at, item)).collect()
}

/// What the template is told besides the messages: names and values, which only the template knows.
fn template_kwargs(fields: &mut Fields) -> Result<TemplateKwargs, ApiError> {
    const NAME: &str = "chat_template_kwargs";
    match fields.take(NAME) {
        None => Ok(TemplateKwargs::default()),
        Some(Value::Object(map)) if map.contains_key("messages") || map.contains_key("tools") => {
            Err(field_error(NAME, format!("{NAME} must not hold messages, which are a field of their own, nor tools")))
        }
        Some(Value::Object(map)) => {
            let bytes = serde_json::to_string(&map).map_or(usize::MAX, |text| text.len());
            if bytes > MOST_KWARGS {
                return Err(field_error(
                    NAME,
                    format!("{NAME} must take at most {MOST_KWARGS} bytes as JSON, not {bytes}"),
                ));
            }
            if !map.values().all(|value| nests_at_most(value, DEEPEST_KWARG)) {
                return Err(field_error(NAME, format!("{NAME} must not nest deeper than {DEEPEST_KWARG} levels")));
            }
            Ok(TemplateKwargs { map, bytes })
        }
        Some(other) => Err(field_error(NAME, format!("{NAME} must be an object, not {}", kind(&other)))),
    }
}

/// Whether a value has at most so many levels of lists and objects.
fn nests_at_most(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels > 0 && items.iter().all(|item| nests_at_most(item, levels - 1)),
        Value::Object(map) => levels > 0 && map.values().all(|item| nests_at_most(item, levels - 1)),
        _ => true,
    }
}

fn message(at: usize, item: Value) -> Result<Message, ApiError> {
    let place = |field: &str| format!("messages[{at}]{field}");
    let Value::Object(mut item) = item else {
        return Err(field_error(&place(""), format!("{} must be an object, not {}", place(""), kind(&item))));
    };
    let Some(Value::String(role)) = item.remove("role") else {
        return Err(field_error(&place(".role"), format!("{} must be a string", place(".role"))));
    };
    let role = match &*role {
        // Their newer word for the same.
        "developer" => "system".to_owned(),
        "system" | "user" | "assistant" => role,
        _ => {
            let roles = "system, developer, user or assistant";
            return Err(field_error(&place(".role"), format!("{} must be {roles}", place(".role"))));
        }
    };
    let content = content(&place(".content"), item.remove("content"))?;
    // A participant's name; templates do not use it.
    item.remove("name");
    item.retain(|_, value| !value.is_null());
    match item.keys().next() {
        Some(name) => {
            let param: String = place(&format!(".{name}")).chars().take(96).collect();
            let why = "a message has role and content here, and nothing else".to_owned();
            Err(ApiError::Unsupported { param, why })
        }
        None => Ok(Message { role, content }),
    }
}

/// A string, or parts of which each is a text.
fn content(place: &str, value: Option<Value>) -> Result<String, ApiError> {
    let parts = match value {
        Some(Value::String(text)) => return Ok(text),
        Some(Value::Array(parts)) => parts,
        _ => return Err(field_error(place, format!("{place} must be a string, or a list of parts of type text"))),
    };
    let mut all = String::new();
    for part in &parts {
        let text = part.as_object().filter(|part| part.get("type").and_then(Value::as_str) == Some("text"));
        let Some(text) = text.and_then(|part| part.get("text")?.as_str()) else {
            let why = "parts must be of type text, with a string as their text".to_owned();
            return Err(ApiError::Unsupported { param: place.into(), why });
        };
        all.push_str(text);
    }
    Ok(all)
}

fn refuse_unsupported_in_chats(fields: &mut Fields) -> Result<(), ApiError> {
    let tools = "the engine cannot call tools";
    let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    neutral(fields, "tools", tools, is_empty)?;
    neutral(fields, "functions", tools, is_empty)?;
    neutral(fields, "tool_choice", tools, |value| matches!(value.as_str(), Some("none" | "auto")))?;
    neutral(fields, "function_call", tools, |value| matches!(value.as_str(), Some("none" | "auto")))?;
    neutral(fields, "parallel_tool_calls", tools, Value::is_boolean)?;
    let format = "answers cannot be held to a form";
    neutral(fields, "response_format", format, |value| value.get("type").and_then(Value::as_str) == Some("text"))?;
    let text = "answers are texts";
    let is_text = |value: &Value| value.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "text"));
    neutral(fields, "modalities", text, is_text)?;
    neutral(fields, "audio", text, |_| false)?;
    neutral(fields, "prediction", "the engine does not use predictions", |_| false)?;
    neutral(fields, "web_search_options", "there is no search here", |_| false)?;
    neutral(fields, "reasoning_effort", "the engine has no such setting", |_| false)?;
    neutral(fields, "verbosity", "the engine has no such setting", |_| false)
}

/// How the answers are written.
#[derive(Debug)]
struct Chat(Answer);

#[derive(Debug, Serialize)]
struct Choice<'a> {
    index: usize,
    message: ChatMessage<'a>,
    logprobs: Option<()>,
    finish_reason: &'static str,
}

#[derive(Debug, Serialize)]
struct ChatMessage<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Debug, Serialize)]
struct Chunk<'a> {
    index: usize,
    delta: Delta<'a>,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

#[derive(Debug, Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

const ROLE: &str = "assistant";

impl Chat {
    fn chunk(&self, index: usize, delta: Delta<'_>, finish_reason: Option<&'static str>, out: &mut Vec<u8>) {
        self.0.event(Chunk { index, delta, logprobs: None, finish_reason }, out);
    }
}

impl Renderer for Chat {
    fn whole(&self, outcomes: &[Outcome]) -> Result<Vec<u8>, ApiError> {
        self.0.whole(outcomes, |index, completion| {
            let message = ChatMessage { role: ROLE, content: &completion.text, refusal: None };
            Choice { index, message, logprobs: None, finish_reason: finish_reason(completion.reason) }
        })
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        self.0.head.object = "chat.completion.chunk";
        for index in 0..self.0.n {
            self.chunk(index, Delta { role: Some(ROLE), content: Some("") }, None, out);
        }
    }

    fn piece(&mut self, text: usize, piece: &str, completion: Option<&Completion>, out: &mut Vec<u8>) {
        if !piece.is_empty() {
            self.chunk(text, Delta { content: Some(piece), ..Delta::default() }, None, out);
        }
        if let Some(completion) = completion {
            self.0.count(text, completion);
            self.chunk(text, Delta::default(), Some(finish_reason(completion.reason)), out);
        }
    }

    fn failed(&mut self, _text: usize, error: ApiError, request_id: &str, out: &mut Vec<u8>) {
        self.0.failed(&error, request_id, out);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.0.end(out);
    }
}
