//! Who rides with whom.

use pillion_tests::client::{Answer, Client};
use pillion_tests::fake_worker::echo::expected;
use pillion_tests::gate::Gate;
use pillion_tests::stack::Stack;
use pillion_tests::tap::Tap;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// A proxy with one simulated worker whose engine waits behind a gate, and a tap between them.
async fn gated(proxy: &[&str], worker: &[&str]) -> (Stack, Tap, Gate) {
    let mut stack = Stack::proxy(proxy).await;
    let gate = Gate::shut(stack.folder());
    let tap = Tap::between(&stack.folder().join("tap.sock"), &stack.socket());
    let flags = [worker, &gate.flags()].concat();
    stack.worker("simulated-worker", &flags, tap.socket());
    stack.ready().await;
    (stack, tap, gate)
}

fn ask(client: &Client, request: Value) -> JoinHandle<Answer> {
    let client = client.clone();
    tokio::spawn(async move { client.generate(&request).await })
}

/// Sends one request that occupies the worker, then all of `requests`, and opens the gate once they wait.
async fn behind_a_slow_batch(stack: &Stack, gate: &Gate, requests: Vec<Value>) -> Vec<Answer> {
    let client = stack.client();
    let first = ask(&client, json!({"text": "the slow one"}));
    stack.metric("pillion_running", |running| running == 1).await;
    let waiting: Vec<_> = requests.into_iter().map(|request| ask(&client, request)).collect();
    let texts = i64::try_from(waiting.len()).unwrap();
    stack.metric("pillion_queue_depth", |depth| depth == texts).await;
    gate.open();
    assert_eq!(first.await.unwrap().json()["text"], "one slow the");
    let mut answers = Vec::new();
    for answer in waiting {
        answers.push(answer.await.unwrap());
    }
    answers
}

fn sizes(tap: &Tap) -> Vec<usize> {
    tap.rides().iter().map(|ride| ride.batch.members.len()).collect()
}

#[tokio::test]
async fn requests_that_wait_for_a_slow_batch_ride_in_the_next_one_together() {
    let (stack, tap, gate) = gated(&[], &[]).await;
    let requests = (0..10).map(|k| json!({"text": format!("request number {k}")})).collect();
    let answers = behind_a_slow_batch(&stack, &gate, requests).await;
    for (k, answer) in answers.iter().enumerate() {
        assert_eq!(answer.json()["text"], format!("{k} number request"));
    }
    assert_eq!(sizes(&tap), [1, 10]);
    let metrics = stack.metrics().await;
    assert_eq!(metrics.sum("pillion_batches_total"), 2);
    assert_eq!(metrics.sum("pillion_batch_size_sum"), 11);
}

#[tokio::test]
async fn requests_that_differ_in_an_engine_option_never_share_a_batch() {
    let (stack, tap, gate) = gated(&[], &[]).await;
    let penalty = |k: u32| 1.0 + f64::from(k % 3) / 2.0;
    let requests = (0..12).map(|k| json!({"text": format!("number {k}"), "repetition_penalty": penalty(k)})).collect();
    for answer in behind_a_slow_batch(&stack, &gate, requests).await {
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let mut sizes = sizes(&tap);
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 4, 4, 4]);
    for ride in tap.rides().iter().skip(1) {
        for (member, end) in ride.members() {
            let k: u32 = end.text.split_whitespace().next().unwrap().parse().unwrap();
            let asked = penalty(k);
            assert!((f64::from(ride.batch.options.repetition_penalty) - asked).abs() < 1e-6, "{member:?}");
        }
    }
}

#[tokio::test]
async fn a_batch_has_at_most_so_many_members() {
    let (stack, tap, gate) = gated(&["--max-batch-size", "4"], &[]).await;
    let requests = (0..10).map(|k| json!({"text": format!("number {k}")})).collect();
    behind_a_slow_batch(&stack, &gate, requests).await;
    assert_eq!(sizes(&tap), [1, 4, 4, 2]);
    let full = stack.metrics().await.with("pillion_batches_total", &[("trigger", "full")]);
    assert_eq!(full, 2, "{full} full batches");
}

#[tokio::test]
async fn a_batch_stays_within_the_workers_token_budget() {
    let (stack, tap, gate) = gated(&[], &["--max-batch-tokens", "400"]).await;
    let requests = (0..9).map(|k| json!({"text": format!("number {k}"), "max_new_tokens": 100})).collect();
    behind_a_slow_batch(&stack, &gate, requests).await;
    assert_eq!(sizes(&tap).iter().sum::<usize>(), 10);
    assert!(sizes(&tap).iter().all(|&size| size <= 4), "{:?}", sizes(&tap));
    assert!(stack.metrics().await.with("pillion_batches_total", &[("trigger", "tokens")]) > 0);
}

#[tokio::test]
async fn a_lone_request_is_not_held_for_companions() {
    let stack = Stack::simulated(&["--batch-timeout", "10s"], &[]).await;
    let begun = std::time::Instant::now();
    let answer = stack.client().generate(&json!({"text": "all alone"})).await;
    assert_eq!(answer.json()["text"], "alone all");
    assert!(begun.elapsed().as_secs() < 10, "the bound is not a price");
    let metrics = stack.metrics().await;
    assert_eq!(metrics.with("pillion_batches_total", &[("trigger", "idle")]), 1);
}

#[tokio::test]
async fn several_workers_share_the_load() {
    let (mut stack, tap, gate) = gated(&[], &[]).await;
    stack.worker("simulated-worker", &gate.flags(), tap.socket());
    stack.metric("pillion_workers_connected", |workers| workers == 2).await;
    let client = stack.client();
    let first = ask(&client, json!({"text": "to one"}));
    stack.metric("pillion_running", |running| running == 1).await;
    let second = ask(&client, json!({"text": "to the other"}));
    stack.metric("pillion_running", |running| running == 2).await;
    gate.open();
    assert_eq!(first.await.unwrap().json()["text"], "one to");
    assert_eq!(second.await.unwrap().json()["text"], "other the to");
    let connections: Vec<_> = tap.rides().iter().map(|ride| ride.connection).collect();
    assert_eq!(connections.len(), 2);
    assert_ne!(connections[0], connections[1]);
}

#[tokio::test]
async fn answers_never_cross() {
    let workers = ["--slots", "2", "--step-cost", "1ms"];
    let mut stack = Stack::simulated(&["--max-batch-size", "7"], &workers).await;
    stack.simulated_worker(&workers);
    let riders: Vec<_> = (0..20)
        .map(|rider: usize| {
            let client = stack.client();
            tokio::spawn(async move {
                for turn in 0..20 {
                    let text = format!("rider {rider} turn {turn} {}", "again ".repeat((rider * 7 + turn) % 9));
                    let max = 1 + (rider + turn) % 12;
                    let answer = client.generate(&json!({"text": text, "max_new_tokens": max})).await;
                    assert_eq!(answer.json()["text"], expected(&text, max, 0));
                }
            })
        })
        .collect();
    for rider in riders {
        rider.await.unwrap();
    }
    let metrics = stack.metrics().await;
    let answered = metrics.with("pillion_requests_total", &[("code", "200"), ("endpoint", "/generate")]);
    assert_eq!(answered, 400);
    assert_eq!((metrics.sum("pillion_running"), metrics.sum("pillion_queue_depth")), (0, 0));
}
