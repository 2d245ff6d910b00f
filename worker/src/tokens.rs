//! Text to token ids and back.
//!
//! Special tokens in a user's text are plain text. The tokenizer's post-processor or the chat template adds the special tokens
//! that a prompt needs. An answer is decoded in the context of its prompt, without special tokens.

use std::path::Path;
use std::sync::Arc;

use pillion_protocol::frame::{Member, Message};
use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use crate::caught::caught;
use crate::model::{Model, ModelError};

mod answer;
mod chat;
mod decode;
mod detokenise;
mod error;
mod fitness;
mod length;
#[cfg(test)]
pub(crate) mod samples;
mod stop;
mod template;

pub use answer::{Answer, whole};
use chat::Chats;
pub use decode::Decoder;
pub use detokenise::Context;
pub use error::{PromptFailed, TokenizerFailed};
use length::Lengths;
pub use template::Template;

/// The tokenizer of a model.
#[derive(Debug)]
pub struct Tokens {
    tokenizer: Arc<Tokenizer>,
    decoder: Decoder,
    lengths: Lengths,
    chats: Chats,
    ends: Vec<u32>,
    vocabulary: u32,
}

/// The kind of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptKind {
    /// A text.
    Text,
    /// A chat, written by the model's template.
    Chat,
    /// Token ids, which may end in the middle of a character.
    Ids,
}

impl Tokens {
    /// Reads a model's tokenizer and checks that it belongs to the model.
    ///
    /// # Errors
    /// The file is not a tokenizer, or its tokens are not those of the model.
    pub fn load(model: &Model) -> Result<Self, ModelError> {
        let path = model.directory.join("tokenizer.json");
        let tokenizer = read(&path)?;
        fitness::check(&model.vocabulary, &tokenizer).map_err(|problem| ModelError::new(&path, problem))?;
        let vocabulary = u32::try_from(model.vocabulary.len())
            .map_err(|_| ModelError::new(&path, "the vocabulary has more than 2^32 entries"))?;
        let template = Template::load(&model.directory, &model.tokenizer_config)?;
        Self::new(tokenizer, template, model.ends.clone(), vocabulary)
            .map_err(|error| ModelError::new(&path, error.to_string()))
    }

    /// A tokenizer for a model of `vocabulary` tokens whose sequences end with any of `ends`.
    fn new(
        mut tokenizer: Tokenizer,
        template: Template,
        ends: Vec<u32>,
        vocabulary: u32,
    ) -> Result<Self, TokenizerFailed> {
        tokenizer.set_encode_special_tokens(true);
        let lengths = Lengths::of(&tokenizer);
        let chats = Chats::new(template, &mut tokenizer)?;
        let tokenizer = Arc::new(tokenizer);
        let decoder = Decoder::of(&tokenizer, chats.marked_ids());
        Ok(Self { tokenizer, decoder, lengths, chats, ends, vocabulary })
    }

    /// Turns ids into text.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The tokens that end a sequence.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The number of the model's tokens.
    pub fn vocabulary(&self) -> u32 {
        self.vocabulary
    }

    /// The chat template.
    pub fn chat_template(&self) -> &Template {
        self.chats.template()
    }

    /// The ids of a text, with those that the post-processor adds. A text that is certain to have more than `most` tokens is not
    /// tokenised.
    ///
    /// # Errors
    /// The text is too long, or the tokenizer cannot take it.
    pub fn encode(&self, text: &str, most: usize) -> Result<Vec<u32>, PromptFailed> {
        self.lengths.check(&self.tokenizer, text, most)?;
        if self.chats.is_forged(text) {
            return Err(PromptFailed::Unmarkable);
        }
        Ok(ids(&self.tokenizer, text, true)?)
    }

    /// The ids of a chat, written by the model's template with the variables `kwargs`. A chat that is certain to have more than
    /// `most` tokens is not tokenised.
    ///
    /// # Errors
    /// The template does not take the messages, the text is too long, or the tokenizer cannot take it.
    pub fn encode_chat(
        &self,
        messages: &[Message],
        kwargs: &Map<String, Value>,
        most: usize,
    ) -> Result<Vec<u32>, PromptFailed> {
        let text = caught(|| self.chats.render(messages, kwargs)).map_err(TokenizerFailed::Panicked)??;
        self.lengths.check_chat(&text, most)?;
        let mut all = ids(&self.tokenizer, &text, self.chats.template().is_plain())?;
        self.chats.restore(&mut all);
        Ok(all)
    }

    /// Adds the special tokens that are stop strings to the stop tokens, since special tokens do not appear in the text. The stop
    /// strings stay: the model may spell one in other tokens.
    pub fn resolve_stops(&self, member: &mut Member) {
        member.stop_token_ids.extend(member.stop.iter().filter_map(|text| self.chats.special_id(text)));
    }

