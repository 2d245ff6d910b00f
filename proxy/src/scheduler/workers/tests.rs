use std::time::Duration;

use pillion_protocol::frame::{BatchCost, Options, UnitCost};
use tokio::sync::mpsc;

use super::super::batch::DispatchedBatch;
use super::super::worker::LONGEST_LEAD;
use super::*;
use crate::domain::{BatchKey, GenerationRequest, Job, JobId, ModelFingerprint, Reply};
use crate::policy::candidates::Size;
use crate::policy::forecast::BatchOutcome;

const MINUTE: Duration = Duration::from_secs(60);
/// A step takes a millisecond, and a tenth of a millisecond more for each member.
const COST: UnitCost = UnitCost { step_ns: 1_000_000, member_ns: 100_000, prompt_ns: 0 };

fn workers_of(costs: &[(&str, UnitCost)]) -> (Workers, Instant) {
    let mut workers = Workers::default();
    let now = Instant::now();
    for (id, (fingerprint, cost)) in (1..).zip(costs) {
        let hello = Hello {
            versions: vec![1],
            software: "test".into(),
            pid: 0,
            model: "model".into(),
            fingerprint: (*fingerprint).into(),
            positions: 1024,
            vocabulary: 512,
            max_batch_tokens: 4096,
            slots: 1,
            chat: false,
            cost: *cost,
            age_ms: 0,
        };
        workers.add(WorkerId(id), hello, ModelId::new(1), mpsc::unbounded_channel().0, now);
        workers.get_mut(WorkerId(id)).unwrap().credit = 1;
    }
    (workers, now)
}

fn workers(fingerprints: &[&str]) -> (Workers, Instant) {
    workers_of(&fingerprints.iter().map(|fingerprint| (*fingerprint, UnitCost::default())).collect::<Vec<_>>())
}

/// The worker model with this fingerprint.
fn model(fingerprint: &str) -> WorkerModel {
    WorkerModel { model: ModelId::new(1), fingerprint: ModelFingerprint::of(fingerprint) }
}

fn any() -> BatchKey {
    BatchKey::new(Options::default(), 0)
}

fn demand(members: usize) -> Demand {
    let mut demand = Demand::default();
    (0..members).for_each(|_| demand.add(10, 10, 0));
    demand
}

#[test]
fn without_measurements_the_worker_with_credit_and_the_fewest_members_is_next() {
    let (mut workers, now) = workers(&["a", "a", "a"]);
    workers.get_mut(WorkerId(1)).unwrap().members = 5;
    workers.get_mut(WorkerId(2)).unwrap().members = 2;
    workers.get_mut(WorkerId(3)).unwrap().credit = 0;
    assert_eq!(workers.soonest(&demand(1), model("a"), None, now), Some(WorkerId(2)));
    workers.get_mut(WorkerId(2)).unwrap().credit = 0;
    assert_eq!(workers.soonest(&demand(1), model("a"), None, now), Some(WorkerId(1)));
    workers.get_mut(WorkerId(1)).unwrap().credit = 0;
    assert_eq!(workers.soonest(&demand(1), model("a"), None, now), None);
}

#[test]
fn the_worker_that_is_predicted_to_end_the_batch_soonest_is_next() {
    let slow = UnitCost { step_ns: 3 * COST.step_ns, member_ns: 3 * COST.member_ns, ..COST };
    let (mut workers, now) = workers_of(&[("a", slow), ("a", COST)]);
    assert_eq!(workers.soonest(&demand(4), model("a"), None, now), Some(WorkerId(2)));
    // The fast worker takes 10 steps of 1.4 ms, after a batch of 10 steps of 5 ms; the slow one 10 steps of 4.2 ms.
    let fast = workers.get_mut(WorkerId(2)).unwrap();
    let dispatched = fast.add_batch(demand(40), None, false, now);
    fast.credit = 1;
    assert_eq!(dispatched.predicted, Duration::from_millis(50));
    assert_eq!(workers.soonest(&demand(4), model("a"), None, now), Some(WorkerId(1)));
    assert_eq!(
        workers.soonest(&demand(4), model("a"), None, now + Duration::from_millis(40)),
        Some(WorkerId(2)),
        "it is nearly free"
    );
}

