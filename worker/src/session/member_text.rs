//! The text of one member, made from its tokens.

use pillion_protocol::frame::Member;

use crate::tokens::{Answer, Context, Decoder, TokenizerFailed, whole};

/// How a member's text is made.
#[derive(Debug)]
pub(super) enum MemberText {
    /// The engine thread makes it, since it looks for stop strings.
    FromEngine,
    /// The session makes it piece by piece. `answer` is built when the first token comes.
    Streamed { context: Context, produced: Vec<u32>, sent: u64, answer: Option<Answer> },
    /// The session makes it at once, at the member's end.
    Whole { context: Context, produced: Vec<u32>, sent: u64 },
}

impl MemberText {
    pub(super) fn of(member: &Member) -> Self {
        let Member { produced, sent, .. } = member;
        if !member.stop.is_empty() {
            Self::FromEngine
        } else if member.stream {
            Self::Streamed { context: Context::default(), produced: produced.clone(), sent: *sent, answer: None }
        } else {
            Self::Whole { context: Context::default(), produced: produced.clone(), sent: *sent }
        }
    }

    /// Sets the last ids of the prompt. They are known before the first token comes.
    pub(super) fn set_context(&mut self, prompt: Context) {
        match self {
            Self::FromEngine => {}
            Self::Streamed { context, .. } | Self::Whole { context, .. } => *context = prompt,
        }
    }

    /// Takes new tokens and returns the text that may now be sent.
    pub(super) fn push(&mut self, decoder: &Decoder, ids: &[u32]) -> Result<String, TokenizerFailed> {
        let mut text = String::new();
        match self {
            Self::FromEngine => {}
            Self::Whole { produced, .. } => produced.extend(ids),
            Self::Streamed { context, produced, sent, answer } => {
                let answer = started(decoder, context, produced, *sent, answer, &mut text)?;
                for &id in ids {
                    answer.push(decoder, id, &mut text)?;
                }
            }
        }
        Ok(text)
    }

    /// Returns the text that is left once the member has finished.
    pub(super) fn finish(&mut self, decoder: &Decoder) -> Result<String, TokenizerFailed> {
        match self {
            Self::FromEngine => Ok(String::new()),
            Self::Whole { context, produced, sent } => whole(decoder, context, produced, *sent),
            Self::Streamed { context, produced, sent, answer } => {
                let mut text = String::new();
                started(decoder, context, produced, *sent, answer, &mut text)?.finish(decoder, &mut text)?;
                Ok(text)
            }
        }
    }
}

/// The answer, built from what earlier attempts produced if it does not exist yet.
fn started<'a>(
    decoder: &Decoder,
    context: &Context,
    produced: &[u32],
    sent: u64,
    answer: &'a mut Option<Answer>,
    text: &mut String,
) -> Result<&'a mut Answer, TokenizerFailed> {
    let ready = match answer.take() {
        Some(answer) => answer,
        None => Answer::resume(decoder, context, Vec::new(), produced, sent, text)?.0,
    };
    Ok(answer.insert(ready))
}
