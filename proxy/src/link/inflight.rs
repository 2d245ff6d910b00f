//! The batches that a worker holds, and their members. Plain data: the worker's frames go in, ended jobs come out.

use std::collections::BTreeMap;
use std::sync::Arc;

use metrics::Gauge;
use pillion_protocol::frame::{BatchCost, MemberFinished, MemberTokens};
use pillion_protocol::{BatchId, MemberIndex};
use tokio::time::Instant;

use crate::domain::{Job, JobId, JobRange};
use crate::numbers::{as_f64, as_u32};
use crate::policy::forecast::BatchOutcome;
use crate::scheduler::batch::{CompletedBatch, DispatchedBatch};

/// A frame that contradicts what the worker holds. The worker cannot be trusted any further.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The worker never got this batch, or has sent DONE for it.
    #[error("it sent a frame for {0}, which it does not hold")]
    UnknownBatch(BatchId),
    /// The batch has fewer members.
    #[error("it sent a frame for member {1} of {0}, which has fewer members")]
    UnknownMember(BatchId, MemberIndex),
    /// The member has had its terminal frame.
    #[error("it sent a frame for member {1} of {0} after the member's end")]
    AlreadyEnded(BatchId, MemberIndex),
    /// The member has more tokens or more text than was asked for.
    #[error("it produced more for member {1} of {0} than was asked for")]
    TooMuch(BatchId, MemberIndex),
    /// The worker sent DONE for a batch before each member had its terminal frame.
    #[error("it sent DONE for {0} before all of its members had ended")]
    Unfinished(BatchId),
}

/// The most bytes of text for each token of an answer, on average.
const TEXT_PER_TOKEN: usize = 1024;

/// The batches that a worker holds.
#[derive(Debug)]
pub struct InFlight {
    batches: BTreeMap<BatchId, Running>,
    /// Shows the number of members that clients wait for.
    wanted: Gauge,
}

#[derive(Debug)]
struct Running {
    since: Instant,
    dispatched: DispatchedBatch,
    /// The numbers of the jobs, which rise.
    jobs: Vec<JobId>,
    outcome: BatchOutcome,
    members: Vec<MemberState>,
}

#[derive(Debug)]
enum MemberState {
    /// A client waits for the member.
    Wanted(Box<Job>),
    /// The member's client went away, or its deadline passed. The worker may send more frames for it.
    Abandoned,
    /// The member has had its terminal frame.
    Ended,
}

impl InFlight {
    /// A worker that holds no batch. `wanted` shows the number of members that clients wait for.
    pub fn new(wanted: Gauge) -> Self {
        Self { batches: BTreeMap::new(), wanted }
    }

    /// Whether the worker holds no batch.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// The members that clients wait for.
    pub fn wanted(&self) -> impl Iterator<Item = &Job> {
        self.batches.values().flat_map(|batch| &batch.members).filter_map(|state| match state {
            MemberState::Wanted(job) => Some(&**job),
            _ => None,
        })
    }

    /// Whether the worker holds this batch.
    pub fn holds(&self, id: BatchId) -> bool {
        self.batches.contains_key(&id)
    }

    /// Adds a batch that is being sent. The numbers of the jobs rise.
    pub fn insert(&mut self, jobs: Vec<Box<Job>>, dispatched: DispatchedBatch, now: Instant) {
        let id = dispatched.batch;
        self.wanted.increment(as_f64(jobs.len()));
        let numbers = jobs.iter().map(|job| job.id).collect();
        let members = jobs.into_iter().map(MemberState::Wanted).collect();
        let running = Running { since: now, dispatched, jobs: numbers, outcome: BatchOutcome::default(), members };
        let replaced = self.batches.insert(id, running);
        assert!(replaced.is_none(), "{id} was sent twice");
    }

    fn state(&mut self, id: BatchId, member: MemberIndex) -> Result<&mut MemberState, Violation> {
        let batch = self.batches.get_mut(&id).ok_or(Violation::UnknownBatch(id))?;
        let state = batch.members.get_mut(member as usize).ok_or(Violation::UnknownMember(id, member))?;
        if matches!(state, MemberState::Ended) { Err(Violation::AlreadyEnded(id, member)) } else { Ok(state) }
    }

