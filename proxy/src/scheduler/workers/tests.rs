use std::time::Duration;

use pillion_protocol::frame::{BatchCost, Options, UnitCost};
use tokio::sync::mpsc;

use super::super::worker::LONGEST_LEAD;
use super::*;
use crate::domain::{GenerationRequest, Job, JobId, ModelFingerprint, Reply};
use crate::policy::candidates::Size;
use crate::policy::forecast::BatchOutcome;

const MINUTE: Duration = Duration::from_secs(60);
/// A millisecond a step, a tenth of one for each member in it.
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
        workers.add(WorkerId(id), hello, ModelId::new(1), mpsc::channel(1).0, now);
        workers.get_mut(WorkerId(id)).unwrap().credit = 1;
    }
    (workers, now)
}

fn workers(fingerprints: &[&str]) -> (Workers, Instant) {
    workers_of(&fingerprints.iter().map(|fingerprint| (*fingerprint, UnitCost::default())).collect::<Vec<_>>())
}

/// Of a worker with this fingerprint.
fn model(fingerprint: &str) -> WorkerModel {
    WorkerModel { model: ModelId::new(1), fingerprint: ModelFingerprint::of(fingerprint) }
}

fn any() -> BatchKey {
    BatchKey::new(&Options::default(), 0)
}

fn demand(members: usize) -> Demand {
    let mut demand = Demand::default();
    (0..members).for_each(|_| demand.add(10, 10, 0));
    demand
}

#[test]
fn with_nothing_measured_the_least_loaded_with_credit_is_next() {
    let (mut workers, now) = workers(&["a", "a", "a"]);
    workers.get_mut(WorkerId(1)).unwrap().members = 5;
    workers.get_mut(WorkerId(2)).unwrap().members = 2;
    workers.get_mut(WorkerId(3)).unwrap().credit = 0;
    assert_eq!(workers.soonest(&demand(1), model("a"), now), Some(WorkerId(2)));
    workers.get_mut(WorkerId(2)).unwrap().credit = 0;
    assert_eq!(workers.soonest(&demand(1), model("a"), now), Some(WorkerId(1)));
    workers.get_mut(WorkerId(1)).unwrap().credit = 0;
    assert_eq!(workers.soonest(&demand(1), model("a"), now), None);
}

#[test]
fn the_one_that_is_predicted_to_end_it_soonest_is_next() {
    let slow = UnitCost { step_ns: 3 * COST.step_ns, member_ns: 3 * COST.member_ns, ..COST };
    let (mut workers, now) = workers_of(&[("a", slow), ("a", COST)]);
    assert_eq!(workers.soonest(&demand(4), model("a"), now), Some(WorkerId(2)));
    // 10 steps of 1.4 ms on the fast one, with a batch of 10 steps of 5 ms before it; 10 of 4.2 ms on the slow one.
    let fast = workers.get_mut(WorkerId(2)).unwrap();
    let dispatched = fast.take(demand(40), None, now);
    fast.credit = 1;
    assert_eq!(dispatched.predicted, Duration::from_millis(50));
    assert_eq!(workers.soonest(&demand(4), model("a"), now), Some(WorkerId(1)));
    assert_eq!(
        workers.soonest(&demand(4), model("a"), now + Duration::from_millis(40)),
        Some(WorkerId(2)),
        "nearly free"
    );
}

#[test]
fn what_waits_is_shared_with_idle_workers_where_that_is_shorter() {
    let (mut workers, now) = workers_of(&[("a", COST), ("a", COST)]);
    assert_eq!(workers.share(&demand(40), WorkerId(1)), 20);
    assert_eq!(workers.share(&demand(2), WorkerId(1)), usize::MAX, "nearly all of it is fixed cost");
    workers.get_mut(WorkerId(2)).unwrap().take(demand(1), None, now);
    workers.get_mut(WorkerId(2)).unwrap().credit = 1;
    assert_eq!(workers.share(&demand(40), WorkerId(1)), usize::MAX, "the other one is busy");
}

