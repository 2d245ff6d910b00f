//! Turns token ids into text, one at a time.
//!
//! A token has no text of its own: it may hold a part of a character, and its neighbours may decide whether it begins with a
//! space. So an answer is decoded together with the last tokens of its prompt, a short window of ids is decoded again with
//! every new id, and text is returned once its characters are complete. All pieces and the tail together equal the text that
//! [`whole`] makes of all ids at once.

use super::decode::Decoder;
use super::error::TokenizerFailed;

/// The number of tokens before an id that can change its text: the word before it, or the bytes of a character.
pub(super) const CONTEXT: usize = 4;
/// The most bytes of an incomplete character at a text's end.
const INCOMPLETE: usize = 3;

/// The last ids of a prompt, which decide how the text behind them begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    ids: Vec<u32>,
    /// Bytes of the ids' text that belong to the prompt: all except the beginning of an incomplete character.
    done: usize,
}

impl Context {
    /// `is_whole` says that the prompt does not end within a character.
    pub(super) fn new(decoder: &Decoder, ids: Vec<u32>, is_whole: bool) -> Result<Self, TokenizerFailed> {
        if ids.is_empty() {
            return Ok(Self::default());
        }
        let text = decoder.decode(&ids)?;
        Ok(Self { done: if is_whole { text.len() } else { complete(&text) }, ids })
    }

    /// Whether an answer begins its text without a context.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// The decoding of one answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Detokeniser {
    window: Vec<u32>,
    /// Bytes of the window's text that were returned or belong to the prompt.
    done: usize,
}

impl Detokeniser {
    /// The decoding of an answer in the context of its prompt's last ids.
    pub(super) fn behind(context: &Context) -> Self {
        Self { window: context.ids.clone(), done: context.done }
    }

    /// Takes an id and returns the text that is now complete, which is often empty.
    pub(super) fn push(&mut self, decoder: &Decoder, id: u32) -> Result<String, TokenizerFailed> {
        if !decoder.is_text(id) {
            return Ok(String::new());
        }
        self.window.push(id);
        let text = decoder.decode(&self.window)?;
        if !text.is_char_boundary(self.done) {
            // The decoder has changed text that was returned; continue after the present text.
            self.done = complete(&text);
        }
        let piece = text.get(self.done..complete(&text)).unwrap_or_default().to_owned();
        self.done += piece.len();
        if decoder.is_byte_level() && self.done == text.len() {
            // If all tokens are bytes, nothing depends on complete characters.
            self.window.clear();
            self.done = 0;
        } else if self.window.len() > 2 * CONTEXT {
            self.shorten(decoder, text.len() - self.done)?;
        }
        Ok(piece)
    }

    /// Drops the beginning of the window if the rest alone has the same unreturned text.
    fn shorten(&mut self, decoder: &Decoder, left: usize) -> Result<(), TokenizerFailed> {
        let kept = self.window.len() - CONTEXT;
        let text = decoder.decode(&self.window[kept..])?;
        let done = complete(&text);
        if done > 0 && text.len() - done == left {
            self.window.drain(..kept);
            self.done = done;
        }
        Ok(())
    }

    /// Ends the answer: returns the text that was held back because a character was incomplete.
    pub(super) fn finish(&mut self, decoder: &Decoder) -> Result<String, TokenizerFailed> {
        let text = decoder.decode(&self.window)?;
        let tail = text.get(self.done..).unwrap_or_default().to_owned();
        self.done += tail.len();
        Ok(tail)
    }
}

/// Decodes a whole answer at once in the context of its prompt.
pub(super) fn whole(decoder: &Decoder, context: &Context, ids: &[u32]) -> Result<String, TokenizerFailed> {
    if decoder.is_local() {
        let text = decoder.decode(&[&context.ids, ids].concat())?;
        return Ok(text.get(context.done..).unwrap_or_default().to_owned());
    }
    let mut detokeniser = Detokeniser::behind(context);
    let mut text = String::new();
    for &id in ids {
        text.push_str(&detokeniser.push(decoder, id)?);
    }
    text.push_str(&detokeniser.finish(decoder)?);
    Ok(text)
}

