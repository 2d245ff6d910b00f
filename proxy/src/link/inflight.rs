//! The members that a worker holds. Plain data: what the worker says goes in, jobs that ended come out.

use std::collections::BTreeMap;
use std::sync::Arc;

use metrics::Gauge;
use pillion_protocol::frame::{BatchCost, MemberFinished, MemberTokens};
use pillion_protocol::{BatchId, MemberIndex};
use tokio::time::Instant;

use crate::domain::{Job, JobRange};
use crate::numbers::as_f64;
use crate::policy::forecast::BatchOutcome;
use crate::scheduler::batch::{CompletedBatch, DispatchedBatch};

/// What a worker said contradicts what it holds. It cannot be trusted any further.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// It never had this batch, or has said it was done.
    #[error("it spoke of {0}, which it does not hold")]
    UnknownBatch(BatchId),
    /// The batch has fewer members.
    #[error("it spoke of member {1} of {0}, which has fewer")]
    UnknownMember(BatchId, MemberIndex),
    /// The member had its terminal frame.
    #[error("it spoke of member {1} of {0} after its end")]
    AlreadyEnded(BatchId, MemberIndex),
    /// More tokens, or more text, than was asked for.
    #[error("it produced more than was demand for member {1} of {0}")]
    TooMuch(BatchId, MemberIndex),
    /// It said that the batch was done while members had no terminal frame.
    #[error("it called {0} done while members were unfinished")]
    Unfinished(BatchId),
}

/// The most bytes of text a token may stand for, on average over an answer.
const TEXT_PER_TOKEN: usize = 1024;

/// Members by batch.
#[derive(Debug)]
pub struct InFlight {
    batches: BTreeMap<BatchId, Running>,
    /// Shows how many members clients wait for.
    wanted: Gauge,
}

#[derive(Debug)]
struct Running {
    since: Instant,
    dispatched: DispatchedBatch,
    outcome: BatchOutcome,
    members: Vec<Slot>,
}

#[derive(Debug)]
enum Slot {
    /// A client waits for it.
    Wanted(Box<Job>),
    /// Its client went away, or its deadline passed: the worker may go on speaking of it for a while.
    Abandoned,
    /// It had its terminal frame.
    Ended,
}

impl InFlight {
    /// The worker holds nothing.
    pub fn new(wanted: Gauge) -> Self {
        Self { batches: BTreeMap::new(), wanted }
    }

    /// Whether the worker holds nothing.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Members that clients wait for.
    pub fn wanted(&self) -> impl Iterator<Item = &Job> {
        self.batches.values().flat_map(|batch| &batch.members).filter_map(|slot| match slot {
            Slot::Wanted(job) => Some(&**job),
            _ => None,
        })
    }

    /// Whether the worker holds this batch.
    pub fn holds(&self, id: BatchId) -> bool {
        self.batches.contains_key(&id)
    }

    /// Registers a batch as it is sent.
    pub fn insert(&mut self, jobs: Vec<Box<Job>>, dispatched: DispatchedBatch, now: Instant) {
        let id = dispatched.batch;
        self.wanted.increment(as_f64(jobs.len()));
        let members = jobs.into_iter().map(Slot::Wanted).collect();
        let running = Running { since: now, dispatched, outcome: BatchOutcome::default(), members };
        let replaced = self.batches.insert(id, running);
        assert!(replaced.is_none(), "{id} was sent twice");
    }

    fn slot(&mut self, id: BatchId, member: MemberIndex) -> Result<&mut Slot, Violation> {
        let batch = self.batches.get_mut(&id).ok_or(Violation::UnknownBatch(id))?;
        let slot = batch.members.get_mut(member as usize).ok_or(Violation::UnknownMember(id, member))?;
        if matches!(slot, Slot::Ended) { Err(Violation::AlreadyEnded(id, member)) } else { Ok(slot) }
    }