#[test]
fn a_credit_before_the_end_says_who_is_about_to_be_answered() {
    let (mut workers, now) = workers_of(&[("a", COST)]);
    let worker = workers.get_mut(WorkerId(1)).unwrap();
    assert_eq!(worker.ending(now), (0, Duration::ZERO));
    let dispatched = worker.take(demand(40), None, now);
    assert_eq!(worker.ending(now + Duration::from_millis(49)), (40, Duration::from_millis(1)));
    assert_eq!(worker.ending(now), (40, LONGEST_LEAD), "a worker would not grant credit so early");
    let cost = BatchCost { engine_us: 80_000, cohorts: 1, steps: 10, ..BatchCost::default() };
    let outcome = BatchOutcome { prompt_tokens: 100, completion_tokens: 400, cost };
    worker.done(&dispatched, &outcome, now + Duration::from_millis(80));
    assert_eq!(worker.ending(now), (0, Duration::ZERO));
    assert!(worker.forecast.time(&demand(40)) > Duration::from_millis(60), "it has learned that it is slower");
}

#[test]
fn a_lone_worker_that_wants_to_leave_is_kept_while_somebody_waits_for_it() {
    let (mut workers, told) = workers(&["a"]);
    workers.drains(WorkerId(1), told);
    let now = told + MINUTE;
    assert!(workers.releasable(&[any()].iter(), false, now).is_empty());
    let for_another = BatchKey { model: ModelId::new(2), ..any() };
    assert_eq!(workers.releasable(&[for_another].iter(), false, now), [WorkerId(1)]);
    assert_eq!(workers.releasable(&[].iter(), false, now), [WorkerId(1)]);
    workers.get_mut(WorkerId(1)).unwrap().members = 1;
    assert!(workers.releasable(&[].iter(), false, now).is_empty(), "it holds a member");
}

#[test]
fn the_last_of_its_kind_lingers_for_what_is_on_its_way() {
    const SECOND: Duration = Duration::from_secs(1);
    const MOMENT: Duration = Duration::from_millis(1);
    let (mut workers, start) = workers(&["b", "a", "a"]);
    workers.drains(WorkerId(2), start);
    assert_eq!(workers.leaving(), None);
    assert_eq!(workers.releasable(&[].iter(), true, start), [WorkerId(2)], "an equal one stays");
    workers.remove(WorkerId(2), start);
    let told = start + MINUTE;
    workers.drains(WorkerId(3), told);
    workers.drains(WorkerId(3), told + SECOND);
    assert_eq!((workers.leaving(), workers.next_leave(false, told)), (None, Some(told + 2 * SECOND)), "told once");
    let next_leave = |arriving, after| workers.next_leave(arriving, told + after).map(|due| due - told);
    let may_leave = |arriving, after| !workers.releasable(&[].iter(), arriving, told + after).is_empty();
    assert!(!may_leave(false, 1999 * MOMENT) && may_leave(false, 2 * SECOND));
    assert_eq!(next_leave(false, 2 * SECOND), None, "what is over is awaited no more");
    // Bodies may be long in coming, and whether they have come is looked at now and then.
    assert_eq!((next_leave(true, SECOND), next_leave(true, 5 * SECOND)), (Some(2 * SECOND), Some(6 * SECOND)));
    assert!(!may_leave(true, 30_999 * MOMENT) && may_leave(true, 31 * SECOND));
    assert_eq!((next_leave(true, 30_999 * MOMENT), next_leave(true, 31 * SECOND)), (Some(31 * SECOND), None));
    workers.drains(WorkerId(1), told + MINUTE);
    assert_eq!(workers.leaving(), Some(told + MINUTE), "since the last of all was told to");
}

#[test]
fn none_stays_until_another_comes_and_whoever_died_comes_back() {
    let (mut workers, now) = workers(&["a", "b"]);
    let (told, died) = (workers.all[0].hello.clone(), workers.all[1].hello.clone());
    workers.drains(WorkerId(1), now);
    workers.remove(WorkerId(2), now);
    assert!(workers.leaving().is_some(), "who is left was told to stop");
    workers.remove(WorkerId(1), now);
    assert!(workers.leaving().is_some(), "and has");
    workers.add(WorkerId(3), died, ModelId::new(1), mpsc::channel(1).0, now);
    assert!(workers.leaving().is_none());
    workers.remove(WorkerId(3), now);
    assert!(workers.leaving().is_none(), "it was not told to");
    workers.add(WorkerId(4), told, ModelId::new(1), mpsc::channel(1).0, now);
    workers.drains(WorkerId(3), now);
    assert!(workers.leaving().is_none(), "what is gone says nothing");
}

