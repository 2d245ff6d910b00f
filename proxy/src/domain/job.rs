//! What travels through the proxy: a job is one text of one request, on its way to exactly one terminal event.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use pillion_protocol::frame::FinishReason;
use tokio::time::Instant;

use super::batch_key::{ModelFingerprint, Quarantine};
use super::demand::Demand;
use super::outcome::{Completion, Dispatch, Failure};
use super::queue_slot::QueueSlot;
use super::reply::Reply;
use super::request::{GenerationRequest, Origin};

/// A job gives way to others so often at most.
const MAX_PREEMPTIONS: u32 = 3;

/// A job's number. Numbers rise with admission, so a smaller one is older.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// The jobs of one request: consecutive numbers.
pub type JobRange = Range<u64>;

/// What a member has produced so far, over all attempts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Token ids.
    pub produced: Vec<u32>,
    /// Bytes of their text, as far as the worker has sent it.
    pub sent: usize,
    /// That text; nothing where it is streamed, for then it has gone on to the client.
    pub text: String,
    /// The fingerprint of the worker that produced them: only its equal may go on.
    pub fingerprint: Option<Arc<str>>,
    /// When the first of them arrived.
    pub first_token_at: Option<Instant>,
}

/// One text on its way.
#[derive(Debug)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// What was asked.
    pub request: GenerationRequest,
    /// Whose it is, for the worker's log, if it belongs to a trace.
    pub origin: Option<Arc<Origin>>,
    /// When it was admitted.
    pub admitted: Instant,
    /// Since when it waits for its turn: its admission, or when it last gave way to others.
    pub waits_since: Instant,
    /// When it is worth nothing any more.
    pub deadline: Instant,
    /// What it has so far.
    pub progress: Progress,
    /// Its latest batch.
    pub dispatch: Option<Dispatch>,
    /// How often it has been sent to a worker.
    pub attempts: u32,
    /// How often a worker has died with it though it was not told to stop, and had produced nothing for it.
    pub suspicions: u32,
    /// Tokens that it had when it last left the queue.
    pub had: usize,
    /// How often it has been made to give way to others.
    pub gave_way: u32,
    /// Its place in the queue's bound; dropped when it leaves the queue.
    pub slot: Option<QueueSlot>,
    /// Where its terminal event goes.
    pub reply: Reply,
}

impl Job {
    /// A job that is admitted now, whose answer goes to `reply`.
    pub fn new(id: JobId, request: GenerationRequest, admitted: Instant, deadline: Instant, reply: Reply) -> Self {
        Self {
            id,
            request,
            origin: None,
            admitted,
            waits_since: admitted,
            deadline,
            progress: Progress::default(),
            dispatch: None,
            attempts: 0,
            suspicions: 0,
            had: 0,
            gave_way: 0,
            slot: None,
            reply,
        }
    }

    /// What it asks for, less what it has.
    pub fn demand(&self) -> Demand {
        let produced = self.progress.produced.len();
        let left = self.request.max_new_tokens.saturating_sub(u32::try_from(produced).unwrap_or(u32::MAX));
        let mut demand = Demand::default();
        demand.add(self.request.bytes(), left, produced);
        demand
    }

    /// It ends well: with what it has, as far as it has not gone on to the client.
    pub fn finish(self, reason: FinishReason, prompt_tokens: u32, completion_tokens: u32) {
        let Self { progress: Progress { text, first_token_at, .. }, dispatch, reply, .. } = self;
        reply.finish(Completion { text, reason, prompt_tokens, completion_tokens, first_token_at, dispatch });
    }

    /// Whether it can be given back by an engine once more, and go on later.
    pub fn may_give_way(&self) -> bool {
        self.gave_way < MAX_PREEMPTIONS && !self.request.key.options().look_back()
    }