#[test]
fn waiting_jobs_are_shared_with_idle_workers_if_that_makes_the_batch_shorter() {
    let (mut workers, now) = workers_of(&[("a", COST), ("a", COST)]);
    assert_eq!(workers.share(&demand(40), WorkerId(1)), 20);
    assert_eq!(workers.share(&demand(2), WorkerId(1)), usize::MAX, "nearly all of the time is fixed cost");
    workers.get_mut(WorkerId(2)).unwrap().add_batch(demand(1), None, false, now);
    workers.get_mut(WorkerId(2)).unwrap().credit = 1;
    assert_eq!(workers.share(&demand(40), WorkerId(1)), usize::MAX, "the other worker is busy");
}

#[test]
fn a_credit_before_the_end_of_a_batch_shows_how_many_members_are_about_to_end() {
    let (mut workers, now) = workers_of(&[("a", COST)]);
    let worker = workers.get_mut(WorkerId(1)).unwrap();
    assert_eq!(worker.ending(now), (0, Duration::ZERO));
    let dispatched = worker.add_batch(demand(40), None, false, now);
    assert_eq!(worker.ending(now + Duration::from_millis(49)), (40, Duration::from_millis(1)));
    assert_eq!(worker.ending(now), (40, LONGEST_LEAD), "workers do not grant credit so early");
    let cost = BatchCost { engine_us: 80_000, cohorts: 1, steps: 10, ..BatchCost::default() };
    let outcome = BatchOutcome { prompt_tokens: 100, completion_tokens: 400, cost };
    worker.done(&dispatched, &outcome, now + Duration::from_millis(80));
    assert_eq!(worker.ending(now), (0, Duration::ZERO));
    assert!(worker.forecast.time(&demand(40)) > Duration::from_millis(60), "the forecast learns that it is slower");
}

#[test]
fn the_last_worker_is_kept_while_jobs_wait_for_it() {
    let (mut workers, told) = workers(&["a"]);
    workers.drains(WorkerId(1), told);
    let now = told + MINUTE;
    assert!(workers.releasable(&[Target::ANY].iter(), false, now).is_empty());
    let for_another = Target { model: ModelId::new(2), ..Target::ANY };
    assert_eq!(workers.releasable(&[for_another].iter(), false, now), [WorkerId(1)]);
    assert_eq!(workers.releasable(&[].iter(), false, now), [WorkerId(1)]);
    workers.get_mut(WorkerId(1)).unwrap().members = 1;
    assert!(workers.releasable(&[].iter(), false, now).is_empty(), "it holds a member");
}

#[test]
fn the_last_worker_of_a_model_stays_for_requests_that_are_on_their_way() {
    const SECOND: Duration = Duration::from_secs(1);
    const MOMENT: Duration = Duration::from_millis(1);
    let (mut workers, start) = workers(&["b", "a", "a"]);
    workers.drains(WorkerId(2), start);
    assert_eq!(workers.leaving(), None);
    assert_eq!(workers.releasable(&[].iter(), true, start), [WorkerId(2)], "another worker with its model stays");
    workers.remove(WorkerId(2), start);
    let told = start + MINUTE;
    workers.drains(WorkerId(3), told);
    workers.drains(WorkerId(3), told + SECOND);
    assert_eq!(
        (workers.leaving(), workers.next_leave(false, told)),
        (None, Some(told + 2 * SECOND)),
        "the time counts from when it first asked to leave"
    );
    let next_leave = |arriving, after| workers.next_leave(arriving, told + after).map(|due| due - told);
    let may_leave = |arriving, after| !workers.releasable(&[].iter(), arriving, told + after).is_empty();
    assert!(!may_leave(false, 1999 * MOMENT) && may_leave(false, 2 * SECOND));
    assert_eq!(next_leave(false, 2 * SECOND), None, "a time that is over is not waited for");
    // Bodies may take long to arrive, so there are checks in between.
    assert_eq!((next_leave(true, SECOND), next_leave(true, 5 * SECOND)), (Some(2 * SECOND), Some(6 * SECOND)));
    assert!(!may_leave(true, 30_999 * MOMENT) && may_leave(true, 31 * SECOND));
    assert_eq!((next_leave(true, 30_999 * MOMENT), next_leave(true, 31 * SECOND)), (Some(31 * SECOND), None));
    workers.drains(WorkerId(1), told + MINUTE);
    assert_eq!(workers.leaving(), Some(told + MINUTE), "from when the last of all workers asked to leave");
}

