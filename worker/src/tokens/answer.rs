//! The growing text of one member: detokenised, searched for stop strings, and without the part that was sent before.

use super::decode::Decoder;
use super::detokenise::{self, Context, Detokeniser};
use super::error::TokenizerFailed;
use super::stop::StopMatcher;

/// The text of one member.
#[derive(Clone, Debug)]
pub struct Answer {
    detokeniser: Detokeniser,
    matcher: StopMatcher,
    /// Bytes to leave out, since earlier attempts sent them.
    skip: u64,
}

impl Answer {
    /// The text of a new member that ends at any of `stop`. `context` holds the last ids of its prompt.
    pub fn new(context: &Context, stop: Vec<String>) -> Self {
        Self { detokeniser: Detokeniser::behind(context), matcher: StopMatcher::new(stop), skip: 0 }
    }

    /// The text of a resumed member that ends at any of `stop`. Earlier attempts produced the ids `produced` and sent `sent`
    /// bytes of the text; the text after these bytes is appended to `text`. Also returns whether the produced ids already
    /// contain a stop string.
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

    /// Takes an id and appends the text that may now be sent, which is often empty. Returns true if a stop string is complete:
    /// the answer ends before the stop string.
    ///
    /// # Errors
    /// The tokenizer's decoder fails on the ids.
    pub fn push(&mut self, decoder: &Decoder, id: u32, text: &mut String) -> Result<bool, TokenizerFailed> {
        let piece = self.detokeniser.push(decoder, id)?;
        let mut certain = String::new();
        let stopped = self.matcher.push(&piece, &mut certain);
        self.append(&certain, text);
        Ok(stopped)
    }

    /// Ends the answer for another reason than a stop string: appends the text that was held back.
    ///
    /// # Errors
    /// The tokenizer's decoder fails on the ids.
    pub fn finish(&mut self, decoder: &Decoder, text: &mut String) -> Result<(), TokenizerFailed> {
        let tail = self.detokeniser.finish(decoder)?;
        let mut certain = String::new();
        if !self.matcher.push(&tail, &mut certain) {
            self.matcher.finish(&mut certain);
        }
        self.append(&certain, text);
        Ok(())
    }

    fn append(&mut self, piece: &str, text: &mut String) {
        let (skipped, fresh) = skip(piece, self.skip);
        self.skip -= skipped;
        text.push_str(fresh);
    }
}

/// Decodes a whole answer at once and leaves out its first `sent` bytes. For a member that is not streamed and has no stop
/// strings.
///
/// # Errors
/// The tokenizer's decoder fails on the ids.
pub fn whole(decoder: &Decoder, context: &Context, ids: &[u32], sent: u64) -> Result<String, TokenizerFailed> {
    let text = detokenise::whole(decoder, context, ids)?;
    Ok(skip(&text, sent).1.to_owned())
}

/// Leaves out up to `bytes` bytes at the start, in whole characters. Returns the number of bytes left out, and the rest.
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
        /// An answer that is interrupted at any token and resumed is the same as one without interruption.
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
        // Four emoji joined to a family, Thai with combining vowels, an e with a combining accent.
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
    fn a_stop_string_may_begin_with_a_space() {
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
