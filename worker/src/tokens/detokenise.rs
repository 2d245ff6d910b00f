//! Token ids to text, one at a time.
//!
//! A token is not a text: it may hold a part of a character, and its neighbours may decide whether it begins with a
//! space. So an answer is decoded behind the last tokens of its prompt, a short window of ids is decoded again with every
//! new one, and text goes on once its characters are whole. All pieces and the tail together are what [`whole`] makes of
//! all ids at once.

use super::decode::Decoder;
use super::error::TokenizerFailed;

/// Tokens before an id that decide what it looks like: a word before it, or the bytes of a character that it completes.
pub(super) const CONTEXT: usize = 4;
/// Bytes at a text's end that may become another character: an incomplete one has up to three.
const INCOMPLETE: usize = 3;

/// The last ids of a prompt, which decide how the text behind them begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    ids: Vec<u32>,
    /// Bytes of their text that are the prompt's: all but what may be the beginning of a character.
    said: usize,
}

impl Context {
    /// Where `is_whole`, the prompt ends with a character.
    pub(super) fn new(decoder: &Decoder, ids: Vec<u32>, is_whole: bool) -> Result<Self, TokenizerFailed> {
        if ids.is_empty() {
            return Ok(Self::default());
        }
        let text = decoder.decode(&ids)?;
        Ok(Self { said: if is_whole { text.len() } else { complete(&text) }, ids })
    }

    /// Whether an answer begins a text.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// The decoding of one answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Detokeniser {
    window: Vec<u32>,
    /// Bytes of the window's text that were said, or are the prompt's.
    said: usize,
}

impl Detokeniser {
    /// That of an answer behind these last ids of its prompt.
    pub(super) fn behind(context: &Context) -> Self {
        Self { window: context.ids.clone(), said: context.said }
    }

    /// Takes an id and returns the text that is now whole, often none.
    pub(super) fn push(&mut self, decoder: &Decoder, id: u32) -> Result<String, TokenizerFailed> {
        if !decoder.is_text(id) {
            return Ok(String::new());
        }
        self.window.push(id);
        let text = decoder.decode(&self.window)?;
        if !text.is_char_boundary(self.said) {
            // A decoder that takes back what it has said: it goes on from here.
            self.said = complete(&text);
        }
        let piece = text.get(self.said..complete(&text)).unwrap_or_default().to_owned();
        self.said += piece.len();
        if decoder.is_byte_level() && self.said == text.len() {
            // Nothing depends on what is before whole characters.
            self.window.clear();
            self.said = 0;
        } else if self.window.len() > 2 * CONTEXT {
            self.shorten(decoder, text.len() - self.said)?;
        }
        Ok(piece)
    }

    /// Lets go of the window's beginning, where the rest has a text of its own with as much of it unsaid.
    fn shorten(&mut self, decoder: &Decoder, unsaid: usize) -> Result<(), TokenizerFailed> {
        let kept = self.window.len() - CONTEXT;
        let text = decoder.decode(&self.window[kept..])?;
        let said = complete(&text);
        if said > 0 && text.len() - said == unsaid {
            self.window.drain(..kept);
            self.said = said;
        }
        Ok(())
    }

    /// The answer is over: what was held back because a character seemed incomplete.
    pub(super) fn finish(&mut self, decoder: &Decoder) -> Result<String, TokenizerFailed> {
        let text = decoder.decode(&self.window)?;
        let tail = text.get(self.said..).unwrap_or_default().to_owned();
        self.said += tail.len();
        Ok(tail)
    }
}

/// A whole answer behind the last ids of its prompt, decoded at once.
pub(super) fn whole(decoder: &Decoder, context: &Context, ids: &[u32]) -> Result<String, TokenizerFailed> {
    if decoder.is_local() {
        let text = decoder.decode(&[&context.ids, ids].concat())?;
        return Ok(text.get(context.said..).unwrap_or_default().to_owned());
    }
    let mut detokeniser = Detokeniser::behind(context);
    let mut text = String::new();
    for &id in ids {
        text.push_str(&detokeniser.push(decoder, id)?);
    }
    text.push_str(&detokeniser.finish(decoder)?);
    Ok(text)
}

