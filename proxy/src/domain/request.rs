//! What a client asks for, one text at a time.

use std::sync::Arc;

use pillion_protocol::frame::Prompt;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::batch_key::BatchKey;

/// Bytes that a message of a chat takes on the wire beside its texts.
const MESSAGE: usize = 32;

/// What a request is called in logs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Its `x-request-id`.
    pub request_id: String,
    /// Its `traceparent`.
    pub traceparent: String,
}

/// What a client asked of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationRequest {
    /// What to continue.
    pub prompt: Prompt,
    /// What it can share a batch with.
    pub key: BatchKey,
    /// The most tokens to produce, at least 1.
    pub max_new_tokens: u32,
    /// Whether fewer will do, where the prompt leaves fewer of the model's positions.
    pub fit: bool,
    /// Where the answer ends.
    pub stop: Arc<Stops>,
    /// What a chat's template is told besides the messages.
    pub chat_template_kwargs: Arc<TemplateKwargs>,
}

/// What a chat's template is told besides the messages.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TemplateKwargs {
    /// Names and values.
    pub map: Map<String, Value>,
    /// Bytes that they take as JSON.
    pub bytes: usize,
}

/// Where an answer ends, besides the model's own end tokens. Neither is part of the answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stops {
    /// Texts, none empty.
    pub strings: Vec<String>,
    /// Token ids.
    pub token_ids: Vec<u32>,
}

impl GenerationRequest {
    /// To continue a text, with nothing else asked.
    pub fn text(text: &str, key: BatchKey, max_new_tokens: u32) -> Self {
        let prompt = Prompt::Text(text.to_owned());
        Self { prompt, key, max_new_tokens, fit: false, stop: Arc::default(), chat_template_kwargs: Arc::default() }
    }

    /// A guess at the tokens that prompt and answer take, made before anything is tokenised: a token is rarely shorter
    /// than three bytes of text. The worker counts exactly and splits a batch that is too large for it.
    pub fn estimated_tokens(&self) -> u64 {
        let prompt = match &self.prompt {
            Prompt::Text(text) => text.len() / 3 + 1,
            Prompt::Ids(ids) => ids.len(),
            Prompt::Chat(messages) => messages.iter().map(|said| said.content.len() / 3 + 5).sum(),
        };
        prompt as u64 + u64::from(self.max_new_tokens)
    }

    /// Bytes that the prompt takes on the wire, before JSON's escapes.
    pub fn bytes(&self) -> usize {
        let stops = self.stop.strings.iter().map(String::len).sum::<usize>() + self.stop.token_ids.len() * 4;
        prompt_bytes(&self.prompt) + stops + self.chat_template_kwargs.bytes
    }
}

/// Bytes that a prompt takes on the wire, before JSON's escapes.
pub fn prompt_bytes(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Text(text) => text.len(),
        Prompt::Ids(ids) => ids.len() * 8,
        Prompt::Chat(messages) => messages.iter().map(|said| said.content.len() + said.role.len() + MESSAGE).sum(),
    }
}

/// What is known of a request beside its texts.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// What it is called in the worker's log, if it belongs to a trace.
    pub origin: Option<Arc<Origin>>,
    /// When its client had its last answer, if it had one: it helps to foresee when others will come.
    pub answered: Option<Instant>,
    /// When it is admitted.
    pub now: Instant,
    /// When its answer is worth nothing any more.
    pub deadline: Instant,
}
