//! The fewest tokens that a text of some length can have. A text that is certain to be too long is refused without tokenising
//! it, which could take seconds.

use tokenizers::{ModelWrapper, NormalizedString, Normalizer as _, PreTokenizerWrapper, Tokenizer};

use super::error::{PromptFailed, TokenizerFailed};
use crate::caught::caught;

/// A bound on the tokens of a text.
#[derive(Debug)]
pub(super) struct Lengths {
    /// The most bytes of a text that one token covers. `None` if a token can cover any number, such as an unknown word.
    longest: Option<usize>,
}

impl Lengths {
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        let added = tokenizer.get_added_tokens_decoder();
        let strips = added.values().any(|token| !token.special && (token.lstrip || token.rstrip));
        let is_byte_level = tokenizer.get_pre_tokenizer().is_some_and(is_byte_level);
        let vocabulary = tokenizer.get_vocab(false);
        let has = |token: String| vocabulary.contains_key(&token);
        // If every byte has a token, no byte is left out and no run of bytes becomes one unknown token.
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

    /// Refuses a text that is certain to have more than `most` tokens.
    pub(super) fn check(&self, tokenizer: &Tokenizer, text: &str, most: usize) -> Result<(), PromptFailed> {
        let Some(longest) = self.longest.filter(|longest| text.len().div_ceil(*longest) > most) else { return Ok(()) };
        let bytes = match tokenizer.get_normalizer() {
            None => text.len(),
            Some(normalizer) => {
                let mut text = NormalizedString::from(text);
                caught(|| normalizer.normalize(&mut text))
                    .map_err(TokenizerFailed::Panicked)?
                    .map_err(|error| TokenizerFailed::Refused(error.to_string()))?;
                // The tokenizer may search for added tokens in the text before normalisation.
                text.get().len().min(text.get_original().len())
            }
        };
        too_long(bytes.div_ceil(longest), most)
    }

    /// Refuses a chat's text as [`Lengths::check`] does. Its special tokens may absorb the spaces around them.
    pub(super) fn check_chat(&self, text: &str, most: usize) -> Result<(), PromptFailed> {
        let Some(longest) = self.longest.filter(|longest| text.len().div_ceil(*longest) > most) else { return Ok(()) };
        let bytes: usize = text.split_whitespace().map(str::len).sum();
        // A normalizer may join a few characters, such as an accent and its letter.
        too_long((bytes / 4).div_ceil(longest), most)
    }
}

fn too_long(least: usize, most: usize) -> Result<(), PromptFailed> {
    if least > most { Err(PromptFailed::TooLong(least)) } else { Ok(()) }
}

/// Whether a pre-tokenizer leaves out a part of a text. Only its JSON shows this for all kinds.
fn deletes(pre_tokenizer: &PreTokenizerWrapper) -> bool {
    let json = serde_json::to_string(pre_tokenizer).unwrap_or_default();
    ["\"Removed\"", "\"Whitespace", "\"BertPreTokenizer\"", "\"CharDelimiterSplit\""]
        .iter()
        .any(|name| json.contains(name))
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
    fn a_text_with_few_enough_tokens_is_never_refused() {
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