#[test]
fn a_worker_with_an_equal_beside_it_may_leave_at_once() {
    let (mut workers, now) = workers(&["a", "a"]);
    let leaver = workers.get_mut(WorkerId(2)).unwrap();
    (leaver.drains_since, leaver.members) = (Some(now), 1);
    assert_eq!(workers.releasable(&[any()].iter(), false, now), [WorkerId(2)]);
    assert_eq!(workers.soonest(&demand(1), model("a"), now), Some(WorkerId(1)));
}

#[test]
fn a_newer_model_takes_what_comes_and_the_older_one_ends_what_it_has_begun() {
    let (mut workers, now) = workers(&["old", "old", "new"]);
    let tied = BatchKey { fingerprint: ModelFingerprint::of("old"), ..any() };
    let serving =
        |workers: &Workers, key: BatchKey| workers.serving(&key).map(|worker| worker.id.0).collect::<Vec<_>>();
    assert_eq!((serving(&workers, any()), serving(&workers, tied)), (vec![3], vec![1, 2]));
    let next = |workers: &Workers, key| {
        let bucket = Bucket { key, size: Size::of(&demand(1)), since: now, demand: demand(1) };
        workers.next(&[bucket], 50, 0.0, now).map(|(id, _)| id.0)
    };
    assert_eq!((next(&workers, any()), next(&workers, tied)), (Some(3), Some(1)));
    for id in [1, 2] {
        let leaver = workers.get_mut(WorkerId(id)).unwrap();
        (leaver.drains_since, leaver.members) = (Some(now), 1);
    }
    assert!(
        workers.releasable(&[any()].iter(), false, now).is_empty(),
        "they hold members that no other can go on with"
    );
    workers.get_mut(WorkerId(1)).unwrap().members = 0;
    assert_eq!(workers.releasable(&[any()].iter(), false, now), [WorkerId(1)]);
    assert!(workers.releasable(&[any(), tied].iter(), false, now).is_empty());
    // It was no good: back to the old one.
    workers.get_mut(WorkerId(1)).unwrap().drains_since = None;
    workers.drains(WorkerId(3), now);
    assert_eq!(serving(&workers, any()), [1, 2, 3]);
    workers.remove(WorkerId(3), now);
    assert_eq!(serving(&workers, any()), [1, 2]);
}

#[test]
fn a_worker_that_dials_again_makes_its_model_no_newer() {
    let (mut workers, now) = workers(&["new"]);
    let hello = workers.all[0].hello.clone();
    // A minute of age, and it comes a second later.
    let hello = Hello { fingerprint: "old".into(), age_ms: 60_000, ..hello };
    workers.add(WorkerId(2), hello, ModelId::new(1), mpsc::channel(1).0, now + Duration::from_secs(1));
    let serving = workers.serving(&any()).map(|worker| worker.id).collect::<Vec<_>>();
    assert_eq!(serving, [WorkerId(1)]);
}

#[test]
fn whoever_is_on_trial_has_a_worker_for_himself() {
    let (mut workers, now) = workers(&["a", "a"]);
    let bucket = |quarantine| {
        let key = BatchKey { quarantine, ..any() };
        Bucket { key, size: Size::of(&demand(1)), since: now, demand: demand(1) }
    };
    let next = |workers: &Workers, quarantine| workers.next(&[bucket(quarantine)], 50, 0.0, now).map(|(id, _)| id.0);
    let dispatch = |workers: &mut Workers, id, quarantine| {
        let request = GenerationRequest::text("text", BatchKey { quarantine, ..any() }, 10);
        let worker = workers.get_mut(WorkerId(id)).unwrap();
        worker.dispatch(&[Box::new(Job::new(JobId(id), request, now, now, Reply::unheard()))], false, now);
        worker.credit = 1;
    };
    dispatch(&mut workers, 1, Quarantine::None);
    assert_eq!(next(&workers, Quarantine::Alone), Some(2), "the first holds another batch");
    dispatch(&mut workers, 2, Quarantine::Alone);
    assert_eq!(next(&workers, Quarantine::Alone), None);
    assert_eq!(next(&workers, Quarantine::None), Some(1), "the second is on quarantine");
}