#[test]
fn workers_are_leaving_until_another_connects_but_not_if_the_last_one_died() {
    let (mut workers, now) = workers(&["a", "b"]);
    let (told, died) = (workers.all[0].hello.clone(), workers.all[1].hello.clone());
    workers.drains(WorkerId(1), now);
    workers.remove(WorkerId(2), now);
    assert!(workers.leaving().is_some(), "the worker that is left has asked to leave");
    workers.remove(WorkerId(1), now);
    assert!(workers.leaving().is_some(), "it has left");
    workers.add(WorkerId(3), died, ModelId::new(1), mpsc::unbounded_channel().0, now);
    assert!(workers.leaving().is_none());
    workers.remove(WorkerId(3), now);
    assert!(workers.leaving().is_none(), "it had not asked to leave");
    workers.add(WorkerId(4), told, ModelId::new(1), mpsc::unbounded_channel().0, now);
    workers.drains(WorkerId(3), now);
    assert!(workers.leaving().is_none(), "a worker that is gone does not count");
}

#[test]
fn a_worker_may_leave_at_once_if_another_with_its_model_stays() {
    let (mut workers, now) = workers(&["a", "a"]);
    let leaver = workers.get_mut(WorkerId(2)).unwrap();
    (leaver.drains_since, leaver.members) = (Some(now), 1);
    assert_eq!(workers.releasable(&[Target::ANY].iter(), false, now), [WorkerId(2)]);
    assert_eq!(workers.soonest(&demand(1), model("a"), None, now), Some(WorkerId(1)));
}

#[test]
fn a_newer_model_gets_new_jobs_and_the_older_one_ends_what_it_has_begun() {
    let (mut workers, now) = workers(&["old", "old", "new"]);
    let tied = Target { fingerprint: ModelFingerprint::of("old"), ..Target::ANY };
    let serving =
        |workers: &Workers, target: Target| workers.serving(&target).map(|worker| worker.id.0).collect::<Vec<_>>();
    assert_eq!((serving(&workers, Target::ANY), serving(&workers, tied)), (vec![3], vec![1, 2]));
    let next = |workers: &Workers, target| {
        let bucket =
            Bucket { key: BatchKey { target, ..any() }, size: Size::of(&demand(1)), since: now, demand: demand(1) };
        workers.next(&[bucket], 50, |_| 0.0, &[], now).map(|(id, _)| id.0)
    };
    assert_eq!((next(&workers, Target::ANY), next(&workers, tied)), (Some(3), Some(1)));
    for id in [1, 2] {
        let leaver = workers.get_mut(WorkerId(id)).unwrap();
        (leaver.drains_since, leaver.members) = (Some(now), 1);
    }
    assert!(
        workers.releasable(&[Target::ANY].iter(), false, now).is_empty(),
        "they hold members that no other worker can continue"
    );
    workers.get_mut(WorkerId(1)).unwrap().members = 0;
    assert_eq!(workers.releasable(&[Target::ANY].iter(), false, now), [WorkerId(1)]);
    assert!(workers.releasable(&[Target::ANY, tied].iter(), false, now).is_empty());
    // The new model is withdrawn, so the old one takes over again.
    workers.get_mut(WorkerId(1)).unwrap().drains_since = None;
    workers.drains(WorkerId(3), now);
    assert_eq!(serving(&workers, Target::ANY), [1, 2, 3]);
    workers.remove(WorkerId(3), now);
    assert_eq!(serving(&workers, Target::ANY), [1, 2]);
}

#[test]
fn a_worker_that_dials_again_does_not_make_its_model_newer() {
    let (mut workers, now) = workers(&["new"]);
    let hello = workers.all[0].hello.clone();
    // Its model was loaded a minute ago, and it connects a second after the other worker.
    let hello = Hello { fingerprint: "old".into(), age_ms: 60_000, ..hello };
    workers.add(WorkerId(2), hello, ModelId::new(1), mpsc::unbounded_channel().0, now + Duration::from_secs(1));
    let serving = workers.serving(&Target::ANY).map(|worker| worker.id).collect::<Vec<_>>();
    assert_eq!(serving, [WorkerId(1)]);
}

