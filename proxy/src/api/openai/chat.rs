//! `POST /v1/chat/completions`.

use std::sync::Arc;

use pillion_protocol::frame::{Message, Prompt};
use serde::Serialize;
use serde_json::Value;

use super::common::{Answer, Head, StreamOptions, finish_reason, model, unix_seconds};
use super::options::{Sampling, allow_neutral, check_prompt_bytes, refuse_unsupported};
use crate::api::call::{Call, ParseContext, Renderer};
use crate::api::error::{ApiError, FieldNames};
use crate::api::fields::{Fields, MAX_NEW_TOKENS, field_error, kind};
use crate::domain::{Completion, GenerationRequest, Outcome, TemplateKwargs, prompt_bytes};
use crate::scheduler::models::Model;

/// OpenAI's field names for the prompt and the most new tokens.
pub(super) const FIELDS: FieldNames = FieldNames { prompt: "messages", max_tokens: "max_completion_tokens" };
/// The most messages in a chat.
const MAX_MESSAGES: usize = 4096;
/// The largest `chat_template_kwargs`, in bytes of JSON.
const MAX_KWARGS_BYTES: usize = 64 * 1024;
/// The deepest nesting of `chat_template_kwargs`. The worker parses it again, some levels deeper, and its parser has a limit.
const MAX_KWARGS_DEPTH: usize = 32;
/// The limit of an answer in tokens, if the request sets none and no model is known.
const DEFAULT_TOKENS: u32 = 1024;

/// Parses and validates a body.
pub(super) fn parse(body: &[u8], context: &ParseContext<'_>) -> Result<Call, ApiError> {
    let limits = context.limits;
    let mut fields = Fields::parse(body)?;
    let (name, model) = model(&mut fields, context.models)?;
    if model.is_some_and(|model| !model.chat) {
        return Err(field_error("model", format!("the worker of {name} is too old to serve chats")));
    }
    let messages = messages(&mut fields)?;
    let chat_template_kwargs = Arc::new(template_kwargs(&mut fields)?);
    let (max_new_tokens, fit) = max_tokens(&mut fields, model)?;
    let Sampling { key, stop, n, .. } = Sampling::read(&mut fields, model, Some(max_new_tokens))?;
    let stream_options = StreamOptions::read(&mut fields)?;
    let timeout = fields.timeout(limits.request_timeout)?;
    refuse_unsupported(&mut fields)?;
    refuse_unsupported_in_chats(&mut fields)?;
    fields.refuse_unknown()?;
    if n > limits.texts {
        return Err(field_error("n", format!("{n} answers exceed the limit of {}", limits.texts)));
    }
    let prompt = Prompt::Chat(messages);
    check_prompt_bytes(n, prompt_bytes(&prompt) + chat_template_kwargs.bytes, limits)?;
    let request = || {
        let (prompt, stop, chat_template_kwargs) = (prompt.clone(), stop.clone(), chat_template_kwargs.clone());
        GenerationRequest { prompt, key, max_new_tokens, fit, stop, chat_template_kwargs }
    };
    let requests = std::iter::repeat_with(request).take(n).collect();
    let (id, created) = (format!("chatcmpl-{}", context.request_id), unix_seconds(context.now));
    let head = Head { id, object: "chat.completion", created, model: name };
    let renderer = Box::new(Chat(Answer::new(head, n, FIELDS, stream_options)));
    Ok(Call { requests, timeout, stream: stream_options.stream, renderer })
}

/// The most tokens of an answer, and whether this limit shrinks to the positions that the prompt leaves (`fit`). It does if
/// the request sets no limit.
fn max_tokens(fields: &mut Fields, model: Option<&Model>) -> Result<(u32, bool), ApiError> {
    let new = fields.integer("max_completion_tokens", 1, MAX_NEW_TOKENS)?;
    let old = fields.integer("max_tokens", 1, MAX_NEW_TOKENS)?;
    if let (Some(new), Some(old)) = (new, old)
        && new != old
    {
        let message = format!("max_tokens {old} and max_completion_tokens {new} differ, but mean the same: set one");
        return Err(field_error("max_tokens", message));
    }
    Ok(match new.or(old) {
        Some(tokens) => (tokens, false),
        None => (model.map_or(DEFAULT_TOKENS, |model| model.positions.saturating_sub(1).max(1)), true),
    })
}

fn messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let items = match fields.take("messages") {
        Some(Value::Array(items)) => items,
        Some(other) => return Err(field_error("messages", format!("messages must be a list, not {}", kind(&other)))),
        None => return Err(field_error("messages", "messages is missing; it must be a list of objects")),
    };
    if items.is_empty() || items.len() > MAX_MESSAGES {
        return Err(field_error("messages", format!("messages takes 1 to {MAX_MESSAGES} items, not {}", items.len())));
    }
    items.into_iter().enumerate().map(|(at, item)| message(at, item)).collect()
}

