//! `POST /v1/chat/completions`.

use std::sync::Arc;

use pillion_protocol::frame::{Message, Prompt};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::common::{Answer, Head, StreamOptions, finish_reason, model, unix_seconds};
use super::options::{Sampling, Unsupported, check_prompt_bytes, refuse_others};
use crate::api::call::{Call, ParseContext, Renderer};
use crate::api::error::{ApiError, FieldNames};
use crate::api::fields::{Fields, MAX_NEW_TOKENS, field_error, is_list, missing, string, typed};
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
    let Sampling { key, stop, n } = Sampling::read(&mut fields, model, Some(max_new_tokens))?;
    let stream_options = StreamOptions::read(&mut fields)?;
    let timeout = fields.timeout(limits.request_timeout)?;
    refuse_others(fields, &UNSUPPORTED)?;
    if n > limits.texts {
        return Err(field_error("n", format!("{n} answers exceed the limit of {}", limits.texts)));
    }
    let prompt = Prompt::Chat(messages);
    check_prompt_bytes(n, prompt_bytes(&prompt) + chat_template_kwargs.bytes, limits)?;
    let request = || GenerationRequest {
        prompt: prompt.clone(),
        key,
        max_new_tokens,
        fit,
        stop: stop.clone(),
        chat_template_kwargs: chat_template_kwargs.clone(),
    };
    let requests = std::iter::repeat_with(request).take(n).collect();
    let (id, created) = (format!("chatcmpl-{}", context.request_id), unix_seconds((context.clock)()));
    let head = Head { id, object: "chat.completion", created, model: name };
    let renderer = Box::new(Chat(Answer::new(head, n, FIELDS, stream_options)));
    Ok(Call { requests, timeout, stream: stream_options.stream, renderer })
}

/// The most tokens of an answer, and whether this limit shrinks to the positions that the prompt leaves (`fit`). It does if
/// the request sets no limit.
fn max_tokens(fields: &mut Fields<'_>, model: Option<&Model>) -> Result<(u32, bool), ApiError> {
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

fn messages(fields: &mut Fields<'_>) -> Result<Vec<Message>, ApiError> {
    const EXPECTED: &str = "a list of objects";
    let items: Option<Vec<&RawValue>> = fields.list("messages", EXPECTED, 1..=MAX_MESSAGES)?;
    let items = items.ok_or_else(|| missing("messages", EXPECTED))?;
    items.into_iter().enumerate().map(|(at, item)| message(&format!("messages[{at}]"), item)).collect()
}

/// Takes `chat_template_kwargs`: variables for the chat template, whose names only the template knows.
fn template_kwargs(fields: &mut Fields<'_>) -> Result<TemplateKwargs, ApiError> {
    const NAME: &str = "chat_template_kwargs";
    let Some(raw) = fields.take(NAME) else { return Ok(TemplateKwargs::default()) };
    let bytes = raw.get().len();
    if bytes > MAX_KWARGS_BYTES {
        return Err(field_error(NAME, format!("{NAME} must take at most {MAX_KWARGS_BYTES} bytes, not {bytes}")));
    }
    let map: Map<String, Value> = typed(NAME, raw, "an object")?;
    if map.contains_key("messages") || map.contains_key("tools") {
        let message = format!("{NAME} must not hold messages (a separate field) or tools (unsupported)");
        return Err(field_error(NAME, message));
    }
    if !map.values().all(|value| nests_at_most(value, MAX_KWARGS_DEPTH)) {
        return Err(field_error(NAME, format!("{NAME} must not nest deeper than {MAX_KWARGS_DEPTH} levels")));
    }
    Ok(TemplateKwargs { map, bytes })
}

/// Whether lists and objects in a value nest at most `levels` deep.
fn nests_at_most(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels > 0 && items.iter().all(|item| nests_at_most(item, levels - 1)),
        Value::Object(map) => levels > 0 && map.values().all(|item| nests_at_most(item, levels - 1)),
        _ => true,
    }
}

fn message(path: &str, raw: &RawValue) -> Result<Message, ApiError> {
    const ROLES: &str = "system, developer, user or assistant";
    const CONTENT: &str = "a string, or a list of parts of type text";
    let mut fields = Fields::of_object(path, raw)?;
    let mut required = |name: &str, expected| {
        let path = format!("{path}.{name}");
        fields.take(name).ok_or_else(|| missing(&path, expected)).map(|raw| (raw, path))
    };
    let (role, role_path) = required("role", ROLES)?;
    let role = match typed::<String>(&role_path, role, ROLES)?.as_str() {
        // OpenAI's newer name of the role system.
        "developer" => "system".to_owned(),
        known @ ("system" | "user" | "assistant") => known.to_owned(),
        _ => return Err(field_error(&role_path, format!("{role_path} must be {ROLES}, not {role}"))),
    };
    let (content, content_path) = required("content", CONTENT)?;
    let content = if is_list(content) {
        let parts: Vec<TextPart> = typed(&content_path, content, CONTENT).map_err(|_| ApiError::Unsupported {
            param: content_path,
            why: "each part must have the type text, and a string as its text".to_owned(),
        })?;
        parts.into_iter().map(|part| part.text).collect()
    } else {
        string(&content_path, content, CONTENT)?
    };
    // The participant's name, which templates do not use.
    fields.take("name");
    match fields.unknown() {
        Some(name) => {
            let why = "a message may have only role, content and name".to_owned();
            Err(ApiError::Unsupported { param: format!("{path}.{name}"), why })
        }
        None => Ok(Message { role, content }),
    }
}

/// A part of a message's content. Other fields than these are not read.
#[derive(Deserialize)]
struct TextPart {
    #[serde(rename = "type")]
    _type: TextType,
    text: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum TextType {
    Text,
}

/// Options that only chats have, and that the engine does not support.
const UNSUPPORTED: [Unsupported; 12] = [
    ("tools", |value| *value == json!([]), TOOLS),
    ("functions", |value| *value == json!([]), TOOLS),
    ("tool_choice", |value| value == "none" || value == "auto", TOOLS),
    ("function_call", |value| value == "none" || value == "auto", TOOLS),
    ("parallel_tool_calls", Value::is_boolean, TOOLS),
    ("response_format", |value| value["type"] == "text", "the engine cannot enforce a format"),
    ("modalities", |value| *value == json!([]) || *value == json!(["text"]), "answers are text only"),
    ("audio", |_| false, "answers are text only"),
    ("prediction", |_| false, "the engine does not use predictions"),
    ("web_search_options", |_| false, "the server has no web search"),
    ("reasoning_effort", |_| false, "the engine has no such setting"),
    ("verbosity", |_| false, "the engine has no such setting"),
];
const TOOLS: &str = "the engine cannot call tools";

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
