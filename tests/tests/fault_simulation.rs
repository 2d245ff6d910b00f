//! Everything goes wrong, from a seed: every client gets its own answer all the same, exactly once, and nothing is left.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use pillion_tests::fault_simulation::plan::Plan;
use pillion_tests::fault_simulation::{Outcome, run};
use pillion_tests::say;
use tokio::runtime;

fn simulate(plan: &Plan) -> Outcome {
    let runtime = runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(run(plan))
}

/// More of them, or one that failed: `PILLION_SEEDS=0-10000`, `PILLION_SEEDS=17-18`.
fn seeds() -> (u64, u64) {
    let range = std::env::var("PILLION_SEEDS").unwrap_or("0-2000".to_owned());
    let (first, end) = range.split_once('-').expect("FIRST-END");
    (first.parse().expect("a number"), end.parse().expect("a number"))
}

#[test]
fn whatever_goes_wrong_every_client_gets_its_own_answer_once() {
    let (first, end) = seeds();
    let next = AtomicU64::new(first);
    let failed = Mutex::new(Vec::new());
    let (answers, lost, resumed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= end {
                return;
            }
            let outcome = simulate(&Plan::of(seed));
            answers.fetch_add(outcome.got.iter().flatten().count() as u64, Relaxed);
            lost.fetch_add(outcome.lost.unsigned_abs(), Relaxed);
            resumed.fetch_add(outcome.resumed.unsigned_abs(), Relaxed);
            for wrong in outcome.wrong {
                failed.lock().unwrap().push((seed, wrong));
            }
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let all = [&answers, &lost, &resumed].map(|count| count.load(Relaxed));
    say(&format!("seeds {first} to {end}: {} answers, {} workers lost, {} texts resumed", all[0], all[1], all[2]));
    let mut failed = failed.into_inner().unwrap();
    failed.sort();
    if std::env::var_os("PILLION_SHOW").is_some() {
        failed.iter().for_each(|(seed, wrong)| say(&format!("seed {seed}: {wrong}")));
    }
    assert!(failed.is_empty(), "{} failures, the first by seed {}: {}", failed.len(), failed[0].0, failed[0].1);
    assert!(end - first < 100 || all.iter().all(|count| *count > end - first), "too little went wrong: {all:?}");
}

#[test]
fn the_same_seed_gives_the_same_report() {
    for seed in 0..200 {
        let plan = Plan::of(seed);
        let (once, again) = (simulate(&plan), simulate(&plan));
        for (nth, (got, same)) in once.got.iter().zip(&again.got).enumerate() {
            assert_eq!(got, same, "seed {seed}, answer {nth}");
        }
        assert_eq!(once, again, "seed {seed}");
    }
}
