//! Many requests that do the same at the same time.

use std::time::Duration;

use pillion_protocol::frame::{Hello, Options};
use pillion_proxy::domain::{BatchKey, Failure, GenerationRequest, RequestContext};
use pillion_tests::fake_worker::Profile;
use pillion_tests::memory::Memory;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn when_thousands_of_clients_leave_at_once_each_text_is_cancelled_and_no_credit_is_lost() {
    const CLIENTS: i64 = 7000;
    let mut memory = Memory::start(&["--max-batch-size", "4096", "--max-queue", "10000", "--max-connections", "10000"]);
    let hello = Hello { slots: 2, max_batch_tokens: u32::MAX, ..Profile::default().hello };
    let _worker = memory.worker(Profile { hello, batch_cost: SECOND, step_cost: SECOND, ..Profile::default() });
    sleep(SECOND).await;
    let long = json!({"text": "a", "min_new_tokens": 900, "max_new_tokens": 900});
    let mut clients = JoinSet::new();
    // The first two take both slots for a second. The others wait, and then go in two batches.
    for penalty in [1.1, 1.2] {
        clients.spawn(memory.generate(&json!({"text": "a", "max_new_tokens": 1, "repetition_penalty": penalty})));
    }
    sleep(Duration::from_millis(1)).await;
    (0..CLIENTS).for_each(|_| drop(clients.spawn(memory.generate(&long))));
    sleep(2 * SECOND).await;
    let metrics = memory.metrics();
    let held = metrics.sum("pillion_running");
    assert_eq!(held, CLIENTS, "all texts are with the worker");
    clients.abort_all();
    while clients.join_next().await.is_some() {}
    sleep(Duration::from_millis(10)).await;
    let metrics = memory.metrics();
    let cancelled = |stage| metrics.with("pillion_cancelled_total", &[("stage", stage)]);
    assert_eq!((cancelled("queued"), cancelled("running")), (0, CLIENTS));
    assert_eq!((metrics.sum("pillion_running"), metrics.sum("pillion_queue_depth")), (0, 0));
    let batches = || memory.metrics().sum("pillion_batches_total");
    let before = batches();
    let mut others = JoinSet::new();
    for penalty in [1.1, 1.2] {
        let request = json!({"text": "a b", "repetition_penalty": penalty});
        others.spawn(memory.generate(&request));
    }
    sleep(Duration::from_millis(1)).await;
    assert_eq!(memory.metrics().sum("pillion_batches_total") - before, 2, "both slots are free");
    for answer in others.join_all().await {
        assert_eq!(answer.status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_cannot_be_sent_costs_neither_the_worker_nor_its_credit() {
    let mut memory = Memory::start(&[]);
    let _worker = memory.worker(Profile::default());
    sleep(SECOND).await;
    // No HTTP request can be as large as this, since bodies have a limit.
    let text = "\u{1}".repeat(16 << 20);
    let now = Instant::now();
    let context = RequestContext { origin: None, answered: None, now, deadline: now + 60 * SECOND };
    let request = GenerationRequest::text(&text, BatchKey::new(Options::default(), 0), 1);
    let answers = memory.proxy().handle.submit(vec![request], context, false).unwrap();
    let outcomes = answers.outcomes().await;
    assert!(matches!(outcomes[..], [Err(Failure::Unsendable(_))]), "{outcomes:?}");
    assert_eq!(memory.generate(&json!({"text": "a b"})).await.status, 200);
    let metrics = memory.metrics();
    assert_eq!((metrics.sum("pillion_workers_lost_total"), metrics.sum("pillion_workers_connected")), (0, 1));
}
