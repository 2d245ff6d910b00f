//! One member's text as it grows: detokenised, watched for stop strings, and without what was sent before.

use super::decode::Decoder;
use super::detokenise::{self, Context, Detokeniser};
use super::error::TokenizerFailed;
use super::stop::StopMatcher;

/// The text of one member.
#[derive(Clone, Debug)]
pub struct Answer {
    detokeniser: Detokeniser,
    matcher: StopMatcher,
    /// Bytes that earlier attempts have sent.
    skip: u64,
}

impl Answer {
    /// The text of a new member that ends at any of `stop`, behind the last ids of its prompt.
    pub fn new(context: &Context, stop: Vec<String>) -> Self {
        Self { detokeniser: Detokeniser::behind(context), matcher: StopMatcher::new(stop), skip: 0 }
    }

    /// The text of a member that ends at any of `stop`, has produced these ids in earlier attempts and of whose text so
    /// many bytes were sent: as it stood when the last attempt broke off. The text already sent is not repeated. True
    /// where what was produced already ends with a stop string.
    ///
    /// # Errors
    /// The tokenizer's decoder fails on the ids.
    pub fn resume(
        decoder: &Decoder,
        context: &Context,
        stop: Vec<String>,
        produced: &[u32],
        sent: u64,
        text: &mut String,
    ) -> Result<(Self, bool), TokenizerFailed> {
        let mut answer = Self { skip: sent, ..Self::new(context, stop) };
        for &id in produced {
            if answer.push(decoder, id, text)? {
                return Ok((answer, true));
            }
        }
        Ok((answer, false))
    }

    /// Takes an id and appends the text that may now be sent, often none. True where a stop string is complete: the
    /// answer is over, and the stop string is no part of it.
    ///
    /// # Errors
    /// The tokenizer's decoder fails on the ids.
    pub fn push(&mut self, decoder: &Decoder, id: u32, text: &mut String) -> Result<bool, TokenizerFailed> {
        let piece = self.detokeniser.push(decoder, id)?;
        let mut sure = String::new();
        let stopped = self.matcher.push(&piece, &mut sure);
        self.say(&sure, text);
        Ok(stopped)
    }

    /// The answer is over for another reason than a stop string: appends what was held back.
    ///
    /// # Errors
    /// The tokenizer's decoder fails on the ids.
    pub fn finish(&mut self, decoder: &Decoder, text: &mut String) -> Result<(), TokenizerFailed> {
        let tail = self.detokeniser.finish(decoder)?;
        let mut sure = String::new();
        if !self.matcher.push(&tail, &mut sure) {
            self.matcher.finish(&mut sure);
        }
        self.say(&sure, text);
        Ok(())
    }

    fn say(&mut self, piece: &str, text: &mut String) {
        let (skipped, fresh) = skip(piece, self.skip);
        self.skip -= skipped;
        text.push_str(fresh);
    }
}

/// A whole answer behind the last ids of its prompt, decoded at once, without its first `sent` bytes: for a member whose
/// text nobody watches or streams.
///
/// # Errors
/// The tokenizer's decoder fails on the ids.
pub fn whole(decoder: &Decoder, context: &Context, ids: &[u32], sent: u64) -> Result<String, TokenizerFailed> {
    let text = detokenise::whole(decoder, context, ids)?;
    Ok(skip(&text, sent).1.to_owned())
}

/// Leaves out up to `bytes` bytes at the start, by whole characters: how many were left out, and the rest.
fn skip(text: &str, bytes: u64) -> (u64, &str) {
    let wanted = usize::try_from(bytes).unwrap_or(usize::MAX).min(text.len());
    let at = (0..=wanted).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    (at as u64, &text[at..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::samples::{byte_fallback, byte_tokens};
    use super::super::{PromptKind, Tokens};
    use super::*;

    fn finish(tokens: &Tokens, mut answer: Answer, ids: &[u32], text: &mut String) {
        for &id in ids {
            if answer.push(&tokens.decoder, id, text).unwrap() {
                return;
            }
        }
        answer.finish(&tokens.decoder, text).unwrap();
    }

    fn fresh(stop: &[String]) -> Answer {
        Answer::new(&Context::default(), stop.to_vec())
    }

    proptest! {
        /// Broken off anywhere and continued, an answer is what it would have been in one go.
        #[test]
        fn an_answer_can_be_resumed_anywhere(
            text in "[abé€ ]{0,20}",
            stop in proptest::collection::vec("[abé]{1,3}", 0..3),
            cut in 0usize..40,
        ) {
            let tokens = byte_tokens();
            let ids = tokens.encode(&text, 100).unwrap();
            let mut whole = String::new();
            finish(&tokens, fresh(&stop), &ids, &mut whole);

            let (produced, rest) = ids.split_at(cut.min(ids.len()));
            let mut sent = String::new();
            let mut first = fresh(&stop);
            let stopped = produced.iter().any(|&id| first.push(&tokens.decoder, id, &mut sent).unwrap());
            prop_assume!(!stopped);

            let mut later = String::new();
            let (second, stopped) =
                Answer::resume(&tokens.decoder, &Context::default(), stop, produced, sent.len() as u64, &mut later).unwrap();
            prop_assert!(!stopped && later.is_empty());
            finish(&tokens, second, rest, &mut later);
            prop_assert_eq!(sent + &later, whole);
        }
    }

    #[test]
    fn characters_of_many_bytes_arrive_whole_at_every_split() {
        // A family that is joined of four emoji, Thai with its vowels above, an e with an accent of its own.
        let text = "a\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}\u{200d}\u{1f466} \u{e17}\u{e35}\u{e48} e\u{301}.";
        let tokens = byte_tokens();
        let ids = tokens.encode(text, 100).unwrap();
        assert!(ids.len() > text.chars().count(), "a token is less than a character");
        for cut in 0..=ids.len() {
            let (produced, rest) = ids.split_at(cut);
            let (mut sent, mut later) = (String::new(), String::new());
            let mut first = fresh(&[]);
            for &id in produced {
                first.push(&tokens.decoder, id, &mut sent).unwrap();
                assert!(text.starts_with(&sent), "{sent:?}");
            }
            let (second, _) = Answer::resume(
                &tokens.decoder,
                &Context::default(),
                Vec::new(),
                produced,
                sent.len() as u64,
                &mut later,
            )
            .unwrap();
            finish(&tokens, second, rest, &mut later);
            assert_eq!(sent + &later, text, "cut at {cut}");
        }
    }

    #[test]
    fn a_stop_string_begins_with_the_space_that_is_before_it() {
        let tokens = byte_fallback();
        let context = tokens.context(&tokens.encode("one", 100).unwrap(), PromptKind::Text).unwrap();
        let ids = tokens.encode("one two", 100).unwrap();
        let mut text = String::new();
        let (_, stopped) =
            Answer::resume(&tokens.decoder, &context, vec![" two".to_owned()], &ids[1..], 0, &mut text).unwrap();
        assert!(stopped);
        assert_eq!(text, " one");
    }

    #[test]
    fn a_whole_answer_leaves_out_what_was_sent() {
        let tokens = byte_tokens();
        let ids = tokens.encode("né", 100).unwrap();
        assert_eq!(super::whole(&tokens.decoder, &Context::default(), &ids, 1).unwrap(), "é");
        assert_eq!(
            super::whole(&tokens.decoder, &Context::default(), &ids, 2).unwrap(),
            "é",
            "half a character cannot have been sent"
        );
        assert_eq!(super::whole(&tokens.decoder, &Context::default(), &ids, 99).unwrap(), "");
    }
}