#[test]
fn a_quarantined_job_has_a_worker_for_itself() {
    let (mut workers, now) = workers(&["a", "a"]);
    let bucket = |quarantine| {
        let key = BatchKey { quarantine, ..any() };
        Bucket { key, size: Size::of(&demand(1)), since: now, demand: demand(1) }
    };
    let next =
        |workers: &Workers, quarantine| workers.next(&[bucket(quarantine)], 50, |_| 0.0, &[], now).map(|(id, _)| id.0);
    let dispatch = |workers: &mut Workers, id, quarantine| {
        let request = GenerationRequest::text("text", BatchKey { quarantine, ..any() }, 10);
        let worker = workers.get_mut(WorkerId(id)).unwrap();
        worker.dispatch(&[Box::new(Job::new(JobId(id), request, now, now, Reply::unheard()))], false, now);
        worker.credit = 1;
    };
    dispatch(&mut workers, 1, Quarantine::None);
    assert_eq!(next(&workers, Quarantine::Alone), Some(2), "the first worker holds another batch");
    dispatch(&mut workers, 2, Quarantine::Alone);
    assert_eq!(next(&workers, Quarantine::Alone), None);
    assert_eq!(next(&workers, Quarantine::None), Some(1), "the second worker holds a quarantined job");
}

#[test]
fn while_a_quarantined_job_waits_for_an_empty_worker_only_one_worker_takes_no_other_jobs() {
    let (mut workers, now) = workers(&["a", "a", "a"]);
    workers.get_mut(WorkerId(3)).unwrap().credit = 0;
    for id in [1, 2] {
        let worker = workers.get_mut(WorkerId(id)).unwrap();
        worker.add_batch(demand(1), None, false, now);
        worker.credit = 1;
    }
    let bucket = |quarantine, since| {
        let key = BatchKey { quarantine, ..any() };
        Bucket { key, size: Size::of(&demand(1)), since, demand: demand(1) }
    };
    let (trial, other) = (bucket(Quarantine::Alone, now - MINUTE), bucket(Quarantine::None, now));
    let next = |workers: &Workers| {
        let next = workers.next(&[trial, other], 50, |_| 0.0, &[], now);
        next.map(|(id, candidate)| (id.0, candidate.quarantine()))
    };
    assert_eq!(next(&workers), Some((2, Quarantine::None)), "the third worker is empty, and takes no batch");
    workers.get_mut(WorkerId(2)).unwrap().credit = 0;
    assert_eq!(next(&workers), None, "the first worker is kept for the trial");
    let worker = workers.get_mut(WorkerId(1)).unwrap();
    let ended =
        DispatchedBatch { batch: BatchId(1), demand: demand(1), predicted: Duration::ZERO, resumable_before: None };
    worker.done(&ended, &BatchOutcome::default(), now);
    assert_eq!(next(&workers), Some((1, Quarantine::Alone)));
}

#[test]
fn a_cancellation_goes_to_the_worker_that_holds_the_job() {
    let (mut workers, now) = workers(&["a", "a"]);
    let mut inboxes = Vec::new();
    for (id, jobs) in [(1, [1, 4, 9]), (2, [2, 3, 8])] {
        let jobs: Vec<_> = jobs
            .map(|job| {
                let request = GenerationRequest::text("text", any(), 10);
                Box::new(Job::new(JobId(job), request, now, now, Reply::unheard()))
            })
            .into();
        let worker = workers.get_mut(WorkerId(id)).unwrap();
        let (link, inbox) = mpsc::unbounded_channel();
        worker.link = link;
        worker.dispatch(&jobs, false, now);
        inboxes.push(inbox);
    }
    for (jobs, told) in
        [(4..5, [1, 0]), (3..4, [0, 1]), (3..5, [1, 1]), (5..8, [0, 0]), (9..12, [1, 0]), (0..1, [0, 0])]
    {
        workers.cancel(&jobs);
        let seen: Vec<_> = inboxes.iter_mut().map(|inbox| usize::from(inbox.try_recv().is_ok())).collect();
        assert_eq!(seen, told, "{jobs:?}");
    }
}