#[test]
fn only_batches_that_an_engine_has_begun_can_be_why_a_worker_died() {
    let (mut workers, now) = workers(&["a"]);
    let worker = workers.get_mut(WorkerId(1)).unwrap();
    let (first, second) = (worker.take(demand(1), None, now), worker.take(demand(1), None, now));
    assert!(worker.runs(first.batch) && !worker.runs(second.batch));
    worker.done(&first, &BatchOutcome::default(), now);
    assert!(worker.runs(second.batch));
}

#[test]
fn without_a_worker_one_waits_since_the_last_one_left_who_would_have_done() {
    let (mut workers, start) = workers(&["a"]);
    let (later, other) = (start + MINUTE, BatchKey { model: ModelId::new(2), ..any() });
    assert_eq!(workers.unserved_since(&any(), start), None);
    assert_eq!(workers.unserved_since(&other, start), Some(start), "there has never been one");
    workers.remove(WorkerId(1), later);
    assert_eq!(workers.unserved_since(&any(), start), Some(later));
    assert_eq!(
        workers.unserved_since(&BatchKey { fingerprint: ModelFingerprint::of("a"), ..any() }, start),
        Some(later)
    );
    assert_eq!(
        workers.unserved_since(&BatchKey { fingerprint: ModelFingerprint::of("b"), ..any() }, start),
        Some(start)
    );
}

#[test]
fn a_released_worker_serves_no_more() {
    let (mut workers, now) = workers(&["a"]);
    workers.get_mut(WorkerId(1)).unwrap().released = true;
    assert!(workers.soonest(&demand(1), model("a"), now).is_none() && workers.none_serving());
}

/// Workers that each have one member of ten left after 10 of 1000 steps, and no credit; and forty short ones that wait.
fn shrunken(fingerprints: &[&str], timeout: Duration) -> (Workers, Policy, Vec<Bucket>, Instant) {
    let all: Vec<_> = fingerprints.iter().map(|fingerprint| (*fingerprint, COST)).collect();
    let (mut workers, start) = workers_of(&all);
    let mut long = Demand::default();
    (0..10).for_each(|_| long.add(10, 1000, 0));
    for id in 1..=fingerprints.len() as u64 {
        let worker = workers.get_mut(WorkerId(id)).unwrap();
        let dispatched = worker.take(long, Some(start + timeout), start);
        worker.ended(dispatched.batch, 9);
    }
    let mut policy = Policy::new(50, Duration::from_millis(100));
    policy.preemption.worked(Duration::from_secs(10));
    let key = BatchKey::new(&Options::default(), 0);
    let bucket = Bucket { key, size: Size::of(&demand(1)), since: start, demand: demand(40) };
    (workers, policy, vec![bucket], start + Duration::from_millis(20))
}

#[test]
fn a_batch_that_has_shrunk_gives_way_once() {
    let (mut workers, policy, buckets, now) = shrunken(&["a", "a"], MINUTE);
    let (id, batch, _) = workers.should_give_way(&buckets, 50, &policy, now).unwrap();
    workers.get_mut(id).unwrap().give_way(batch);
    assert_eq!(workers.should_give_way(&buckets, 50, &policy, now), None, "an engine is on its way to them");
}

#[test]
fn nobody_gives_way_who_might_have_to_start_again_or_be_too_late() {
    let (workers, policy, buckets, now) = shrunken(&["a", "b"], MINUTE);
    assert_eq!(workers.should_give_way(&buckets, 50, &policy, now), None, "the other one has another model");
    let (workers, policy, buckets, now) = shrunken(&["a"], Duration::from_secs(5));
    assert_eq!(workers.should_give_way(&buckets, 50, &policy, now), None, "its deadline is near");
    let (mut workers, policy, buckets, now) = shrunken(&["a"], MINUTE);
    assert!(workers.should_give_way(&buckets, 50, &policy, now).is_some());
    workers.get_mut(WorkerId(1)).unwrap().credit = 1;
    assert_eq!(workers.should_give_way(&buckets, 50, &policy, now), None, "there is an engine for them");
}
