//! Workers with different models at one proxy. Paused time makes times exact.

use std::time::Duration;

use pillion_protocol::frame::{Hello, UnitCost};
use pillion_tests::fake_worker::Profile;
use pillion_tests::memory::{Memory, MemoryWorker};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A worker whose batches take this long, however many members they have, as the proxy knows.
fn worker(memory: &mut Memory, model: &str, batch: Duration) -> MemoryWorker {
    let plain = Profile::default();
    let step_ns = u64::try_from(batch.as_nanos()).unwrap();
    let cost = UnitCost { step_ns, ..UnitCost::default() };
    let hello = Hello { model: model.to_owned(), fingerprint: model.to_owned(), cost, ..plain.hello };
    memory.worker(Profile { batch_cost: batch, hello, ..plain })
}

fn ask(model: &str) -> Value {
    json!({"model": model, "prompt": "a", "max_tokens": 1})
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_held_for_one_model_delays_no_other_model() {
    let mut memory = Memory::start(&["--batch-timeout", "10s"]);
    let _slow = worker(&mut memory, "slow", SECOND);
    let _fast = worker(&mut memory, "fast", Duration::ZERO);
    sleep(SECOND).await;
    for model in ["slow", "fast"] {
        assert_eq!(memory.post("/v1/completions", &ask(model)).await.status, 200);
    }
    // While this request is being read, a batch of the slow model is held for a tenth of its time.
    let mut arriving = memory.connect();
    arriving.write_all(b"POST /generate HTTP/1.1\r\nhost: a\r\ncontent-length: 99\r\n\r\n").await.unwrap();
    sleep(MILLI).await;
    let begun = Instant::now();
    let held = tokio::spawn(memory.post("/v1/completions", &ask("slow")));
    sleep(10 * MILLI).await;
    let asked = Instant::now();
    assert_eq!(memory.post("/v1/completions", &ask("fast")).await.status, 200);
    assert!(asked.elapsed() < 3 * MILLI, "the fast model's answer took {:?}", asked.elapsed());
    assert_eq!(held.await.unwrap().status, 200);
    let took = begun.elapsed();
    assert!((1090 * MILLI..1110 * MILLI).contains(&took), "the hold lasted as long as it would have alone: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn retry_after_counts_the_texts_of_the_model_that_was_asked_for() {
    let mut memory = Memory::start(&[
        "--max-batch-size",
        "1",
        "--max-queue",
        "11",
        "--request-timeout",
        "10m",
        "--drain-timeout",
        "10m",
    ]);
    let _slow = worker(&mut memory, "slow", 10 * SECOND);
    let _fast = worker(&mut memory, "fast", 10 * MILLI);
    sleep(SECOND).await;
    for model in ["slow", "fast"] {
        assert_eq!(memory.post("/v1/completions", &ask(model)).await.status, 200);
    }
    let mut waiting = JoinSet::new();
    for models in [["slow", "fast"].as_slice(), &["slow"; 10], &["fast"]] {
        models.iter().for_each(|model| drop(waiting.spawn(memory.post("/v1/completions", &ask(model)))));
        sleep(MILLI).await;
    }
    assert_eq!(memory.metrics().sum("pillion_queue_depth"), 11);
    for (model, told) in [("fast", 1..=2), ("slow", 49..=60), ("fast", 1..=2)] {
        let refused = memory.post("/v1/completions", &ask(model)).await;
        assert_eq!(refused.status, 429);
        let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!(told.contains(&seconds), "{model}: {seconds} s");
    }
}
