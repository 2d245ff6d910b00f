//! The batches that a session has under way: who in them has not ended, and whose text it makes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use pillion_protocol::BatchId;
use pillion_protocol::frame::Member;

use crate::batch::{BatchSignals, Ended};
use crate::tokens::{Answer, Context, TokenizerFailed, Tokens, whole};

/// All of them. Dropping it cancels every member: the connection is gone, and nobody waits here.
#[derive(Debug, Default)]
pub(super) struct Flights {
    batches: HashMap<BatchId, Flight>,
}

/// One batch.
#[derive(Debug)]
pub(super) struct Flight {
    signals: Arc<BatchSignals>,
    /// By member; `None` once it has ended.
    members: Vec<Option<Text>>,
    /// What their requests are called, by member; none where none belongs to a trace.
    names: Vec<Name>,
    left: usize,
    since: Instant,
    /// Whether its end was announced to the account of credit.
    pub(super) announced: bool,
}

/// What a member's request is called in logs.
#[derive(Debug)]
struct Name {
    request_id: String,
    traceparent: String,
}

impl Name {
    fn of(member: &Member) -> Self {
        Self { request_id: member.request_id.clone(), traceparent: member.traceparent.clone() }
    }

    /// The trace's own name: the second of four parts (W3C Trace Context).
    fn trace_id(&self) -> Option<&str> {
        self.traceparent.split('-').nth(1)
    }
}

/// How a member's text is made.
#[derive(Debug)]
pub(super) enum Text {
    /// By the engine's side, since a stop string must be found in it.
    Given,
    /// Piece by piece; built when the first token comes.
    Streamed { context: Context, produced: Vec<u32>, sent: u64, answer: Option<Answer> },
    /// All at once, at its end.
    Whole { context: Context, produced: Vec<u32>, sent: u64 },
}

impl Text {
    fn of(member: &Member) -> Self {
        let Member { produced, sent, .. } = member;
        if !member.stop.is_empty() {
            Self::Given
        } else if member.stream {
            Self::Streamed { context: Context::default(), produced: produced.clone(), sent: *sent, answer: None }
        } else {
            Self::Whole { context: Context::default(), produced: produced.clone(), sent: *sent }
        }
    }

    /// The last ids of the prompt are these: told before any token.
    pub(super) fn begins_behind(&mut self, prompt: Context) {
        match self {
            Self::Given => {}
            Self::Streamed { context, .. } | Self::Whole { context, .. } => *context = prompt,
        }
    }

    /// The text that new tokens bring.
    pub(super) fn push(&mut self, tokens: &Tokens, ids: &[u32]) -> Result<String, TokenizerFailed> {
        let mut text = String::new();
        match self {
            Self::Given => {}
            Self::Whole { produced, .. } => produced.extend(ids),
            Self::Streamed { context, produced, sent, answer } => {
                let answer = started(tokens, context, produced, *sent, answer, &mut text)?;
                for &id in ids {
                    answer.push(tokens, id, &mut text)?;
                }
            }
        }
        Ok(text)
    }

    /// The text that is left once the member has finished.
    pub(super) fn finish(&mut self, tokens: &Tokens) -> Result<String, TokenizerFailed> {
        match self {
            Self::Given => Ok(String::new()),
            Self::Whole { context, produced, sent } => whole(tokens, context, produced, *sent),
            Self::Streamed { context, produced, sent, answer } => {
                let mut text = String::new();
                started(tokens, context, produced, *sent, answer, &mut text)?.finish(tokens, &mut text)?;
                Ok(text)
            }
        }
    }
}

fn started<'a>(
    tokens: &Tokens,
    context: &Context,
    produced: &[u32],
    sent: u64,
    answer: &'a mut Option<Answer>,
    text: &mut String,
) -> Result<&'a mut Answer, TokenizerFailed> {
    let ready = match answer.take() {
        Some(answer) => answer,
        None => Answer::resume(tokens, context, Vec::new(), produced, sent, text)?.0,
    };
    Ok(answer.insert(ready))
}

impl Flights {
    /// A batch has come. False where one of this name is under way.
    pub(super) fn add(&mut self, id: BatchId, members: &[Member], signals: &Arc<BatchSignals>) -> bool {
        if self.batches.contains_key(&id) {
            return false;
        }
        let is_traced = members.iter().any(|member| !member.traceparent.is_empty());
        let flight = Flight {
            signals: Arc::clone(signals),
            members: members.iter().map(|member| Some(Text::of(member))).collect(),
            names: if is_traced { members.iter().map(Name::of).collect() } else { Vec::new() },
            left: members.len(),
            since: Instant::now(),
            announced: false,
        };
        self.batches.insert(id, flight);
        true
    }

    pub(super) fn get(&mut self, id: BatchId) -> Option<&mut Flight> {
        self.batches.get_mut(&id)
    }

    /// A batch is done.
    pub(super) fn remove(&mut self, id: BatchId) -> Option<Flight> {
        self.batches.remove(&id)
    }

    /// Says something to a batch; one that is done already does not mind.
    pub(super) fn signal(&self, id: BatchId, say: impl FnOnce(&BatchSignals)) {
        if let Some(flight) = self.batches.get(&id) {
            say(&flight.signals);
        }
    }

    /// Wants the unfinished members of every batch back.
    pub(super) fn give_back(&self) {
        self.batches.values().for_each(|flight| flight.signals.give_back());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Members that have not ended.
    pub(super) fn members(&self) -> usize {
        self.batches.values().map(|flight| flight.left).sum()
    }

    /// Logs what is under way: counts, names and ages, no texts.
    pub(super) fn dump(&self) {
        for (id, flight) in &self.batches {
            let age_ms = u64::try_from(flight.since.elapsed().as_millis()).unwrap_or(u64::MAX);
            let unfinished: Vec<usize> = flight
                .members
                .iter()
                .enumerate()
                .filter(|(_, text)| text.is_some())
                .map(|(member, _)| member)
                .collect();
            tracing::info!(batch = id.0, age_ms, members = flight.members.len(), ?unfinished, "dump: under way");
        }
    }
}

impl Flight {
    /// A member that has not ended.
    pub(super) fn member(&mut self, member: u32) -> Option<&mut Text> {
        self.members.get_mut(member as usize)?.as_mut()
    }

    /// Logs how a member ended, for whoever follows its trace.
    pub(super) fn log(&self, batch: BatchId, ended: &Ended) {
        let Ended { member, how, prompt_tokens, completion_tokens } = ended;
        let name = self.names.get(*member as usize);
        if let Some((Name { request_id, .. }, trace_id)) = name.and_then(|name| Some((name, name.trace_id()?))) {
            tracing::info!(
                request_id,
                trace_id,
                batch = batch.0,
                member,
                ?how,
                prompt_tokens,
                completion_tokens,
                "member"
            );
        }
    }

    /// A member has ended.
    pub(super) fn end(&mut self, member: u32) {
        if self.members.get_mut(member as usize).is_some_and(|text| text.take().is_some()) {
            self.left = self.left.saturating_sub(1);
        }
    }
}

impl Drop for Flights {
    fn drop(&mut self) {
        for flight in self.batches.values() {
            flight.signals.cancel_all();
        }
    }
}
