//! Token ids to text, by the tokenizer's own decoder but for two things.
//!
//! Special tokens are left out, with tokens that the tokenizer does not have. And bytes that have tokens of their own
//! (`<0xF0>`) become the characters that they complete: the crate's decoder gives up a whole run of them for one that is
//! incomplete. Of other bytes each becomes one U+FFFD.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::{Decoder as _, DecoderWrapper, Tokenizer};

use super::error::TokenizerFailed;
use crate::caught::caught;

/// What turns ids into text.
#[derive(Debug)]
pub struct Decoder {
    tokenizer: Arc<Tokenizer>,
    steps: Vec<Step>,
    /// Without a decoder the tokens are words.
    between: &'static str,
    /// Special tokens.
    special: HashSet<u32>,
    local: bool,
    byte_level: bool,
}

#[derive(Debug)]
enum Step {
    /// Tokens of bytes become characters.
    Bytes,
    /// A step of the tokenizer's own.
    Own(DecoderWrapper),
}

impl Decoder {
    /// That of a tokenizer, in whose texts `others` have no part, as special tokens have none.
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

    /// Whether tokens are nothing but bytes, so that what is before them changes them only where it ends within a character.
    pub(super) fn is_byte_level(&self) -> bool {
        self.byte_level
    }

    /// Whether a text only grows with its tokens, and a token's part of it depends on few others: then the text of some
    /// tokens behind others is what those add to the others' text.
    pub(super) fn is_local(&self) -> bool {
        self.local
    }

    /// Whether an id has a part in a text.
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
        // The decoders may rely on there being some.
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
    /// What a step is, it says only as JSON.
    fn is_local(&self) -> bool {
        let Self::Own(decoder) = self else { return true };
        let said = serde_json::to_value(decoder).unwrap_or_default();
        match said.get("type").and_then(Value::as_str) {
            Some("ByteLevel" | "Metaspace" | "WordPiece" | "BPEDecoder" | "Fuse") => true,
            Some("Strip") => said.get("stop").and_then(Value::as_u64) == Some(0),
            Some("Replace") => {
                let pattern = said.pointer("/pattern/String").and_then(Value::as_str);
                pattern.is_some_and(|pattern| pattern.chars().count() == 1)
            }
            _ => false,
        }
    }
}

/// Tokens of bytes become characters, and bytes that complete none U+FFFD; other tokens stay.
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