    /// Adds what a member has produced.
    ///
    /// # Errors
    /// The worker does not hold the member, or the member has more than was asked for.
    pub fn tokens(
        &mut self,
        id: BatchId,
        tokens: MemberTokens,
        fingerprint: &Arc<str>,
        now: Instant,
    ) -> Result<(), Violation> {
        let MemberState::Wanted(job) = self.state(id, tokens.member)? else { return Ok(()) };
        let most = job.request.max_new_tokens as usize;
        let progress = &mut job.progress;
        if progress.produced.len() + tokens.ids.len() > most
            || progress.sent + tokens.text.len() > most.saturating_mul(TEXT_PER_TOKEN)
        {
            return Err(Violation::TooMuch(id, tokens.member));
        }
        progress.sent += tokens.text.len();
        if progress.produced.is_empty() {
            progress.produced = tokens.ids;
        } else {
            progress.produced.extend(tokens.ids);
        }
        if job.reply.is_stream() {
            job.reply.send_piece(&tokens.text);
        } else if progress.text.is_empty() {
            progress.text = tokens.text;
        } else {
            progress.text.push_str(&tokens.text);
        }
        progress.first_token_at.get_or_insert(now);
        if progress.fingerprint.is_none() {
            progress.fingerprint = Some(fingerprint.clone());
        }
        Ok(())
    }

    /// Ends a member. Returns its job, or `None` if no client waits for it any more.
    ///
    /// # Errors
    /// The worker does not hold the member.
    pub fn end(&mut self, id: BatchId, member: MemberIndex) -> Result<Option<Box<Job>>, Violation> {
        match std::mem::replace(self.state(id, member)?, MemberState::Ended) {
            MemberState::Wanted(job) => {
                self.wanted.decrement(1.0);
                Ok(Some(job))
            }
            _ => Ok(None),
        }
    }

    /// Ends a member like [`end`](Self::end), and counts its tokens for the batch.
    ///
    /// # Errors
    /// The worker does not hold the member.
    pub fn finish(&mut self, id: BatchId, finished: &MemberFinished) -> Result<Option<Box<Job>>, Violation> {
        let job = self.end(id, finished.member)?;
        if let Some(batch) = self.batches.get_mut(&id) {
            batch.outcome.prompt_tokens += u64::from(finished.prompt_tokens);
            batch.outcome.completion_tokens += u64::from(finished.completion_tokens);
        }
        Ok(job)
    }

    /// Removes a batch that is completed at this cost.
    ///
    /// # Errors
    /// The worker does not hold the batch, or some of its members have not ended.
    pub fn done(&mut self, id: BatchId, cost: BatchCost) -> Result<CompletedBatch, Violation> {
        let batch = self.batches.get(&id).ok_or(Violation::UnknownBatch(id))?;
        if batch.members.iter().any(|state| !matches!(state, MemberState::Ended)) {
            return Err(Violation::Unfinished(id));
        }
        let Running { since, dispatched, outcome, .. } = *batch;
        self.batches.remove(&id);
        Ok(CompletedBatch { since, dispatched, outcome: BatchOutcome { cost, ..outcome } })
    }

    /// Takes the members of a request whose client has gone away. The caller tells the worker to stop them.
    pub fn cancel(&mut self, jobs: &JobRange) -> Vec<(BatchId, MemberIndex, Box<Job>)> {
        let mut left = Vec::new();
        for (&id, batch) in &mut self.batches {
            let first = batch.jobs.partition_point(|job| job.0 < jobs.start);
            let after = batch.jobs.partition_point(|job| job.0 < jobs.end);
            left.extend(abandon(id, first, &mut batch.members[first..after], |_| true));
        }
        self.wanted.decrement(as_f64(left.len()));
        left
    }

    /// Takes the members whose deadline is not after `instant`. The caller tells the worker to stop them.
    pub fn expire(&mut self, instant: Instant) -> Vec<(BatchId, MemberIndex, Box<Job>)> {
        let mut left = Vec::new();
        for (&id, batch) in &mut self.batches {
            left.extend(abandon(id, 0, &mut batch.members, |job| job.deadline <= instant));
        }
        self.wanted.decrement(as_f64(left.len()));
        left
    }

    /// Takes all jobs that clients wait for, each with its batch, when the connection has ended. The oldest is first.
    pub fn drain(&mut self) -> Vec<(BatchId, Box<Job>)> {
        let batches = std::mem::take(&mut self.batches);
        let mut jobs: Vec<_> = batches
            .into_iter()
            .flat_map(|(id, batch)| batch.members.into_iter().map(move |state| (id, state)))
            .filter_map(|(id, state)| match state {
                MemberState::Wanted(job) => Some((id, job)),
                _ => None,
            })
            .collect();
        self.wanted.decrement(as_f64(jobs.len()));
        jobs.sort_by_key(|(_, job)| job.id);
        jobs
    }
}

/// Takes the jobs of the wanted members that `leave` picks. `first` is the index of the first member.
fn abandon(
    id: BatchId,
    first: usize,
    members: &mut [MemberState],
    leave: impl Fn(&Job) -> bool,
) -> impl Iterator<Item = (BatchId, MemberIndex, Box<Job>)> {
    (as_u32(first)..).zip(members).filter_map(move |(member, state)| {
        match std::mem::replace(state, MemberState::Abandoned) {
            MemberState::Wanted(job) if leave(&job) => Some((id, member, job)),
            other => {
                *state = other;
                None
            }
        }
    })
}

#[cfg(test)]
mod tests;
