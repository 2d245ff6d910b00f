//! Text to token ids and back.
//!
//! Special tokens written in a user's text are plain text; the ones that a prompt needs are added by the tokenizer's own
//! post-processor. An answer is decoded without special tokens.

use std::path::Path;

use pillion_protocol::frame::Message;
use tokenizers::Tokenizer;

use crate::model::{Model, ModelError};

mod answer;
mod chat;
mod detokenise;
mod fitness;
mod stop;
mod template;

pub use answer::{Answer, whole};
pub use chat::ChatFailed;
use chat::Chats;
use template::Template;

/// The tokenizer of a model.
#[derive(Debug)]
pub struct Tokens {
    tokenizer: Tokenizer,
    chats: Chats,
    eos: u32,
    vocabulary: u32,
}

/// A text could not be tokenised, or ids not be decoded.
#[derive(Debug, thiserror::Error)]
#[error("the tokenizer failed: {0}")]
pub struct TokenizerFailed(String);

impl Tokens {
    /// Reads a model's tokenizer and checks that it is the model's.
    ///
    /// # Errors
    /// The file is no tokenizer, or its tokens are not those of the model, or its chat template cannot be used.
    pub fn load(model: &Model) -> Result<Self, ModelError> {
        let path = model.directory.join("tokenizer.json");
        let tokenizer = read(&path)?;
        fitness::check(&model.vocabulary, &tokenizer).map_err(|problem| ModelError::new(&path, problem))?;
        let vocabulary = u32::try_from(model.vocabulary.len())
            .map_err(|_| ModelError::new(&path, "the vocabulary has more than 2^32 entries"))?;
        let template = Template::load(&model.directory)?;
        Self::new(tokenizer, template, model.eos, vocabulary).map_err(|error| ModelError::new(&path, error.to_string()))
    }

    /// A tokenizer whose model ends sequences with the token `eos` and has so many tokens.
    fn new(mut tokenizer: Tokenizer, template: Template, eos: u32, vocabulary: u32) -> Result<Self, TokenizerFailed> {
        tokenizer.set_encode_special_tokens(true);
        let chats = Chats::new(template, &tokenizer)?;
        Ok(Self { tokenizer, chats, eos, vocabulary })
    }

    /// The token at which a sequence ends.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// How many tokens there are.
    pub fn vocabulary(&self) -> u32 {
        self.vocabulary
    }

    /// Where the chat template comes from, for people.
    pub fn chat_template(&self) -> &'static str {
        self.chats.template_file().unwrap_or("none of its own: chats are written as \"role: content\" lines")
    }

    /// The ids of a text, with what the post-processor adds.
    ///
    /// # Errors
    /// The tokenizer cannot take the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerFailed> {
        let encoding = self.tokenizer.encode_fast(text, true).map_err(|error| TokenizerFailed(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of a chat, by the model's template.
    ///
    /// # Errors
    /// The template does not take the messages, or the tokenizer cannot take the text.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, ChatFailed> {
        self.chats.encode(messages, &self.tokenizer)
    }

    /// The text of ids, without special tokens.
    ///
    /// # Errors
    /// The tokenizer's decoder fails on the ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerFailed> {
        self.tokenizer.decode(ids, true).map_err(|error| TokenizerFailed(error.to_string()))
    }
}

fn read(path: &Path) -> Result<Tokenizer, ModelError> {
    let unfit = |error: tokenizers::Error| ModelError::new(path, format!("is no tokenizer: {error}"));
    let mut tokenizer = Tokenizer::from_file(path).map_err(unfit)?;
    // Both would change prompts behind the user's back.
    tokenizer.with_truncation(None).map_err(unfit)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A tokenizer of single bytes, as GPT-2's would be without merges: ids 0 to 255 are the bytes in the order of their
    /// names, then `extra` special tokens.
    pub(crate) fn bytes(extra: &[&str]) -> Tokenizer {
        let mut alphabet: Vec<char> =
            tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
        alphabet.sort_unstable();
        let vocabulary: serde_json::Map<String, Value> =
            alphabet.iter().enumerate().map(|(id, name)| (name.to_string(), json!(id))).collect();
        let added: Vec<Value> = extra
            .iter()
            .enumerate()
            .map(|(nth, token)| {
                json!({"id": 256 + nth, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": true})
            })
            .collect();
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary,
                      "merges": []},
        });
        file.to_string().parse().unwrap()
    }

    /// Its tokens, with "</s>" as the end of a sequence.
    pub(crate) fn byte_tokens() -> Tokens {
        Tokens::new(bytes(&["</s>"]), Template::plain(), 256, 257).unwrap()
    }

    #[test]
    fn special_tokens_in_a_text_are_plain_text() {
        let tokens = byte_tokens();
        let ids = tokens.encode("a</s>b").unwrap();
        assert_eq!(ids.len(), 6);
        assert!(!ids.contains(&tokens.eos()));
        assert_eq!(tokens.decode(&ids).unwrap(), "a</s>b");
    }

    #[test]
    fn special_tokens_are_not_part_of_an_answer() {
        let tokens = byte_tokens();
        let mut ids = tokens.encode("ab").unwrap();
        ids.push(tokens.eos());
        assert_eq!(tokens.decode(&ids).unwrap(), "ab");
    }
}
