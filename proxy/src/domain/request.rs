//! What a client asks for, text by text.

use std::sync::Arc;

use pillion_protocol::frame::Prompt;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::batch_key::{BatchKey, ModelId};

/// Bytes that a message of a chat takes on the wire besides its role and content.
const FRAMING: usize = 32;

/// Bytes that a token's id takes on the wire, with what separates it from the next.
pub(super) const ID_BYTES: usize = 8;

/// The names of a request in logs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Its header `x-request-id`.
    pub request_id: String,
    /// Its header `traceparent`.
    pub traceparent: String,
}

/// One text that a client wants generated.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationRequest {
    /// The prompt to continue.
    pub prompt: Prompt,
    /// The key of its batch: jobs with equal keys can share one.
    pub key: BatchKey,
    /// The most tokens to produce, at least 1.
    pub max_new_tokens: u32,
    /// Whether the worker lowers `max_new_tokens` to what the prompt leaves of positions and memory, or fails the text.
    pub fit: bool,
    /// What ends the answer, besides the model's own end tokens.
    pub stop: Arc<Stops>,
    /// What the chat template gets besides the messages.
    pub chat_template_kwargs: Arc<TemplateKwargs>,
}

/// What a chat template gets besides the messages.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TemplateKwargs {
    /// Names and values.
    pub map: Map<String, Value>,
    /// Bytes that all of them take as JSON.
    pub bytes: usize,
}

/// What ends an answer, besides the model's own end tokens. It does not become part of the answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stops {
    /// Texts, none of them empty.
    pub strings: Vec<String>,
    /// Token ids.
    pub token_ids: Vec<u32>,
}

impl GenerationRequest {
    /// A request to continue a text, with nothing else set.
    pub fn text(text: &str, key: BatchKey, max_new_tokens: u32) -> Self {
        let prompt = Prompt::Text(text.to_owned());
        Self { prompt, key, max_new_tokens, fit: false, stop: Arc::default(), chat_template_kwargs: Arc::default() }
    }

    /// Estimates the tokens of prompt and answer before the prompt is tokenised: a token is rarely shorter than three
    /// bytes of text. The worker counts exactly and splits a batch that is too large for it.
    pub fn estimated_tokens(&self) -> u64 {
        let prompt = match &self.prompt {
            Prompt::Text(text) => text.len() / 3 + 1,
            Prompt::Ids(ids) => ids.len(),
            Prompt::Chat(messages) => messages.iter().map(|message| message.content.len() / 3 + 5).sum(),
        };
        prompt as u64 + u64::from(self.max_new_tokens)
    }

    /// Bytes that the prompt takes on the wire, before JSON's escapes.
    pub fn bytes(&self) -> usize {
        let stops = self.stop.strings.iter().map(String::len).sum::<usize>() + self.stop.token_ids.len() * ID_BYTES;
        prompt_bytes(&self.prompt) + stops + self.chat_template_kwargs.bytes
    }
}

/// Bytes that a prompt takes on the wire, before JSON's escapes.
pub fn prompt_bytes(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Text(text) => text.len(),
        Prompt::Ids(ids) => ids.len() * ID_BYTES,
        Prompt::Chat(messages) => messages.iter().map(|turn| turn.content.len() + turn.role.len() + FRAMING).sum(),
    }
}

/// An answer that a client got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// When.
    pub at: Instant,
    /// The model that the client had asked for, or [any](ModelId::ANY).
    pub model: ModelId,
}

/// What the scheduler needs to know of a request besides its texts.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// The request's names in the worker's log, if it belongs to a trace.
    pub origin: Option<Arc<Origin>>,
    /// Its client's previous answer, if there was one. From this the policy learns when clients return.
    pub answered: Option<Answered>,
    /// When the request is admitted.
    pub now: Instant,
    /// When the request must have ended.
    pub deadline: Instant,
}
