//! Token ids to text, one at a time.
//!
//! A token is not a text: it may hold a part of a character, and its neighbours may decide whether it begins with a
//! space. So a short window of ids is decoded again with every new id (tokenizers' `decode_stream`), and text goes on
//! once it is whole. All pieces and the tail together equal the decoding of all ids at once.

use tokenizers::tokenizer::step_decode_stream;

use super::{TokenizerFailed, Tokens};

/// The decoding of one answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Detokeniser {
    window: Vec<u32>,
    prefix: String,
    prefix_index: usize,
    /// All ids, for the decoders that the window does not suit.
    ids: Vec<u32>,
    said: usize,
}

impl Detokeniser {
    /// Takes an id and returns the text that is now whole, often none.
    pub(super) fn push(&mut self, tokens: &Tokens, id: u32) -> Result<String, TokenizerFailed> {
        self.ids.push(id);
        let step = step_decode_stream(
            &tokens.tokenizer,
            vec![id],
            true,
            &mut self.window,
            &mut self.prefix,
            &mut self.prefix_index,
        );
        let piece = if let Ok(piece) = step {
            piece.unwrap_or_default()
        } else {
            // The window's beginning decodes otherwise than it did: a decoder that looks further back. Start over from
            // the whole answer; the window goes on from here.
            self.window.clear();
            self.prefix.clear();
            self.prefix_index = 0;
            self.rest(tokens)?
        };
        self.said += piece.len();
        Ok(piece)
    }

    /// The answer is over: what was held back because a character seemed incomplete.
    pub(super) fn finish(&mut self, tokens: &Tokens) -> Result<String, TokenizerFailed> {
        let tail = self.rest(tokens)?;
        self.said += tail.len();
        Ok(tail)
    }

    fn rest(&self, tokens: &Tokens) -> Result<String, TokenizerFailed> {
        let all = tokens.decode(&self.ids)?;
        Ok(all.get(self.said..).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::byte_tokens;
    use super::*;

    fn pieces(ids: &[u32]) -> Vec<String> {
        let tokens = byte_tokens();
        let mut detokeniser = Detokeniser::default();
        let mut pieces: Vec<String> = ids.iter().map(|&id| detokeniser.push(&tokens, id).unwrap()).collect();
        pieces.push(detokeniser.finish(&tokens).unwrap());
        pieces
    }

    #[test]
    fn a_character_goes_on_once_it_is_whole() {
        let ids = byte_tokens().encode("a€b").unwrap();
        assert_eq!(pieces(&ids), ["a", "", "", "€", "b", ""]);
    }

    #[test]
    fn half_a_character_at_the_end_is_not_lost() {
        let ids = byte_tokens().encode("a€").unwrap();
        let joined = pieces(&ids[..3]).concat();
        assert_eq!(joined, byte_tokens().decode(&ids[..3]).unwrap());
        assert!(joined.starts_with('a') && joined.len() > 1);
    }

    proptest! {
        #[test]
        fn pieces_joined_are_the_whole(ids in proptest::collection::vec(0u32..257, 0..40)) {
            prop_assert_eq!(pieces(&ids).concat(), byte_tokens().decode(&ids).unwrap());
        }

        #[test]
        fn texts_come_back(text in "\\PC{0,30}") {
            let ids = byte_tokens().encode(&text).unwrap();
            prop_assert_eq!(pieces(&ids).concat(), text);
        }
    }
}
