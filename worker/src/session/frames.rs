//! Turns what the members of a batch produced into frames: TOKENS first, then the members' ends.

use pillion_protocol::frame::{FailureCode, MemberFailed, MemberFinished, MemberTokens};
use pillion_protocol::{BatchId, Frame};

use super::in_flight::InFlightBatch;
use crate::batch::{Ended, Ending, Progress};
use crate::tokens::Decoder;

/// A TOKENS frame is closed once it holds this many bytes. The wire's limit is twice that.
const FULL: usize = 8 * 1024 * 1024;
/// Bytes of a member's entry besides its ids and its text.
const ENTRY: usize = 12;

/// The frames of one step of a batch. A member whose tokens cannot be turned into text fails.
pub(super) fn frames(
    progress: Progress,
    batch: &mut InFlightBatch,
    decoder: &Decoder,
    log_prompts: bool,
) -> impl Iterator<Item = Frame> + use<> {
    let id = BatchId(progress.batch);
    let mut tokens = Tokens::default();
    let mut ends = Ends::default();
    for (member, context) in progress.contexts {
        if let Some(text) = batch.text(member) {
            text.set_context(context);
        }
    }
    let single = progress.tokens.into_iter().map(|(member, token)| (member, vec![token], None));
    let chunks = progress.chunks.into_iter().map(|chunk| (chunk.member, chunk.ids, chunk.text));
    for (member, ids, from_engine) in single.chain(chunks) {
        let Some(text) = batch.text(member) else { continue };
        match text.push(decoder, &ids) {
            Ok(made) => tokens.add(MemberTokens { member, ids, text: from_engine.unwrap_or(made) }),
            Err(error) => {
                batch.fail(member);
                ends.fail(member, error.to_string());
            }
        }
    }
    for mut ended in progress.ended {
        let member = ended.member;
        let Some(text) = batch.text(member) else { continue };
        if let Ending::Finished(_) = ended.how {
            match text.finish(decoder) {
                Ok(tail) => tokens.add_tail(member, tail),
                Err(error) => ended.how = Ending::Failed(FailureCode::Internal, error.to_string()),
            }
        }
        batch.end(member);
        batch.log_end(id, &ended);
        ends.add(ended);
    }
    if log_prompts {
        for MemberTokens { member, text, .. } in tokens.full.iter().flatten().chain(&tokens.open) {
            tracing::info!(batch = id.0, member, text, "answer");
        }
    }
    tokens.into_frames(id).chain(ends.into_frames(id))
}

/// The members' new tokens, in as few frames as possible.
#[derive(Default)]
struct Tokens {
    full: Vec<Vec<MemberTokens>>,
    open: Vec<MemberTokens>,
    /// Bytes of the open frame.
    bytes: usize,
}

impl Tokens {
    fn add(&mut self, tokens: MemberTokens) {
        let bytes = ENTRY + 4 * tokens.ids.len() + tokens.text.len();
        if self.bytes + bytes > FULL && !self.open.is_empty() {
            self.full.push(std::mem::take(&mut self.open));
            self.bytes = 0;
        }
        self.bytes += bytes;
        self.open.push(tokens);
    }

    /// Adds the rest of a member's text, to its last tokens if those are in the open frame.
    fn add_tail(&mut self, member: u32, tail: String) {
        if tail.is_empty() {
            return;
        }
        match self.open.iter_mut().rev().find(|tokens| tokens.member == member) {
            Some(tokens) if self.bytes + tail.len() <= FULL => {
                self.bytes += tail.len();
                tokens.text.push_str(&tail);
            }
            _ => self.add(MemberTokens { member, ids: Vec::new(), text: tail }),
        }
    }

    fn into_frames(self, id: BatchId) -> impl Iterator<Item = Frame> {
        let open = (!self.open.is_empty()).then_some(self.open);
        self.full.into_iter().chain(open).map(move |members| Frame::Tokens(id, members))
    }
}

/// The members that ended in one step.
#[derive(Default)]
struct Ends {
    finished: Vec<MemberFinished>,
    failed: Vec<MemberFailed>,
    yielded: Vec<u32>,
}

impl Ends {
    fn add(&mut self, ended: Ended) {
        let Ended { member, how, prompt_tokens, completion_tokens } = ended;
        match how {
            Ending::Finished(reason) => {
                self.finished.push(MemberFinished { member, reason, prompt_tokens, completion_tokens });
            }
            Ending::Failed(code, message) => self.failed.push(MemberFailed { member, code, message }),
            Ending::Yielded => self.yielded.push(member),
        }
    }

    /// The member's text could not be made.
    fn fail(&mut self, member: u32, message: String) {
        self.failed.push(MemberFailed { member, code: FailureCode::Internal, message });
    }

    fn into_frames(self, id: BatchId) -> impl Iterator<Item = Frame> {
        let finished = (!self.finished.is_empty()).then_some(Frame::Finished(id, self.finished));
        let failed = (!self.failed.is_empty()).then_some(Frame::Failed(id, self.failed));
        let yielded = (!self.yielded.is_empty()).then_some(Frame::Yielded(id, self.yielded));
        [finished, failed, yielded].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_a_frame_takes_is_split() {
        let mut tokens = Tokens::default();
        for member in 0..5 {
            tokens.add(MemberTokens { member, ids: vec![member], text: "x".repeat(3 * 1024 * 1024) });
        }
        tokens.add_tail(4, "tail".to_owned());
        let members: Vec<usize> = tokens
            .into_frames(BatchId(1))
            .map(|frame| match frame {
                Frame::Tokens(_, members) => members.len(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(members, [2, 2, 1]);
    }
}