#[test]
fn a_batch_does_not_run_before_an_engine_has_begun_it() {
    let (mut workers, now) = workers(&["a"]);
    let worker = workers.get_mut(WorkerId(1)).unwrap();
    let (first, second) =
        (worker.add_batch(demand(1), None, false, now), worker.add_batch(demand(1), None, false, now));
    assert!(worker.runs(first.batch) && !worker.runs(second.batch));
    worker.done(&first, &BatchOutcome::default(), now);
    assert!(worker.runs(second.batch));
}

#[test]
fn a_target_is_unserved_since_the_last_suitable_worker_left() {
    let (mut workers, start) = workers(&["a"]);
    let (later, other) = (start + MINUTE, Target { model: ModelId::new(2), ..Target::ANY });
    assert_eq!(workers.unserved_since(&Target::ANY, start), None);
    assert_eq!(workers.unserved_since(&other, start), Some(start), "there has never been a suitable worker");
    workers.remove(WorkerId(1), later);
    assert_eq!(workers.unserved_since(&Target::ANY, start), Some(later));
    assert_eq!(
        workers.unserved_since(&Target { fingerprint: ModelFingerprint::of("a"), ..Target::ANY }, start),
        Some(later)
    );
    assert_eq!(
        workers.unserved_since(&Target { fingerprint: ModelFingerprint::of("b"), ..Target::ANY }, start),
        Some(start)
    );
}

#[test]
fn a_released_worker_gets_no_batches() {
    let (mut workers, now) = workers(&["a"]);
    workers.get_mut(WorkerId(1)).unwrap().released = true;
    assert!(workers.soonest(&demand(1), model("a"), None, now).is_none() && workers.none_serving());
}

/// Workers without credit that each have one member of ten left after 10 of 1000 steps; and forty short jobs that wait.
fn with_few_members_left(fingerprints: &[&str], timeout: Duration) -> (Workers, Policy, Vec<Bucket>, Instant) {
    let all: Vec<_> = fingerprints.iter().map(|fingerprint| (*fingerprint, COST)).collect();
    let (mut workers, start) = workers_of(&all);
    let mut long = Demand::default();
    (0..10).for_each(|_| long.add(10, 1000, 0));
    for id in 1..=fingerprints.len() as u64 {
        let worker = workers.get_mut(WorkerId(id)).unwrap();
        let dispatched = worker.add_batch(long, Some(start + timeout), false, start);
        worker.ended(dispatched.batch, 9);
    }
    let mut policy = Policy::new(50, Duration::from_millis(100));
    policy.preemption.worked(Duration::from_secs(10));
    let key = BatchKey::new(Options::default(), 0);
    let bucket = Bucket { key, size: Size::of(&demand(1)), since: start, demand: demand(40) };
    (workers, policy, vec![bucket], start + Duration::from_millis(20))
}

#[test]
fn only_one_batch_gives_way_at_a_time() {
    let (mut workers, policy, buckets, now) = with_few_members_left(&["a", "a"], MINUTE);
    let (id, batch, _) = workers.should_give_way(buckets.clone(), 50, |_| Some(&policy), now).unwrap();
    workers.get_mut(id).unwrap().give_way(batch);
    assert_eq!(
        workers.should_give_way(buckets.clone(), 50, |_| Some(&policy), now),
        None,
        "an engine will be free for these jobs"
    );
}

#[test]
fn a_batch_does_not_give_way_if_its_members_would_start_again_or_be_late_or_if_an_engine_is_free() {
    let (workers, policy, buckets, now) = with_few_members_left(&["a", "b"], MINUTE);
    assert_eq!(
        workers.should_give_way(buckets.clone(), 50, |_| Some(&policy), now),
        None,
        "the other worker has another model"
    );
    let (workers, policy, buckets, now) = with_few_members_left(&["a"], Duration::from_secs(5));
    assert_eq!(
        workers.should_give_way(buckets.clone(), 50, |_| Some(&policy), now),
        None,
        "the member's deadline is near"
    );
    let (mut workers, policy, buckets, now) = with_few_members_left(&["a"], MINUTE);
    assert!(workers.should_give_way(buckets.clone(), 50, |_| Some(&policy), now).is_some());
    workers.get_mut(WorkerId(1)).unwrap().credit = 1;
    assert_eq!(
        workers.should_give_way(buckets.clone(), 50, |_| Some(&policy), now),
        None,
        "a worker has credit for these jobs"
    );
}