    /// The last ids of a prompt, which decide how the text after it begins. Special tokens in a text prompt are skipped: they
    /// mark the beginning or an unknown word. In a chat or in ids, text begins anew after a special token. If tokens are bytes,
    /// the prompt matters only if it ends within a character.
    ///
    /// # Errors
    /// The tokenizer's decoder fails on the ids.
    pub fn context(&self, prompt: &[u32], kind: PromptKind) -> Result<Context, TokenizerFailed> {
        let is_whole = kind != PromptKind::Ids;
        if is_whole && self.decoder.is_byte_level() {
            return Ok(Context::default());
        }
        let last = prompt.iter().rev().copied();
        let mut ids: Vec<u32> = if kind == PromptKind::Text {
            last.filter(|&id| self.decoder.is_text(id)).take(detokenise::CONTEXT).collect()
        } else {
            last.take(detokenise::CONTEXT).take_while(|&id| self.decoder.is_text(id)).collect()
        };
        ids.reverse();
        Context::new(&self.decoder, ids, is_whole)
    }
}

fn ids(tokenizer: &Tokenizer, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerFailed> {
    let encoding = caught(|| tokenizer.encode_fast(text, add_special)).map_err(TokenizerFailed::Panicked)?;
    let encoding = encoding.map_err(|error| TokenizerFailed::Refused(error.to_string()))?;
    Ok(encoding.get_ids().to_vec())
}

fn read(path: &Path) -> Result<Tokenizer, ModelError> {
    let not_a_tokenizer = |error: tokenizers::Error| ModelError::new(path, format!("is not a tokenizer: {error}"));
    let mut tokenizer = Tokenizer::from_file(path).map_err(not_a_tokenizer)?;
    // Truncation and padding would change prompts without the user's knowledge.
    tokenizer.with_truncation(None).map_err(not_a_tokenizer)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

#[cfg(test)]
pub(crate) mod tests {
    use pillion_protocol::frame::Prompt;

    use super::samples::{byte_fallback, byte_tokens, panicking};
    use super::*;

    /// A member that asks for eight new tokens and nothing special.
    pub(crate) fn member(text: &str) -> Member {
        Member {
            prompt: Prompt::Text(text.to_owned()),
            max_new_tokens: 8,
            fit: false,
            min_new_tokens: 0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            chat_template_kwargs: Map::new(),
            deadline_ms: 60_000,
            stream: false,
            produced: Vec::new(),
            sent: 0,
            request_id: String::new(),
            traceparent: String::new(),
        }
    }

    #[test]
    fn special_tokens_in_a_text_are_plain_text() {
        let tokens = byte_tokens();
        let ids = tokens.encode("a</s>b", 100).unwrap();
        assert_eq!(ids.len(), 6);
        assert!(!ids.contains(&tokens.ends()[0]));
        assert_eq!(tokens.decoder.decode(&ids).unwrap(), "a</s>b");
    }

    #[test]
    fn special_tokens_are_not_in_an_answer() {
        let tokens = byte_tokens();
        let mut ids = tokens.encode("ab", 100).unwrap();
        ids.push(tokens.ends()[0]);
        assert_eq!(tokens.decoder.decode(&ids).unwrap(), "ab");
    }

    #[test]
    fn a_panic_of_the_tokenizer_is_an_error() {
        let tokens = panicking();
        let error = tokens.encode("a", 100).unwrap_err();
        assert!(matches!(error, PromptFailed::Tokenizer(TokenizerFailed::Panicked(_))), "{error}");
    }

    #[test]
    fn a_stop_string_that_is_a_special_token_is_that_token() {
        let mut member = Member { stop: vec!["</s>".to_owned(), "</s> ".to_owned()], ..member("a") };
        byte_tokens().resolve_stops(&mut member);
        assert_eq!(
            (member.stop.len(), member.stop_token_ids),
            (2, vec![256]),
            "the string stays, since it may be spelled in bytes"
        );
    }

    #[test]
    fn the_context_is_the_prompts_last_tokens_up_to_a_special_token() {
        let tokens = byte_tokens();
        let none = Context::default();
        assert_eq!(tokens.context(&[1, 2, 3], PromptKind::Text).unwrap(), none, "bytes need none");
        assert_ne!(tokens.context(&[1, 2, 3], PromptKind::Ids).unwrap(), none);
        let tokens = byte_fallback();
        let of = |ids: &[u32]| Context::new(&tokens.decoder, ids.to_vec(), true).unwrap();
        for (prompt, in_text, in_chat) in [
            (&[2, 3, 4, 5, 6, 7, 8, 9][..], &[6, 7, 8, 9][..], &[6, 7, 8, 9][..]),
            (&[2, 3, 0, 4], &[2, 3, 4], &[4]),
            (&[2, 1], &[2], &[]),
            (&[2, 999, 3], &[2, 3], &[3]),
        ] {
            assert_eq!(tokens.context(prompt, PromptKind::Text).unwrap(), of(in_text));
            assert_eq!(tokens.context(prompt, PromptKind::Chat).unwrap(), of(in_chat));
        }
    }
}
