//! The batches that a session has in flight, and which of their members have not ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use pillion_protocol::BatchId;
use pillion_protocol::frame::Member;

use super::member_text::MemberText;
use crate::batch::{BatchSignals, Ended};

/// All batches in flight. Dropping it cancels every member, since the connection that waits for them is gone.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    batches: HashMap<BatchId, InFlightBatch>,
}

/// One batch.
#[derive(Debug)]
pub(super) struct InFlightBatch {
    signals: Arc<BatchSignals>,
    /// By member; `None` once the member has ended.
    members: Vec<Option<MemberText>>,
    /// The members' requests as logs name them; empty if no member belongs to a trace.
    names: Vec<RequestName>,
    unfinished: usize,
    since: Instant,
    /// Whether the credit account already knows that the batch ends soon.
    pub(super) announced: bool,
}

/// How logs name a member's request.
#[derive(Debug)]
struct RequestName {
    request_id: String,
    traceparent: String,
}

impl RequestName {
    fn of(member: &Member) -> Self {
        Self { request_id: member.request_id.clone(), traceparent: member.traceparent.clone() }
    }

    /// The trace's id: the second of the four parts (W3C Trace Context).
    fn trace_id(&self) -> Option<&str> {
        self.traceparent.split('-').nth(1)
    }
}

impl InFlight {
    /// Adds a batch. Returns false if a batch of the same id is in flight.
    pub(super) fn add(&mut self, id: BatchId, members: &[Member], signals: &Arc<BatchSignals>) -> bool {
        if self.batches.contains_key(&id) {
            return false;
        }
        let is_traced = members.iter().any(|member| !member.traceparent.is_empty());
        let batch = InFlightBatch {
            signals: Arc::clone(signals),
            members: members.iter().map(|member| Some(MemberText::of(member))).collect(),
            names: if is_traced { members.iter().map(RequestName::of).collect() } else { Vec::new() },
            unfinished: members.len(),
            since: Instant::now(),
            announced: false,
        };
        self.batches.insert(id, batch);
        true
    }

    pub(super) fn get(&mut self, id: BatchId) -> Option<&mut InFlightBatch> {
        self.batches.get_mut(&id)
    }

    /// Removes a batch whose members have all ended.
    pub(super) fn remove(&mut self, id: BatchId) -> Option<InFlightBatch> {
        self.batches.remove(&id)
    }

    /// Passes a signal to a batch, or to none if the batch is done already.
    pub(super) fn signal(&self, id: BatchId, send: impl FnOnce(&BatchSignals)) {
        if let Some(batch) = self.batches.get(&id) {
            send(&batch.signals);
        }
    }

    /// Asks every batch to give its unfinished members back.
    pub(super) fn request_yield(&self) {
        self.batches.values().for_each(|batch| batch.signals.request_yield());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Counts the members that have not ended.
    pub(super) fn unfinished(&self) -> usize {
        self.batches.values().map(|batch| batch.unfinished).sum()
    }

    /// Logs what is in flight: counts, ids and ages, but no texts.
    pub(super) fn dump(&self) {
        for (id, batch) in &self.batches {
            let age_ms = u64::try_from(batch.since.elapsed().as_millis()).unwrap_or(u64::MAX);
            let texts = batch.members.iter().enumerate();
            let unfinished: Vec<usize> = texts.filter_map(|(member, text)| text.as_ref().map(|_| member)).collect();
            tracing::info!(batch = id.0, age_ms, members = batch.members.len(), ?unfinished, "dump: a batch in flight");
        }
    }
}

impl InFlightBatch {
    /// The text of a member that has not ended.
    pub(super) fn text(&mut self, member: u32) -> Option<&mut MemberText> {
        self.members.get_mut(member as usize)?.as_mut()
    }

    /// Ends a member.
    pub(super) fn end(&mut self, member: u32) {
        if self.members.get_mut(member as usize).is_some_and(|text| text.take().is_some()) {
            self.unfinished = self.unfinished.saturating_sub(1);
        }
    }

    /// Ends a member whose text could not be made. It is also cancelled, so that the engine thread stops running it.
    pub(super) fn fail(&mut self, member: u32) {
        self.signals.cancel(member);
        self.end(member);
    }

    /// Logs how a member ended, if its request belongs to a trace.
    pub(super) fn log_end(&self, batch: BatchId, ended: &Ended) {
        let Ended { member, how, prompt_tokens, completion_tokens } = ended;
        let name = self.names.get(*member as usize);
        if let Some((RequestName { request_id, .. }, trace_id)) = name.and_then(|name| Some((name, name.trace_id()?))) {
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
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.batches.values().for_each(|batch| batch.signals.cancel_all());
    }
}