/// Where the part of a text ends that no later token changes.
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

    const NONE: Context = Context { ids: Vec::new(), said: 0 };

    fn pieces(tokens: &Tokens, context: &Context, ids: &[u32]) -> Vec<String> {
        let mut detokeniser = Detokeniser::behind(context);
        let mut pieces: Vec<String> = ids.iter().map(|&id| detokeniser.push(&tokens.decoder, id).unwrap()).collect();
        pieces.push(detokeniser.finish(&tokens.decoder).unwrap());
        pieces
    }

    #[test]
    fn a_character_goes_on_once_it_is_whole() {
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
    fn tokens_of_bytes_stream_as_they_are_answered_whole() {
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
    fn the_space_before_the_first_word_is_the_prompts_to_decide() {
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
    fn a_character_that_the_prompt_began_is_the_answers() {
        let tokens = byte_fallback();
        let id = |name: &str| tokens.tokenizer.token_to_id(name).unwrap();
        let ids = [id("<0x98>"), id("<0x80>")];
        let context = tokens.context(&[id("<0xF0>"), id("<0x9F>")], PromptKind::Ids).unwrap();
        assert_eq!(whole(&tokens.decoder, &context, &ids).unwrap(), "😀");
        assert_eq!(pieces(&tokens, &context, &ids).concat(), "😀");
    }

    #[test]
    fn a_replacement_character_of_the_prompt_is_no_part_of_the_answer() {
        for (name, tokens) in [("byte-level", byte_tokens()), ("byte-fallback", byte_fallback())] {
            let prompt = tokens.encode("one\u{fffd}", usize::MAX).unwrap();
            let answer = &tokens.encode("one two", usize::MAX).unwrap()[1..];
            for kind in [PromptKind::Text, PromptKind::Chat] {
                let context = tokens.context(&prompt, kind).unwrap();
                let said = whole(&tokens.decoder, &context, answer).unwrap();
                assert!(!said.contains('\u{fffd}') && !said.is_empty(), "{name}: {said}");
                assert_eq!(pieces(&tokens, &context, answer).concat(), said, "{name}");
                assert_eq!(whole(&tokens.decoder, &context, &[]).unwrap(), "", "{name}");
            }
        }
    }

    #[test]
    fn a_decoder_that_takes_back_what_it_said_ends_nothing() {
        let tokens = shrinking();
        let id = |name: &str| tokens.tokenizer.token_to_id(name).unwrap();
        let ids = [vec![id("one"); 11], vec![id("a"), id("b"), id("two")]].concat();
        let streamed = pieces(&tokens, &NONE, &ids).concat();
        assert_eq!(streamed, whole(&tokens.decoder, &NONE, &ids).unwrap());
        assert!(streamed.ends_with("two"), "{streamed}");
    }

    #[test]
    fn a_window_stays_short_whatever_comes() {
        for (name, tokens) in families() {
            for id in 0..tokens.vocabulary() {
                let mut detokeniser = Detokeniser::default();
                for _ in 0..10 * CONTEXT {
                    detokeniser.push(&tokens.decoder, id).unwrap();
                }
                let is_short = detokeniser.window.len() <= 2 * CONTEXT + 1;
                // A token without a text of its own tells nothing of what comes before it.
                assert!(is_short || tokens.decoder.decode(&[id; 8]).unwrap().is_empty(), "{name}: {id}");
            }
        }
    }

    proptest! {
        /// For every kind of decoder: a stream's pieces are the whole answer, behind whatever prompt, and without a prompt
        /// they are the decoding of all ids.
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

        /// What a text becomes, prompt and answer together, is what each of them says.
        #[test]
        fn a_text_is_continued_where_it_was_cut(text in "[abc one two€😀.]{1,40}", cut in 0usize..60) {
            for (name, tokens) in families() {
                let ids = tokens.encode(&text, usize::MAX).unwrap();
                let (prompt, answer) = ids.split_at(cut.min(ids.len()));
                let before = tokens.decoder.decode(prompt).unwrap();
                if complete(&before) < before.len() {
                    continue;
                }
                let said = whole(&tokens.decoder, &tokens.context(prompt, PromptKind::Text).unwrap(), answer).unwrap();
                let all = tokens.decoder.decode(&ids).unwrap();
                prop_assert_eq!(before + &said, all, "{}", name);
            }
        }
    }
}
