use pillion_protocol::frame::Options;

use super::*;
use crate::domain::{GenerationRequest, ModelId, Reply};

const NO_LIMITS: Limits = Limits { members: 100, tokens: u64::MAX, bytes: usize::MAX };

/// Takes a batch from the buckets that have the batch key of the oldest job.
fn take(queue: &mut Queue, limits: &Limits) -> (Vec<u64>, Filled) {
    let key = queue.lines.values().next().unwrap().oldest().unwrap().request.key;
    let buckets: Vec<Bucket> = queue.window().into_iter().filter(|bucket| bucket.key == key).collect();
    let (jobs, filled) = queue.take_batch(&buckets, limits);
    (ids(&jobs), filled)
}

fn job(id: u64, penalty: f32, text: &str, deadline: Instant) -> Box<Job> {
    let options = Options { repetition_penalty: penalty, ..Options::default() };
    let request = GenerationRequest::text(text, BatchKey::new(options, 0), 10);
    Box::new(Job::new(JobId(id), request, deadline - Duration::from_secs(60), deadline, Reply::unheard()))
}

/// The same instant in every call, so that only the number decides which job is older.
fn soon() -> Instant {
    static SOON: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *SOON.get_or_init(|| Instant::now() + Duration::from_secs(60))
}

fn ids(jobs: &[Box<Job>]) -> Vec<u64> {
    jobs.iter().map(|job| job.id.0).collect()
}

#[test]
fn a_batch_has_one_batch_key_and_starts_with_the_oldest_job() {
    let mut queue = Queue::default();
    for (id, penalty) in [(3, 1.0), (1, 1.5), (2, 1.0), (4, 1.5)] {
        queue.push(job(id, penalty, "text", soon()));
    }
    assert_eq!(take(&mut queue, &NO_LIMITS), (vec![1, 4], Filled::NoMoreJobs));
    assert_eq!(take(&mut queue, &NO_LIMITS).0, [2, 3]);
    assert!(queue.is_empty() && queue.take_batch(&[], &NO_LIMITS).0.is_empty());
}

#[test]
fn a_batch_stops_at_its_limits() {
    let mut queue = Queue::default();
    (0..5).for_each(|id| queue.push(job(id, 1.0, "0123456789", soon())));
    assert_eq!(take(&mut queue, &Limits { members: 2, ..NO_LIMITS }), (vec![0, 1], Filled::Members));
    assert_eq!(take(&mut queue, &Limits { bytes: 25, ..NO_LIMITS }), (vec![2, 3], Filled::Tokens));
}

#[test]
fn a_job_larger_than_the_limits_goes_alone() {
    let mut queue = Queue::default();
    (0..2).for_each(|id| queue.push(job(id, 1.0, "a long text", soon())));
    assert_eq!(take(&mut queue, &Limits { members: 9, tokens: 1, bytes: 1 }), (vec![0], Filled::Tokens));
}

#[test]
fn the_oldest_jobs_of_several_buckets_go_first_and_the_demand_of_the_rest_stays() {
    let mut queue = Queue::default();
    for (id, text) in [(3, "short"), (1, "a text that is a little longer"), (2, "short"), (4, "short")] {
        queue.push(job(id, 1.0, text, soon()));
    }
    assert_eq!(queue.window().len(), 2);
    assert_eq!(take(&mut queue, &Limits { members: 3, ..NO_LIMITS }), (vec![1, 2, 3], Filled::Members));
    let [left] = queue.window()[..] else { panic!("{:?}", queue.window()) };
    assert_eq!((left.demand.members, left.demand.bytes, left.demand.tokens), (1, 5, 10));
}

#[test]
fn a_job_that_comes_back_takes_its_old_place() {
    let mut queue = Queue::default();
    (5..8).for_each(|id| queue.push(job(id, 1.0, "text", soon())));
    queue.push(job(2, 1.0, "text", soon()));
    assert_eq!(take(&mut queue, &NO_LIMITS).0, [2, 5, 6, 7]);
}

#[test]
fn a_job_that_gave_way_waits_behind_jobs_that_came_before_it_gave_way() {
    let mut queue = Queue::default();
    let now = soon();
    for (id, since) in [(1, now), (2, now - Duration::from_secs(2)), (3, now + Duration::from_secs(1))] {
        let mut job = job(id, 1.0, "text", now);
        job.waits_since = since;
        queue.push(job);
    }
    assert_eq!(queue.window()[0].since, now - Duration::from_secs(2));
    assert_eq!(take(&mut queue, &NO_LIMITS).0, [2, 1, 3]);
}

