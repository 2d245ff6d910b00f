//! How few tokens a text can have, told from its length: what is sure to be too long is refused before it is tokenised,
//! which can take seconds.

use tokenizers::{ModelWrapper, NormalizedString, Normalizer as _, PreTokenizerWrapper, Tokenizer};

use super::error::{PromptFailed, TokenizerFailed};
use crate::caught::caught;

/// What is known of a tokenizer's tokens.
#[derive(Debug)]
pub(super) struct Lengths {
    /// The most bytes of a text that one token stands for. `None` where a token can stand for any number: an unknown word,
    /// say.
    longest: Option<usize>,
}

impl Lengths {
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        let added = tokenizer.get_added_tokens_decoder();
        let strips = added.values().any(|token| !token.special && (token.lstrip || token.rstrip));
        let is_byte_level = tokenizer.get_pre_tokenizer().is_some_and(is_byte_level);
        let vocabulary = tokenizer.get_vocab(false);
        let has = |token: String| vocabulary.contains_key(&token);
        // Every byte has a token, so that none is left out or joined to others as unknown.
        let is_whole = match tokenizer.get_model() {
            ModelWrapper::BPE(bpe) if bpe.byte_fallback => (0..=u8::MAX).all(|byte| has(format!("<0x{byte:02X}>"))),
            ModelWrapper::BPE(_) if is_byte_level => {
                tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().all(|byte| has(byte.into()))
            }
            _ => false,
        };
        let deletes = tokenizer.get_pre_tokenizer().is_some_and(deletes);
        // A byte-level token has a character for each of its bytes.
        let length = |token: &String| if is_byte_level { token.chars().count() } else { token.len() };
        let longest = vocabulary.keys().map(length).chain(added.values().map(|token| token.content.len())).max();
        Self { longest: longest.filter(|_| is_whole && !strips && !deletes) }
    }

    /// Refuses a text that has more than `most` tokens whatever it says.
    pub(super) fn check(&self, tokenizer: &Tokenizer, text: &str, most: usize) -> Result<(), PromptFailed> {
        let Some(longest) = self.longest.filter(|longest| text.len().div_ceil(*longest) > most) else { return Ok(()) };
        let bytes = match tokenizer.get_normalizer() {
            None => text.len(),
            Some(normalizer) => {
                let mut text = NormalizedString::from(text);
                caught(|| normalizer.normalize(&mut text))
                    .map_err(TokenizerFailed::Panicked)?
                    .map_err(|error| TokenizerFailed::Refused(error.to_string()))?;
                // Added tokens may be looked for in the text as it was.
                text.get().len().min(text.get_original().len())
            }
        };
        too_long(bytes.div_ceil(longest), most)
    }

    /// The same for a chat's text, in which special tokens may take in the spaces around them.
    pub(super) fn check_chat(&self, text: &str, most: usize) -> Result<(), PromptFailed> {
        let Some(longest) = self.longest.filter(|longest| text.len().div_ceil(*longest) > most) else { return Ok(()) };
        let bytes: usize = text.split_whitespace().map(str::len).sum();
        // A normalizer may join a few characters to one, as accents to their letters.
        too_long((bytes / 4).div_ceil(longest), most)
    }
}

fn too_long(least: usize, most: usize) -> Result<(), PromptFailed> {
    if least > most { Err(PromptFailed::TooLong(least)) } else { Ok(()) }
}

/// Whether a pre-tokenizer leaves something of a text out, which only its own JSON says of all kinds.
fn deletes(pre_tokenizer: &PreTokenizerWrapper) -> bool {
    let said = serde_json::to_string(pre_tokenizer).unwrap_or_default();
    ["\"Removed\"", "\"Whitespace", "\"BertPreTokenizer\"", "\"CharDelimiterSplit\""]
        .iter()
        .any(|name| said.contains(name))
}

fn is_byte_level(pre_tokenizer: &PreTokenizerWrapper) -> bool {
    match pre_tokenizer {
        PreTokenizerWrapper::ByteLevel(_) => true,
        PreTokenizerWrapper::Sequence(all) => all.as_ref().iter().any(is_byte_level),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{byte_fallback, byte_tokens, families};
    use super::*;

    #[test]
    fn a_text_is_never_refused_that_has_few_enough_tokens() {
        let texts = ["", "a", "one two one two", "€€€€", "   a   ", "\n\n", "unknownunknown", "e\u{301}"];
        for (name, tokens) in families() {
            for text in texts.into_iter().map(|text| text.repeat(50)) {
                let ids = tokens.encode(&text, usize::MAX).unwrap();
                assert_eq!(tokens.encode(&text, ids.len()).unwrap(), ids, "{name}: {text:?}");
            }
        }
    }

    #[test]
    fn a_text_that_must_be_too_long_is_not_tokenised() {
        for tokens in [byte_tokens(), byte_fallback()] {
            let longest = tokens.lengths.longest.unwrap();
            assert!((1..=7).contains(&longest), "{longest}");
            let text = "1".repeat(longest * 100 + 1);
            assert!(matches!(tokens.encode(&text, 100), Err(PromptFailed::TooLong(least)) if least > 100));
        }
    }
}