/// Takes `chat_template_kwargs`: variables for the chat template, whose names only the template knows.
fn template_kwargs(fields: &mut Fields) -> Result<TemplateKwargs, ApiError> {
    const NAME: &str = "chat_template_kwargs";
    match fields.take(NAME) {
        None => Ok(TemplateKwargs::default()),
        Some(Value::Object(map)) if map.contains_key("messages") || map.contains_key("tools") => {
            Err(field_error(NAME, format!("{NAME} must not hold messages (a separate field) or tools (unsupported)")))
        }
        Some(Value::Object(map)) => {
            let bytes = serde_json::to_string(&map).map_or(usize::MAX, |text| text.len());
            if bytes > MAX_KWARGS_BYTES {
                return Err(field_error(
                    NAME,
                    format!("{NAME} must take at most {MAX_KWARGS_BYTES} bytes as JSON, not {bytes}"),
                ));
            }
            if !map.values().all(|value| nests_at_most(value, MAX_KWARGS_DEPTH)) {
                return Err(field_error(NAME, format!("{NAME} must not nest deeper than {MAX_KWARGS_DEPTH} levels")));
            }
            Ok(TemplateKwargs { map, bytes })
        }
        Some(other) => Err(field_error(NAME, format!("{NAME} must be an object, not {}", kind(&other)))),
    }
}

/// Whether lists and objects in a value nest at most `levels` deep.
fn nests_at_most(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels > 0 && items.iter().all(|item| nests_at_most(item, levels - 1)),
        Value::Object(map) => levels > 0 && map.values().all(|item| nests_at_most(item, levels - 1)),
        _ => true,
    }
}

fn message(at: usize, item: Value) -> Result<Message, ApiError> {
    let path = |field: &str| format!("messages[{at}]{field}");
    let Value::Object(mut item) = item else {
        return Err(field_error(&path(""), format!("{} must be an object, not {}", path(""), kind(&item))));
    };
    let Some(Value::String(role)) = item.remove("role") else {
        return Err(field_error(&path(".role"), format!("{} must be a string", path(".role"))));
    };
    let role = match &*role {
        // OpenAI's newer name of the role system.
        "developer" => "system".to_owned(),
        "system" | "user" | "assistant" => role,
        _ => {
            let roles = "system, developer, user or assistant";
            return Err(field_error(&path(".role"), format!("{} must be {roles}", path(".role"))));
        }
    };
    let content = content(&path(".content"), item.remove("content"))?;
    // The participant's name, which templates do not use.
    item.remove("name");
    item.retain(|_, value| !value.is_null());
    match item.keys().next() {
        Some(name) => {
            let param: String = path(&format!(".{name}")).chars().take(96).collect();
            let why = "a message may have only role, content and name".to_owned();
            Err(ApiError::Unsupported { param, why })
        }
        None => Ok(Message { role, content }),
    }
}

/// The content of a message: a string, or a list of text parts, which are joined.
fn content(path: &str, value: Option<Value>) -> Result<String, ApiError> {
    let parts = match value {
        Some(Value::String(text)) => return Ok(text),
        Some(Value::Array(parts)) => parts,
        _ => return Err(field_error(path, format!("{path} must be a string, or a list of parts of type text"))),
    };
    let mut all = String::new();
    for part in &parts {
        let text = part.as_object().filter(|part| part.get("type").and_then(Value::as_str) == Some("text"));
        let Some(text) = text.and_then(|part| part.get("text")?.as_str()) else {
            let why = "each part must have the type text, and a string as its text".to_owned();
            return Err(ApiError::Unsupported { param: path.into(), why });
        };
        all.push_str(text);
    }
    Ok(all)
}

fn refuse_unsupported_in_chats(fields: &mut Fields) -> Result<(), ApiError> {
    let tools = "the engine cannot call tools";
    let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    allow_neutral(fields, "tools", tools, is_empty)?;
    allow_neutral(fields, "functions", tools, is_empty)?;
    allow_neutral(fields, "tool_choice", tools, |value| matches!(value.as_str(), Some("none" | "auto")))?;
    allow_neutral(fields, "function_call", tools, |value| matches!(value.as_str(), Some("none" | "auto")))?;
    allow_neutral(fields, "parallel_tool_calls", tools, Value::is_boolean)?;
    let why = "the engine cannot enforce a format";
    allow_neutral(fields, "response_format", why, |value| value.get("type").and_then(Value::as_str) == Some("text"))?;
    let text = "answers are text only";
    let is_text = |value: &Value| value.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "text"));
    allow_neutral(fields, "modalities", text, is_text)?;
    allow_neutral(fields, "audio", text, |_| false)?;
    allow_neutral(fields, "prediction", "the engine does not use predictions", |_| false)?;
    allow_neutral(fields, "web_search_options", "the server has no web search", |_| false)?;
    allow_neutral(fields, "reasoning_effort", "the engine has no such setting", |_| false)?;
    allow_neutral(fields, "verbosity", "the engine has no such setting", |_| false)
}

/// Writes the answers.
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