#[test]
fn only_jobs_past_their_deadline_expire() {
    let mut queue = Queue::default();
    let now = soon();
    queue.push(job(1, 1.0, "text", now + Duration::from_millis(1)));
    queue.push(job(2, 1.0, "text", now));
    assert_eq!(ids(&queue.take_expired(now)), [2]);
    assert_eq!(queue.next_deadline(|_| true), Some(now + Duration::from_millis(1)));
    assert_eq!(queue.len(), 1);
}

#[test]
fn waiting_for_a_worker_counts_from_admission_or_from_the_loss_of_the_last_worker() {
    let mut queue = Queue::default();
    let deadline = soon();
    let admitted = deadline - Duration::from_secs(60);
    let wait = Duration::from_secs(30);
    queue.push(job(1, 1.0, "text", deadline));
    let lost = admitted + Duration::from_secs(10);
    let mut at = |secs| ids(&queue.take_unserved(|_| Some(lost), wait, admitted + Duration::from_secs(secs)));
    assert_eq!((at(39), at(40)), (vec![], vec![1]));
}

#[test]
fn a_job_that_a_worker_serves_does_not_wait_for_one() {
    let mut queue = Queue::default();
    let now = soon();
    queue.push(job(1, 1.0, "text", now));
    let served = Target { model: ModelId::new(2), ..Target::ANY };
    let mut named = job(2, 1.0, "text", now);
    named.request.key.target = served;
    queue.push(named);
    let unserved = |target: &Target| (*target != served).then_some(now);
    assert_eq!(ids(&queue.take_unserved(unserved, Duration::ZERO, now)), [1]);
}

#[test]
fn a_removed_job_leaves_nothing_behind() {
    let mut queue = Queue::default();
    queue.push(job(1, 1.0, "text", soon()));
    assert!(queue.remove(JobId(1)).is_some());
    assert!(queue.remove(JobId(1)).is_none());
    assert!(queue.is_empty() && queue.next_deadline(|_| true).is_none() && queue.window().is_empty());
}

#[test]
fn however_many_batch_keys_wait_few_buckets_are_looked_at_and_the_oldest_job_is_in_one_of_them() {
    let mut queue = Queue::default();
    let (keys, soon) = (6000_u16, soon());
    (1..=keys).for_each(|id| queue.push(job(id.into(), 1.0 + f32::from(id) / 1000.0, "text", soon)));
    let mut taken = Vec::new();
    while !queue.is_empty() {
        let window = queue.window();
        assert!(window.len() <= WINDOW);
        let oldest = window.iter().min_by_key(|bucket| bucket.since).unwrap();
        taken.extend(ids(&queue.take_batch(&[*oldest], &NO_LIMITS).0));
    }
    assert!(taken.iter().copied().eq((1..=keys).map(u64::from)));
}

#[test]
fn sizes_sum_the_jobs_of_all_batch_keys() {
    let mut queue = Queue::default();
    let text = "as long as the others";
    for (id, penalty) in [(1, 1.0), (2, 1.0), (3, 1.1)] {
        queue.push(job(id, penalty, text, soon()));
    }
    let sizes = |queue: &Queue| {
        let sizes = queue.sizes().flat_map(|(_, sizes)| sizes);
        sizes.map(|same| (same.demand.members, same.buckets)).collect::<Vec<_>>()
    };
    assert_eq!(sizes(&queue), [(3, 2)]);
    queue.remove(JobId(3));
    assert_eq!(sizes(&queue), [(2, 1)]);
    assert_eq!((queue.take_all().len(), queue.len()), (2, 0));
}

#[test]
fn the_tokens_that_a_job_has_produced_count_as_bytes_of_the_batch() {
    let mut queue = Queue::default();
    for id in 1..=3 {
        let mut job = job(id, 1.0, "0123456789", soon());
        job.progress.produced = vec![7; 100];
        queue.push(job);
    }
    assert_eq!(take(&mut queue, &Limits { bytes: 1700, ..NO_LIMITS }), (vec![1, 2], Filled::Tokens));
}