    /// The job leaves the queue, with so many members, for a worker with this fingerprint. What another model produced is
    /// forgotten, and so is what was produced under options that look back: where nothing of it has reached the client, it
    /// starts again.
    ///
    /// # Errors
    /// Something has.
    pub fn leave_queue(&mut self, fingerprint: &Arc<str>, members: usize, now: Instant) -> Result<(), Failure> {
        self.slot = None;
        self.attempts += 1;
        self.had = self.progress.produced.len();
        self.dispatch = Some(Dispatch { first: self.dispatch.map_or(now, |dispatch| dispatch.first), members });
        let foreign = self.progress.fingerprint.as_ref().is_some_and(|theirs| theirs != fingerprint);
        if foreign || self.request.key.options().look_back() {
            if self.has_been_heard() {
                return Err(if foreign { Failure::ModelGone } else { Failure::NotResumable });
            }
            self.progress = Progress::default();
            self.had = 0;
        }
        Ok(())
    }

    /// Its worker has died, and was serving it. Where that had produced nothing for it, it may have been why: it is struck,
    /// and once it was so often enough it goes on with less company, until it fails for having been alone.
    ///
    /// # Errors
    /// It has been struck `most` times, the last time alone; or once, where that is all that it may be.
    pub fn suspect(&mut self, most: u32) -> Result<(), Failure> {
        if self.progress.produced.len() > self.had {
            return Ok(());
        }
        self.suspicions += 1;
        let was_alone = self.dispatch.is_some_and(|dispatch| dispatch.members == 1);
        if self.suspicions >= most && (was_alone || most <= 1) {
            return Err(Failure::WorkerLost { attempts: self.attempts });
        }
        let quarantine = match self.suspicions.saturating_add(1).cmp(&most) {
            Ordering::Less => Quarantine::None,
            Ordering::Equal => Quarantine::Few,
            Ordering::Greater => Quarantine::Alone,
        };
        self.request.key.quarantine = quarantine;
        Ok(())
    }

    /// It waits again. Where a part of its answer has reached the client, only a worker of the same build can go on.
    ///
    /// # Errors
    /// Not even that, since its options look back.
    pub fn requeue(&mut self) -> Result<(), Failure> {
        let Some(fingerprint) = self.progress.fingerprint.as_ref().filter(|_| self.has_been_heard()) else {
            return Ok(());
        };
        if self.request.key.options().look_back() {
            return Err(Failure::NotResumable);
        }
        self.request.key.fingerprint = ModelFingerprint::of(fingerprint);
        Ok(())
    }

    /// Whether a part of its answer has reached the client.
    fn has_been_heard(&self) -> bool {
        self.reply.is_stream() && self.progress.sent > 0
    }
}

#[cfg(test)]
mod tests {
    use pillion_protocol::frame::Options;

    use super::*;
    use crate::domain::BatchKey;

    fn job() -> Job {
        let request = GenerationRequest::text("why", BatchKey::new(&Options::default(), 0), 10);
        Job::new(JobId(1), request, Instant::now(), Instant::now(), Reply::unheard())
    }

    /// What becomes of a job whose worker dies once for each number of members that it rides with.
    fn suspicions(most: u32, rides: &[usize]) -> Vec<Option<Quarantine>> {
        let (mut job, fingerprint) = (job(), Arc::from("a"));
        let mut ride = |&members| {
            job.leave_queue(&fingerprint, members, Instant::now()).unwrap();
            job.suspect(most).ok().map(|()| job.request.key.quarantine)
        };
        rides.iter().map(&mut ride).collect()
    }

    #[test]
    fn whoever_is_struck_has_less_and_less_company_and_fails_alone() {
        use Quarantine::{Alone, Few};
        assert_eq!(suspicions(3, &[50, 50, 8, 1]), [Some(Quarantine::None), Some(Few), Some(Alone), None]);
        assert_eq!(suspicions(3, &[1, 1, 1]), [Some(Quarantine::None), Some(Few), None]);
        assert_eq!(suspicions(2, &[50, 8, 1]), [Some(Few), Some(Alone), None]);
        assert_eq!(suspicions(1, &[50]), [None], "it was to be tried once");
    }

    #[test]
    fn an_attempt_that_got_on_is_no_strike() {
        let (mut job, fingerprint) = (job(), Arc::from("a"));
        for produced in 1..9 {
            job.leave_queue(&fingerprint, 1, Instant::now()).unwrap();
            job.progress.produced.push(produced);
            job.suspect(1).unwrap();
        }
        job.leave_queue(&fingerprint, 1, Instant::now()).unwrap();
        assert!(job.suspect(1).is_err());
    }
}
