//! A job is one text of one request. It gets exactly one outcome.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use pillion_protocol::frame::FinishReason;
use tokio::time::Instant;

use super::batch_key::{ModelFingerprint, Quarantine};
use super::count::CountGuard;
use super::demand::Demand;
use super::outcome::{Completion, Dispatch, Failure};
use super::reply::Reply;
use super::request::{GenerationRequest, ID_BYTES, Origin};

/// The most times that a job gives way to others.
const MAX_PREEMPTIONS: u32 = 3;

/// A job's number. Numbers rise with admission: of two jobs, the older one has the smaller number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// The jobs of one request, which have consecutive numbers.
pub type JobRange = Range<u64>;

/// What a job has produced so far, in all attempts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The tokens' ids.
    pub produced: Vec<u32>,
    /// Bytes of the tokens' text that the worker has sent.
    pub sent: usize,
    /// The text that the worker has sent. Empty if the answer is streamed: then the text has gone to the feed.
    pub text: String,
    /// The fingerprint of the worker that produced the tokens. Only a worker with the same one may continue.
    pub fingerprint: Option<Arc<str>>,
    /// When the first token arrived.
    pub first_token_at: Option<Instant>,
}

/// One text of a request, queued or running.
#[derive(Debug)]
pub struct Job {
    /// The job's number.
    pub id: JobId,
    /// What the client asked for.
    pub request: GenerationRequest,
    /// The names of its request in the worker's log, if it belongs to a trace.
    pub origin: Option<Arc<Origin>>,
    /// When it was admitted.
    pub admitted: Instant,
    /// Since when it waits: its admission, or when it last gave way.
    pub waits_since: Instant,
    /// When it must have ended.
    pub deadline: Instant,
    /// What it has produced so far.
    pub progress: Progress,
    /// When it left the queue, and with how many members. `None` until then.
    pub dispatch: Option<Dispatch>,
    /// How often it has been sent to a worker. Attempts after which the job was given back do not count.
    pub attempts: u32,
    /// How often it was suspected, see [`suspect`](Job::suspect).
    pub suspicions: u32,
    /// The number of tokens that it had when it last left the queue.
    pub produced_before: usize,
    /// How often it has given way to others.
    pub gave_way: u32,
    /// Its slot in the bounded queue; dropped when it leaves the queue.
    pub slot: Option<CountGuard>,
    /// Where its outcome goes.
    pub reply: Reply,
}

