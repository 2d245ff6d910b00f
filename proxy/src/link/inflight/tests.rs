use std::time::Duration;

use pillion_protocol::frame::{FinishReason, Options};

use super::*;
use crate::domain::{BatchKey, Demand, GenerationRequest, JobId, Reply};

const BATCH: BatchId = BatchId(7);

fn job(id: u64, deadline: Instant) -> Box<Job> {
    let request = GenerationRequest::text("text", BatchKey::new(Options::default(), 0), 2);
    Box::new(Job::new(JobId(id), request, deadline, deadline, Reply::unheard()))
}

/// A table with one batch of the jobs 10 and 11. The deadline of job 10 is in a second, that of job 11 in two.
fn table() -> (InFlight, Instant) {
    let now = Instant::now();
    let mut table = InFlight::new(Gauge::noop());
    let jobs = vec![job(10, now + Duration::from_secs(1)), job(11, now + Duration::from_secs(2))];
    table.insert(jobs, dispatched(), now);
    (table, now)
}

const COST: BatchCost = BatchCost { engine_us: 7, cohorts: 1, steps: 2, forced_steps: 0, idle_us: 0 };

fn dispatched() -> DispatchedBatch {
    let demand = Demand { members: 2, ..Demand::default() };
    DispatchedBatch { batch: BATCH, demand, predicted: Duration::from_millis(1), resumable_before: None }
}

fn tokens(member: MemberIndex, ids: &[u32], text: &str) -> MemberTokens {
    MemberTokens { member, ids: ids.to_vec(), text: text.into() }
}

#[test]
fn a_member_ends_once() {
    let (mut table, _) = table();
    assert_eq!(table.end(BATCH, 0).unwrap().unwrap().id, JobId(10));
    assert_eq!(table.end(BATCH, 0).unwrap_err(), Violation::AlreadyEnded(BATCH, 0));
}

#[test]
fn a_frame_for_what_is_not_held_is_a_violation() {
    let (mut table, now) = table();
    let fingerprint = Arc::from("f");
    assert_eq!(table.end(BATCH, 2).unwrap_err(), Violation::UnknownMember(BATCH, 2));
    assert_eq!(table.end(BatchId(8), 0).unwrap_err(), Violation::UnknownBatch(BatchId(8)));
    let error = table.tokens(BatchId(8), tokens(0, &[], ""), &fingerprint, now).unwrap_err();
    assert_eq!(error, Violation::UnknownBatch(BatchId(8)));
}

#[test]
fn tokens_add_up_and_more_than_was_asked_for_is_a_violation() {
    let (mut table, now) = table();
    let fingerprint = Arc::from("f");
    table.tokens(BATCH, tokens(1, &[5], "a"), &fingerprint, now).unwrap();
    table.tokens(BATCH, tokens(1, &[6], "b"), &fingerprint, now).unwrap();
    let error = table.tokens(BATCH, tokens(1, &[7], ""), &fingerprint, now).unwrap_err();
    assert_eq!(error, Violation::TooMuch(BATCH, 1));
    let job = table.end(BATCH, 1).unwrap().unwrap();
    assert_eq!((job.progress.produced, job.progress.text.as_str()), (vec![5, 6], "ab"));
}

#[test]
fn too_much_text_for_a_token_is_a_violation() {
    let (mut table, now) = table();
    let error = table.tokens(BATCH, tokens(0, &[1], &"x".repeat(4000)), &Arc::from("f"), now).unwrap_err();
    assert_eq!(error, Violation::TooMuch(BATCH, 0));
}

#[test]
fn a_batch_is_done_only_when_every_member_has_ended() {
    let (mut table, now) = table();
    table.end(BATCH, 0).unwrap();
    assert_eq!(table.done(BATCH, COST).unwrap_err(), Violation::Unfinished(BATCH));
    let (reason, prompt_tokens, completion_tokens) = (FinishReason::Length, 5, 3);
    table.finish(BATCH, &MemberFinished { member: 1, reason, prompt_tokens, completion_tokens }).unwrap();
    let outcome = BatchOutcome { prompt_tokens: 5, completion_tokens: 3, cost: COST };
    assert_eq!(table.done(BATCH, COST).unwrap(), CompletedBatch { since: now, dispatched: dispatched(), outcome });
    assert_eq!(table.done(BATCH, COST).unwrap_err(), Violation::UnknownBatch(BATCH));
    assert!(table.is_empty());
}

#[test]
fn frames_for_a_cancelled_member_are_ignored() {
    let (mut table, now) = table();
    let left = table.cancel(&(10..11));
    assert_eq!(
        left.iter().map(|(batch, member, job)| (*batch, *member, job.id)).collect::<Vec<_>>(),
        [(BATCH, 0, JobId(10))]
    );
    table.tokens(BATCH, tokens(0, &[1, 2, 3], "late"), &Arc::from("f"), now).unwrap();
    assert!(table.end(BATCH, 0).unwrap().is_none());
}

#[test]
fn only_members_past_their_deadline_expire() {
    let (mut table, now) = table();
    let expired = table.expire(now + Duration::from_secs(1));
    assert_eq!(expired.iter().map(|(_, _, job)| job.id).collect::<Vec<_>>(), [JobId(10)]);
    assert_eq!(table.wanted().map(|job| job.id).collect::<Vec<_>>(), [JobId(11)]);
}

#[test]
fn a_drained_table_gives_back_the_jobs_that_clients_wait_for_with_the_oldest_first() {
    let (mut table, now) = table();
    table.insert(vec![job(3, now)], DispatchedBatch { batch: BatchId(8), ..dispatched() }, now);
    table.end(BATCH, 0).unwrap();
    assert_eq!(table.drain().iter().map(|(_, job)| job.id).collect::<Vec<_>>(), [JobId(3), JobId(11)]);
    assert!(table.is_empty());
}