/// The length of the part of a text that no later token changes.
fn complete(text: &str) -> usize {
    let last = text.char_indices().rev().take(INCOMPLETE);
    last.take_while(|(_, character)| *character == char::REPLACEMENT_CHARACTER).last().map_or(text.len(), |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::samples::{byte_fallback, byte_tokens, families, shrinking};
    use super::super::{PromptKind, Tokens};
    use super::*;

    const NONE: Context = Context { ids: Vec::new(), done: 0 };

    fn pieces(tokens: &Tokens, context: &Context, ids: &[u32]) -> Vec<String> {
        let mut detokeniser = Detokeniser::behind(context);
        let mut pieces: Vec<String> = ids.iter().map(|&id| detokeniser.push(&tokens.decoder, id).unwrap()).collect();
        pieces.push(detokeniser.finish(&tokens.decoder).unwrap());
        pieces
    }

    #[test]
    fn a_character_is_returned_once_it_is_complete() {
        let tokens = byte_tokens();
        let ids = tokens.encode("a€b", usize::MAX).unwrap();
        assert_eq!(pieces(&tokens, &NONE, &ids), ["a", "", "", "€", "b", ""]);
    }

    #[test]
    fn half_a_character_at_the_end_is_not_lost() {
        let tokens = byte_tokens();
        let ids = tokens.encode("a€", usize::MAX).unwrap();
        let joined = pieces(&tokens, &NONE, &ids[..3]).concat();
        assert_eq!(joined, tokens.decoder.decode(&ids[..3]).unwrap());
        assert!(joined.starts_with('a') && joined.len() > 1);
    }

    #[test]
    fn byte_tokens_stream_to_the_same_text_as_a_whole_answer() {
        let tokens = byte_fallback();
        for (names, text) in [
            (&["<0x41>", "<0x42>", "<0xFF>", "▁one", "▁two"][..], "AB\u{fffd} one two"),
            (&["<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0xF0>"], "😀\u{fffd}"),
            (&["<0x0A>", "<0xF0>", "<0x9F>"], "\n\u{fffd}\u{fffd}"),
        ] {
            let ids: Vec<u32> = names.iter().map(|name| tokens.tokenizer.token_to_id(name).unwrap()).collect();
            assert_eq!(whole(&tokens.decoder, &NONE, &ids).unwrap(), text);
            assert_eq!(pieces(&tokens, &NONE, &ids).concat(), text);
        }
    }

    #[test]
    fn the_prompt_decides_about_the_space_before_the_first_word() {
        let tokens = byte_fallback();
        let prompt = tokens.encode("one", usize::MAX).unwrap();
        let answer = [tokens.tokenizer.token_to_id("▁two").unwrap()];
        let behind = tokens.context(&prompt, PromptKind::Text).unwrap();
        for (context, text) in [(&behind, " two"), (&NONE, "two")] {
            assert_eq!(whole(&tokens.decoder, context, &answer).unwrap(), text);
            assert_eq!(pieces(&tokens, context, &answer).concat(), text);
        }
    }

    #[test]
    fn a_character_that_the_prompt_began_belongs_to_the_answer() {
        let tokens = byte_fallback();
        let id = |name: &str| tokens.tokenizer.token_to_id(name).unwrap();
        let ids = [id("<0x98>"), id("<0x80>")];
        let context = tokens.context(&[id("<0xF0>"), id("<0x9F>")], PromptKind::Ids).unwrap();
        assert_eq!(whole(&tokens.decoder, &context, &ids).unwrap(), "😀");
        assert_eq!(pieces(&tokens, &context, &ids).concat(), "😀");
    }

    #[test]
    fn a_replacement_character_of_the_prompt_is_not_in_the_answer() {
        for (name, tokens) in [("byte-level", byte_tokens()), ("byte-fallback", byte_fallback())] {
            let prompt = tokens.encode("one\u{fffd}", usize::MAX).unwrap();
            let answer = &tokens.encode("one two", usize::MAX).unwrap()[1..];
            for kind in [PromptKind::Text, PromptKind::Chat] {
                let context = tokens.context(&prompt, kind).unwrap();
                let text_of_answer = whole(&tokens.decoder, &context, answer).unwrap();
                assert!(!text_of_answer.contains('\u{fffd}') && !text_of_answer.is_empty(), "{name}: {text_of_answer}");
                assert_eq!(pieces(&tokens, &context, answer).concat(), text_of_answer, "{name}");
                assert_eq!(whole(&tokens.decoder, &context, &[]).unwrap(), "", "{name}");
            }
        }
    }

    #[test]
    fn a_decoder_that_changes_earlier_text_does_not_end_the_stream() {
        let tokens = shrinking();
        let id = |name: &str| tokens.tokenizer.token_to_id(name).unwrap();
        let ids = [vec![id("one"); 11], vec![id("a"), id("b"), id("two")]].concat();
        let streamed = pieces(&tokens, &NONE, &ids).concat();
        assert_eq!(streamed, whole(&tokens.decoder, &NONE, &ids).unwrap());
        assert!(streamed.ends_with("two"), "{streamed}");
    }

    #[test]
    fn a_window_stays_short_for_every_token() {
        for (name, tokens) in families() {
            for id in 0..tokens.vocabulary() {
                let mut detokeniser = Detokeniser::default();
                for _ in 0..10 * CONTEXT {
                    detokeniser.push(&tokens.decoder, id).unwrap();
                }
                let is_short = detokeniser.window.len() <= 2 * CONTEXT + 1;
                // A token without a text does not show where the text before it ends.
                assert!(is_short || tokens.decoder.decode(&[id; 8]).unwrap().is_empty(), "{name}: {id}");
            }
        }
    }

    proptest! {
        /// For every kind of decoder: a stream's pieces equal the whole answer after any prompt, and the decoding of all ids without
        /// a prompt.
        #[test]
        fn pieces_joined_are_the_whole(
            numbers in proptest::collection::vec(0u32..1000, 0..60),
            prompt in 0usize..20,
        ) {
            for (name, tokens) in families() {
                let ids: Vec<u32> = numbers.iter().map(|number| number % tokens.vocabulary()).collect();
                let (prompt, answer) = ids.split_at(prompt.min(ids.len()));
                let context = tokens.context(prompt, PromptKind::Ids).unwrap();
                let streamed = pieces(&tokens, &context, answer).concat();
                prop_assert_eq!(&streamed, &whole(&tokens.decoder, &context, answer).unwrap(), "{}", name);
                let alone = pieces(&tokens, &NONE, &ids).concat();
                prop_assert_eq!(&alone, &tokens.decoder.decode(&ids).unwrap(), "{}", name);
            }
        }

        /// The texts of prompt and answer together are the text of all their ids.
        #[test]
        fn a_text_is_continued_where_it_was_cut(text in "[abc one two€😀.]{1,40}", cut in 0usize..60) {
            for (name, tokens) in families() {
                let ids = tokens.encode(&text, usize::MAX).unwrap();
                let (prompt, answer) = ids.split_at(cut.min(ids.len()));
                let before = tokens.decoder.decode(prompt).unwrap();
                if complete(&before) < before.len() {
                    continue;
                }
                let text_of_answer = whole(&tokens.decoder, &tokens.context(prompt, PromptKind::Text).unwrap(), answer).unwrap();
                let all = tokens.decoder.decode(&ids).unwrap();
                prop_assert_eq!(before + &text_of_answer, all, "{}", name);
            }
        }
    }
}