impl Job {
    /// A job that is admitted at `admitted` and whose outcome goes to `reply`.
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
            produced_before: 0,
            gave_way: 0,
            slot: None,
            reply,
        }
    }

    /// What the job still demands of an engine.
    pub fn demand(&self) -> Demand {
        let produced = self.progress.produced.len();
        let left = self.request.max_new_tokens.saturating_sub(u32::try_from(produced).unwrap_or(u32::MAX));
        let mut demand = Demand::default();
        demand.add(self.request.bytes(), left, produced);
        demand
    }

    /// The bytes that it takes in a BATCH, before JSON's escapes.
    pub fn wire_bytes(&self) -> usize {
        self.request.bytes() + self.progress.produced.len() * ID_BYTES
    }

    /// Ends the job with a completion, which has the answer's text unless that was streamed.
    pub fn finish(self, reason: FinishReason, prompt_tokens: u32, completion_tokens: u32) {
        let Self { progress: Progress { text, first_token_at, .. }, dispatch, reply, .. } = self;
        reply.finish(Completion { text, reason, prompt_tokens, completion_tokens, first_token_at, dispatch });
    }

    /// Whether the job may give way once more, and can be continued afterwards.
    pub fn may_give_way(&self) -> bool {
        self.gave_way < MAX_PREEMPTIONS && !self.request.key.options.look_back()
    }

    /// Records that the job leaves the queue in a batch of `members`, for a worker with this fingerprint. If another
    /// model produced its tokens, or if its options look back over the answer, the job loses them and starts again.
    ///
    /// # Errors
    /// The job would have to start again, but a part of its answer has reached the client.
    pub fn leave_queue(&mut self, fingerprint: &Arc<str>, members: usize, now: Instant) -> Result<(), Failure> {
        self.slot = None;
        self.attempts += 1;
        self.produced_before = self.progress.produced.len();
        self.dispatch = Some(Dispatch { first: self.dispatch.map_or(now, |dispatch| dispatch.first), members });
        let is_other_model = self.progress.fingerprint.as_ref().is_some_and(|other| other != fingerprint);
        if is_other_model || self.request.key.options.look_back() {
            if self.has_reached_client() {
                return Err(if is_other_model { Failure::ModelGone } else { Failure::NotResumable });
            }
            self.progress = Progress::default();
            self.produced_before = 0;
        }
        Ok(())
    }

    /// Records that the job's worker died while the job ran. If the job had produced nothing in this attempt, it may be
    /// the cause, so it is suspected once more. After enough suspicions it is quarantined: first
    /// with a few other jobs, then alone.
    ///
    /// # Errors
    /// The job has been suspected `max_attempts` times, and it was alone in its batch or `max_attempts` is 1.
    pub fn suspect(&mut self, max_attempts: u32) -> Result<(), Failure> {
        if self.progress.produced.len() > self.produced_before {
            return Ok(());
        }
        self.suspicions += 1;
        let was_alone = self.dispatch.is_some_and(|dispatch| dispatch.members == 1);
        if self.suspicions >= max_attempts && (was_alone || max_attempts <= 1) {
            return Err(Failure::WorkerLost { attempts: self.attempts });
        }
        let quarantine = match self.suspicions.saturating_add(1).cmp(&max_attempts) {
            Ordering::Less => Quarantine::None,
            Ordering::Equal => Quarantine::Few,
            Ordering::Greater => Quarantine::Alone,
        };
        self.request.key.quarantine = quarantine;
        Ok(())
    }

    /// Prepares the job to wait again. It is tied to its fingerprint if a part of its answer has reached the client.
    ///
    /// # Errors
    /// A part of the answer has reached the client, and no worker can continue it because the options look back.
    pub fn requeue(&mut self) -> Result<(), Failure> {
        let Some(fingerprint) = self.progress.fingerprint.as_ref().filter(|_| self.has_reached_client()) else {
            return Ok(());
        };
        if self.request.key.options.look_back() {
            return Err(Failure::NotResumable);
        }
        self.request.key.target.fingerprint = ModelFingerprint::of(fingerprint);
        Ok(())
    }

    /// Whether a part of its answer has reached the client.
    fn has_reached_client(&self) -> bool {
        self.reply.is_stream() && self.progress.sent > 0
    }
}

#[cfg(test)]
mod tests {
    use pillion_protocol::frame::Options;

    use super::*;
    use crate::domain::BatchKey;

    fn job() -> Job {
        let request = GenerationRequest::text("why", BatchKey::new(Options::default(), 0), 10);
        Job::new(JobId(1), request, Instant::now(), Instant::now(), Reply::unheard())
    }

    /// A job's quarantine after each death of a worker, in batches of these sizes. `None` if the job has failed.
    fn quarantines(max_attempts: u32, batch_sizes: &[usize]) -> Vec<Option<Quarantine>> {
        let (mut job, fingerprint) = (job(), Arc::from("a"));
        let mut attempt = |&members| {
            job.leave_queue(&fingerprint, members, Instant::now()).unwrap();
            job.suspect(max_attempts).ok().map(|()| job.request.key.quarantine)
        };
        batch_sizes.iter().map(&mut attempt).collect()
    }

    #[test]
    fn a_suspected_job_shares_smaller_and_smaller_batches_and_fails_alone() {
        use Quarantine::{Alone, Few};
        assert_eq!(quarantines(3, &[50, 50, 8, 1]), [Some(Quarantine::None), Some(Few), Some(Alone), None]);
        assert_eq!(quarantines(3, &[1, 1, 1]), [Some(Quarantine::None), Some(Few), None]);
        assert_eq!(quarantines(2, &[50, 8, 1]), [Some(Few), Some(Alone), None]);
        assert_eq!(quarantines(1, &[50]), [None], "it has only one attempt");
    }

    #[test]
    fn a_job_gives_way_three_times_and_never_with_options_that_look_back() {
        let mut job = job();
        for _ in 0..3 {
            assert!(job.may_give_way());
            job.gave_way += 1;
        }
        assert!(!job.may_give_way());
        job.gave_way = 0;
        job.request.key.options.repetition_penalty = 1.1;
        assert!(!job.may_give_way());
        job.request.key.options = Options { no_repeat_ngram_size: 3, ..Options::default() };
        assert!(!job.may_give_way());
    }

    #[test]
    fn a_job_that_produced_tokens_in_the_attempt_is_not_suspected() {
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
