//! Events of the engines into frames: TOKENS, then the members' ends, then DONE.

use pillion_protocol::frame::{FailureCode, MemberFailed, MemberFinished, MemberTokens};
use pillion_protocol::{BatchId, Frame};
use tokio::io::AsyncWrite;

use super::{Session, Trouble};
use crate::batch::{Ended, Ending, Event, Progress};

/// A TOKENS frame is closed once it holds so many bytes; its limit on the wire is twice that.
const FULL: usize = 8 * 1024 * 1024;
/// Bytes of a member's entry beside its ids and its text.
const ENTRY: usize = 12;

impl<W: AsyncWrite + Unpin> Session<'_, W> {
    pub(super) fn tell(&mut self, event: Event) -> Result<(), Trouble> {
        match event {
            Event::Progress(progress) => self.tell_progress(progress)?,
            Event::Near(id) => {
                if let Some(flight) = self.flights.get(id)
                    && !std::mem::replace(&mut flight.announced, true)
                {
                    self.credit.near();
                }
            }
            Event::Done(id, cost) => {
                if let Some(flight) = self.flights.remove(id) {
                    self.credit.done(flight.announced);
                    self.writer.put(&Frame::Done(id, cost))?;
                }
            }
        }
        Ok(())
    }

    fn tell_progress(&mut self, progress: Progress) -> Result<(), Trouble> {
        let id = BatchId(progress.batch);
        let tokens = &self.worker.shared.tokens;
        let Some(flight) = self.flights.get(id) else { return Ok(()) };
        let mut said = Said::default();
        let mut broken = Vec::new();
        for (member, context) in progress.contexts {
            if let Some(text) = flight.member(member) {
                text.begins_behind(context);
            }
        }
        for (member, token) in progress.tokens {
            if let Some(text) = flight.member(member) {
                match text.push(tokens, &[token]) {
                    Ok(text) => said.add(MemberTokens { member, ids: vec![token], text }),
                    Err(error) => broken.push((member, error)),
                }
            }
        }
        for chunk in progress.chunks {
            if let Some(text) = flight.member(chunk.member) {
                match text.push(tokens, &chunk.ids) {
                    Ok(made) => {
                        let text = chunk.text.unwrap_or(made);
                        said.add(MemberTokens { member: chunk.member, ids: chunk.ids, text });
                    }
                    Err(error) => broken.push((chunk.member, error)),
                }
            }
        }
        let mut ends = Ends::default();
        for ended in progress.ended {
            let Some(text) = flight.member(ended.member) else { continue };
            if let Ending::Finished(_) = ended.how {
                match text.finish(tokens) {
                    Ok(tail) => said.add_tail(ended.member, tail),
                    Err(error) => broken.push((ended.member, error)),
                }
            }
            flight.end(ended.member);
            flight.log(id, &ended);
            if broken.iter().all(|(member, _)| *member != ended.member) {
                ends.add(ended);
            }
        }
        for (member, error) in broken {
            self.flights.signal(id, |signals| signals.cancel(member));
            if let Some(flight) = self.flights.get(id) {
                flight.end(member);
            }
            ends.failed.push(MemberFailed { member, code: FailureCode::Internal, message: error.to_string() });
        }
        if self.worker.log_prompts {
            for MemberTokens { member, text, .. } in said.frames.iter().flatten().chain(&said.open) {
                tracing::info!(batch = id.0, member, text, "answer");
            }
        }
        said.into_frames(id).chain(ends.into_frames(id)).try_for_each(|frame| self.writer.put(&frame))?;
        Ok(())
    }
}

/// What members said in one step, in as few frames as may be.
#[derive(Default)]
struct Said {
    frames: Vec<Vec<MemberTokens>>,
    open: Vec<MemberTokens>,
    bytes: usize,
}

impl Said {
    fn add(&mut self, said: MemberTokens) {
        let bytes = ENTRY + 4 * said.ids.len() + said.text.len();
        if self.bytes + bytes > FULL && !self.open.is_empty() {
            self.frames.push(std::mem::take(&mut self.open));
            self.bytes = 0;
        }
        self.bytes += bytes;
        self.open.push(said);
    }

    /// The rest of a member's text: with its last tokens where those are in the open frame.
    fn add_tail(&mut self, member: u32, tail: String) {
        if tail.is_empty() {
            return;
        }
        match self.open.iter_mut().rev().find(|said| said.member == member) {
            Some(said) if self.bytes + tail.len() <= FULL => {
                self.bytes += tail.len();
                said.text.push_str(&tail);
            }
            _ => self.add(MemberTokens { member, ids: Vec::new(), text: tail }),
        }
    }

    fn into_frames(self, id: BatchId) -> impl Iterator<Item = Frame> {
        let open = (!self.open.is_empty()).then_some(self.open);
        self.frames.into_iter().chain(open).map(move |members| Frame::Tokens(id, members))
    }
}

/// Members that ended in one step.
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
        let mut said = Said::default();
        for member in 0..5 {
            said.add(MemberTokens { member, ids: vec![member], text: "x".repeat(3 * 1024 * 1024) });
        }
        said.add_tail(4, "tail".to_owned());
        let members: Vec<usize> = said
            .into_frames(BatchId(1))
            .map(|frame| match frame {
                Frame::Tokens(_, members) => members.len(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(members, [2, 2, 1]);
    }
}