    /// A member's progress.
    ///
    /// # Errors
    /// The worker contradicts itself.
    pub fn tokens(
        &mut self,
        id: BatchId,
        tokens: MemberTokens,
        fingerprint: &Arc<str>,
        now: Instant,
    ) -> Result<(), Violation> {
        let Slot::Wanted(job) = self.slot(id, tokens.member)? else { return Ok(()) };
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
            job.reply.say(&tokens.text);
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

    /// A member's terminal frame. `None` where nobody waits for it any more.
    ///
    /// # Errors
    /// The worker contradicts itself.
    pub fn end(&mut self, id: BatchId, member: MemberIndex) -> Result<Option<Box<Job>>, Violation> {
        match std::mem::replace(self.slot(id, member)?, Slot::Ended) {
            Slot::Wanted(job) => {
                self.wanted.decrement(1.0);
                Ok(Some(job))
            }
            _ => Ok(None),
        }
    }

    /// A member's end, with the tokens that it came to. `None` where nobody waits for it any more.
    ///
    /// # Errors
    /// The worker contradicts itself.
    pub fn finish(&mut self, id: BatchId, finished: &MemberFinished) -> Result<Option<Box<Job>>, Violation> {
        let job = self.end(id, finished.member)?;
        if let Some(batch) = self.batches.get_mut(&id) {
            batch.outcome.prompt_tokens += u64::from(finished.prompt_tokens);
            batch.outcome.completion_tokens += u64::from(finished.completion_tokens);
        }
        Ok(job)
    }

    /// The batch is done and has cost so much.
    ///
    /// # Errors
    /// The worker contradicts itself.
    pub fn done(&mut self, id: BatchId, cost: BatchCost) -> Result<CompletedBatch, Violation> {
        let batch = self.batches.get(&id).ok_or(Violation::UnknownBatch(id))?;
        if batch.members.iter().any(|slot| !matches!(slot, Slot::Ended)) {
            return Err(Violation::Unfinished(id));
        }
        let Running { since, dispatched, outcome, .. } = *batch;
        self.batches.remove(&id);
        Ok(CompletedBatch { since, dispatched, outcome: BatchOutcome { cost, ..outcome } })
    }

    /// Takes out the wanted members that `leave` picks; the worker is to be told to stop them.
    fn abandon(&mut self, leave: impl Fn(&Job) -> bool) -> Vec<(BatchId, MemberIndex, Box<Job>)> {
        let mut left = Vec::new();
        for (&id, batch) in &mut self.batches {
            for (member, slot) in (0..).zip(&mut batch.members) {
                if matches!(slot, Slot::Wanted(job) if leave(job))
                    && let Slot::Wanted(job) = std::mem::replace(slot, Slot::Abandoned)
                {
                    left.push((id, member, job));
                }
            }
        }
        self.wanted.decrement(as_f64(left.len()));
        left
    }

    /// Takes out the members of a request whose client went away.
    pub fn cancel(&mut self, jobs: &JobRange) -> Vec<(BatchId, MemberIndex, Box<Job>)> {
        self.abandon(|job| jobs.contains(&job.id.0))
    }

    /// Takes out the members whose deadline is not after `instant`.
    pub fn expire(&mut self, instant: Instant) -> Vec<(BatchId, MemberIndex, Box<Job>)> {
        self.abandon(|job| job.deadline <= instant)
    }

    /// Takes out all that clients wait for, each with its batch: the worker is gone.
    pub fn drain(&mut self) -> Vec<(BatchId, Box<Job>)> {
        let batches = std::mem::take(&mut self.batches);
        let mut jobs: Vec<_> = batches
            .into_iter()
            .flat_map(|(id, batch)| batch.members.into_iter().map(move |slot| (id, slot)))
            .filter_map(|(id, slot)| match slot {
                Slot::Wanted(job) => Some((id, job)),
                _ => None,
            })
            .collect();
        self.wanted.decrement(as_f64(jobs.len()));
        jobs.sort_by_key(|(_, job)| job.id);
        jobs
    }
}

#[cfg(test)]
mod tests;
