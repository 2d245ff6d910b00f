//! Turns token ids into text with the tokenizer's own decoder, with two differences.
//!
//! Special tokens and unknown ids are left out. And tokens for single bytes (`<0xF0>`) become every character that they complete;
//! each byte that completes none becomes one U+FFFD. The crate's own decoder replaces a whole run of byte tokens if one
//! character in it is incomplete.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::{Decoder as _, DecoderWrapper, Tokenizer};

use super::error::TokenizerFailed;
use crate::caught::caught;

/// Turns ids into text.
#[derive(Debug)]
pub struct Decoder {
    tokenizer: Arc<Tokenizer>,
    steps: Vec<Step>,
    /// The text between two tokens: a space if the tokenizer has no decoder, since its tokens are words then.
    between: &'static str,
    /// Special tokens.
    special: HashSet<u32>,
    local: bool,
    byte_level: bool,
}

#[derive(Debug)]
enum Step {
    /// Byte tokens become characters.
    Bytes,
    /// A step of the tokenizer's decoder.
    Own(DecoderWrapper),
}

impl Decoder {
    /// The decoder of a tokenizer. The ids `others` are left out of texts, like special tokens.
    pub(super) fn of(tokenizer: &Arc<Tokenizer>, others: impl Iterator<Item = u32>) -> Self {
        let mut steps = Vec::new();
        let between = match tokenizer.get_decoder() {
            Some(decoder) => {
                flatten(decoder, &mut steps);
                ""
            }
            None => " ",
        };
        let added = tokenizer.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).chain(others).collect();
        let local = steps.iter().all(Step::is_local);
        let byte_level =
            !steps.is_empty() && steps.iter().all(|step| matches!(step, Step::Own(DecoderWrapper::ByteLevel(_))));
        Self { tokenizer: Arc::clone(tokenizer), steps, between, special, local, byte_level }
    }

    /// Whether all tokens are bytes. Then earlier tokens matter only if they end within a character.
    pub(super) fn is_byte_level(&self) -> bool {
        self.byte_level
    }

    /// Whether further tokens only add to a text, and a token's text depends on few tokens before it. Then the text of an answer
    /// is what its tokens add to the text of the prompt's last tokens.
    pub(super) fn is_local(&self) -> bool {
        self.local
    }

    /// Whether an id adds to a text.
    pub(super) fn is_text(&self, id: u32) -> bool {
        !self.special.contains(&id) && self.tokenizer.id_to_token(id).is_some()
    }

    /// The text of ids that begin a text, without special tokens.
    ///
    /// # Errors
    /// The tokenizer's decoder fails on the ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerFailed> {
        let ids = ids.iter().filter(|id| !self.special.contains(id));
        let tokens: Vec<String> = ids.filter_map(|&id| self.tokenizer.id_to_token(id)).collect();
        // The tokenizer's decoders may rely on at least one token.
        if tokens.is_empty() {
            return Ok(String::new());
        }
        let decode = || {
            self.steps.iter().try_fold(tokens, |tokens, step| match step {
                Step::Bytes => Ok(characters(tokens)),
                Step::Own(decoder) => decoder.decode_chain(tokens),
            })
        };
        let text = caught(decode).map_err(TokenizerFailed::Panicked)?;
        text.map(|parts| parts.join(self.between)).map_err(|error| TokenizerFailed::Refused(error.to_string()))
    }
}

fn flatten(decoder: &DecoderWrapper, steps: &mut Vec<Step>) {
    match decoder {
        DecoderWrapper::Sequence(all) => all.get_decoders().iter().for_each(|decoder| flatten(decoder, steps)),
        DecoderWrapper::ByteFallback(_) => steps.push(Step::Bytes),
        other => steps.push(Step::Own(other.clone())),
    }
}

impl Step {
    /// Reads the step's kind from its JSON, since the crate does not expose it otherwise.
    fn is_local(&self) -> bool {
        let Self::Own(decoder) = self else { return true };
        let json = serde_json::to_value(decoder).unwrap_or_default();
        match json.get("type").and_then(Value::as_str) {
            Some("ByteLevel" | "Metaspace" | "WordPiece" | "BPEDecoder" | "Fuse") => true,
            Some("Strip") => json.get("stop").and_then(Value::as_u64) == Some(0),
            Some("Replace") => {
                let pattern = json.pointer("/pattern/String").and_then(Value::as_str);
                pattern.is_some_and(|pattern| pattern.chars().count() == 1)
            }
            _ => false,
        }
    }
}

/// Turns byte tokens into characters, and bytes that complete no character into U+FFFD. Other tokens stay.
fn characters(tokens: Vec<String>) -> Vec<String> {
    let mut all = Vec::with_capacity(tokens.len());
    let mut bytes = Vec::new();
    for token in tokens {
        if let Some(byte) = byte(&token) {
            bytes.push(byte);
        } else {
            flush(&mut bytes, &mut all);
            all.push(token);
        }
    }
    flush(&mut bytes, &mut all);
    all
}

fn flush(bytes: &mut Vec<u8>, all: &mut Vec<String>) {
    if !bytes.is_empty() {
        let mut text = String::with_capacity(bytes.len());
        for chunk in bytes.utf8_chunks() {
            text.push_str(chunk.valid());
            text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
        }
        all.push(text);
        bytes.clear();
    }
}

/// The byte that a token such as `<0x0A>` stands for.
pub(super) fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        u8::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(tokens: &[&str]) -> String {
        characters(tokens.iter().map(|&token| token.to_owned()).collect()).concat()
    }

    #[test]
    fn complete_characters_are_kept_and_a_bad_byte_is_one_replacement() {
        assert_eq!(joined(&["<0x41>", "<0x42>", "<0xFF>", "▁one", "▁two"]), "AB\u{fffd}▁one▁two");
        assert_eq!(joined(&["<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0xF0>"]), "😀\u{fffd}");
        assert_eq!(joined(&["<0x0A>", "<0xF0>", "<0x9F>"]), "\n\u{fffd}\u{fffd}");
        assert_eq!(joined(&["<0xE2>", "<0x96>", "a", "<0x81>"]), "\u{fffd}\u{fffd}a\u{fffd}");
        assert_eq!(joined(&["<0x4>", "<0x041>", "<0xG0>", "<0x+1>"]), "<0x4><0x041><0xG0><0x+1>");
    }
}
