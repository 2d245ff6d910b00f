//! `/generate_stream`.

mod expect;

use std::time::Duration;

use expect::{carries_on, error};
use nix::sys::signal::Signal;
use pillion_tests::client::{Client, Raw};
use pillion_tests::events::Event;
use pillion_tests::fake_worker::echo::expected;
use pillion_tests::random::SplitMix64;
use pillion_tests::stack::Stack;
use serde_json::{Value, json};
use tokio::task::JoinSet;

const STREAM: &str = "/generate_stream";

/// For each of `texts` texts, its pieces joined and its last event.
fn joined(events: &[Event], texts: usize) -> (Vec<String>, Vec<Value>) {
    let mut all = vec![String::new(); texts];
    let mut last = vec![Value::Null; texts];
    for event in events {
        let body = event.json();
        let member = usize::try_from(body["batch_id"].as_u64().expect("a batch_id")).unwrap();
        assert!(last[member].is_null(), "an event after the last: {body}");
        all[member].push_str(body["text"].as_str().unwrap_or_default());
        if !body["finish_reason"].is_null() || event.name == "error" {
            last[member] = body;
        }
    }
    (all, last)
}

#[tokio::test]
async fn a_text_is_sent_in_pieces_and_ends_with_its_reason_and_usage() {
    let stack = Stack::simulated(&[], &["--step-cost", "2ms"]).await;
    let events = stack.client().events(STREAM, &json!({"text": "one two three four five"})).await;
    assert_eq!(events.headers["cache-control"], "no-cache");
    assert!(events.headers.contains_key("x-request-id"));
    let events = events.rest().await;
    let (texts, last) = joined(&events, 1);
    assert_eq!(texts, ["five four three two one"]);
    assert_eq!(last[0]["finish_reason"], "stop");
    assert_eq!(last[0]["usage"], json!({"prompt_tokens": 5, "completion_tokens": 5}));
    assert!(events.len() > 2, "the text came in one piece: {events:?}");
}

#[tokio::test]
async fn every_piece_names_its_text_of_a_list() {
    let stack = Stack::simulated(&["--max-batch-size", "3"], &["--slots", "2", "--step-cost", "1ms"]).await;
    let texts: Vec<_> = (0..10).map(|k| format!("{k} and {}", "more ".repeat(k))).collect();
    let events = stack.client().events(STREAM, &json!({"text": texts})).await.rest().await;
    let (answers, last) = joined(&events, texts.len());
    assert_eq!(answers, texts.iter().map(|text| expected(text, 128, 0)).collect::<Vec<_>>());
    assert!(last.iter().all(|last| last["finish_reason"] == "stop"), "{last:?}");
}

#[tokio::test]
async fn the_first_piece_is_sent_before_the_second_is_generated() {
    let stack = Stack::simulated(&[], &["--fault", "stall", "--fault-step", "1"]).await;
    let mut events = stack.client().events(STREAM, &json!({"text": "one two"})).await;
    assert_eq!(events.next().await.unwrap().json()["text"], "two");
    assert_eq!(stack.metrics().await.sum("pillion_running"), 1);
    drop(events);
    stack.metric("pillion_running", |running| running == 0).await;
    assert_eq!(stack.metrics().await.with("pillion_cancelled_total", &[("stage", "running")]), 1);
}

#[tokio::test]
async fn a_failure_before_the_first_piece_is_a_status() {
    let stack = Stack::simulated(&[], &[]).await;
    let client = stack.client();
    let refused = async |body: Value, status| {
        let answer = client.try_events(STREAM, &body).await.expect_err("an error");
        error(&answer, status)
    };
    assert_eq!(refused(json!({"text": ""}), 422).await["param"], "text");
    assert_eq!(refused(json!({"text": "a", "max_new_tokens": 5000}), 422).await["param"], "max_new_tokens");
    assert_eq!(refused(json!({"text": "!fail:engine"}), 502).await["code"], "worker_failed");
    refused(json!({"text": ["!fail:engine", "!fail:engine"]}), 502).await;
    assert_eq!(client.get(STREAM).await.status, 405);
    carries_on(&client).await;
}

#[tokio::test]
async fn a_failure_after_the_first_piece_is_an_event() {
    let flags = ["--fault", "close", "--fault-step", "1"];
    let stack = Stack::simulated(&[], &flags).await;
    let client = stack.client();
    let body = json!({"text": "one two", "repetition_penalty": 1.5});
    let events = client.events(STREAM, &body).await.rest().await;
    assert_eq!(events[0].json()["text"], "two");
    assert_eq!((events.len(), &*events[1].name), (2, "error"));
    assert_eq!(events[1].json()["error"]["code"], "not_resumable");
    let events = client.events(STREAM, &json!({"text": ["a b", "!fail:engine x"]})).await.rest().await;
    let (texts, last) = joined(&events, 2);
    assert_eq!((&*texts[0], &last[0]["finish_reason"]), ("b a", &json!("stop")));
    assert_eq!(last[1]["error"]["code"], "worker_failed");
    carries_on(&client).await;
}

#[tokio::test]
async fn a_stream_continues_on_another_worker_when_its_worker_dies() {
    let mut stack = Stack::proxy(&[]).await;
    stack.simulated_worker(&["--fault", "abort", "--fault-step", "3"]);
    stack.ready().await;
    let text = "a stream of some words that are counted";
    let mut events = stack.client().events(STREAM, &json!({"text": text})).await;
    let first = events.next().await.unwrap();
    stack.simulated_worker(&[]);
    let mut all = vec![first];
    all.extend(events.rest().await);
    let (texts, last) = joined(&all, 1);
    assert_eq!(texts, [expected(text, 128, 0)]);
    assert_eq!(last[0]["usage"]["completion_tokens"], 8);
}

#[tokio::test]
async fn a_stream_whose_options_forbid_resuming_ends_with_an_error_event() {
    let mut stack = Stack::proxy(&[]).await;
    stack.simulated_worker(&["--fault", "abort", "--fault-step", "1"]);
    stack.ready().await;
    let body = json!({"text": "one two three", "repetition_penalty": 1.5});
    let mut events = stack.client().events(STREAM, &body).await;
    assert_eq!(events.next().await.unwrap().json()["text"], "three");
    stack.simulated_worker(&[]);
    let events = events.rest().await;
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0].json()["error"]["code"], "not_resumable");
}

#[tokio::test]
async fn a_stream_does_not_continue_with_another_model() {
    let mut stack = Stack::proxy(&["--worker-wait", "300ms"]).await;
    stack.simulated_worker(&["--fault", "abort", "--fault-step", "1"]);
    stack.ready().await;
    let mut events = stack.client().events(STREAM, &json!({"text": "one two three"})).await;
    events.next().await.unwrap();
    stack.simulated_worker(&["--fingerprint", "11"]);
    let events = events.rest().await;
    assert_eq!(events[0].json()["error"]["code"], "model_gone");
}

#[tokio::test]
async fn a_stream_continues_with_the_same_model_although_another_is_idle() {
    let mut stack = Stack::proxy(&[]).await;
    stack.simulated_worker(&["--fault", "close", "--fault-step", "1", "--step-cost", "100ms"]);
    stack.ready().await;
    let text = "one two three";
    let mut events = stack.client().events(STREAM, &json!({"text": text})).await;
    let mut all = vec![events.next().await.unwrap()];
    stack.simulated_worker(&["--fingerprint", "11"]);
    all.extend(events.rest().await);
    assert_eq!(joined(&all, 1).0, [expected(text, 128, 0)]);
}

/// A client that reads nothing delays neither the worker nor its batch nor the link.
#[tokio::test]
async fn a_client_that_does_not_read_delays_no_other_client() {
    let stack = Stack::simulated(&[], &[]).await;
    let words = "a word that is rather long ".repeat(300);
    let body = json!({"text": words, "max_new_tokens": 2000, "min_new_tokens": 2000}).to_string();
    let mut lazy = Vec::new();
    for _ in 0..10 {
        let mut raw = Raw::connect(stack.address()).await;
        let head = format!("POST {STREAM} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        raw.send(head.as_bytes()).await;
        raw.send(body.as_bytes()).await;
        lazy.push(raw);
    }
    stack.metric("pillion_generated_tokens_total", |tokens| tokens == 20_000).await;
    carries_on(&stack.client()).await;
    stack.metric("pillion_running", |running| running == 0).await;
    // The answers that were not read are complete.
    let (status, text) = {
        let mut raw = lazy.pop().unwrap();
        raw.send(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        raw.to_end().await
    };
    assert_eq!(status, Some(200));
    assert!(text.contains("\"finish_reason\":\"length\""));
}

#[tokio::test]
async fn a_proxy_that_drains_completes_its_streams() {
    let mut stack = Stack::simulated(&[], &["--step-cost", "5ms"]).await;
    let client = stack.client();
    let body = json!({"text": "some words", "max_new_tokens": 60, "min_new_tokens": 60});
    let mut events = client.events(STREAM, &body).await;
    let mut all = vec![events.next().await.unwrap()];
    stack.proxy.signal(Signal::SIGTERM);
    all.extend(events.rest().await);
    let (_, last) = joined(&all, 1);
    assert_eq!(last[0]["usage"]["completion_tokens"], 60);
    assert_eq!(stack.proxy.ended().await, Some(0));
}

#[tokio::test]
async fn each_of_a_thousand_concurrent_streams_gets_its_own_answer() {
    let stack = Stack::simulated(&[], &["--slots", "2", "--step-cost", "1ms"]).await;
    let mut asked = JoinSet::new();
    for k in 0..1000_usize {
        let client = stack.client();
        asked.spawn(async move {
            let text = format!("{k} {}", "word ".repeat(k % 40));
            let events = client.events(STREAM, &json!({"text": text})).await.rest().await;
            let (texts, last) = joined(&events, 1);
            assert_eq!(texts, [expected(&text, 128, 0)]);
            assert_eq!(last[0]["finish_reason"], "stop");
        });
    }
    while let Some(done) = asked.join_next().await {
        done.unwrap();
    }
}

/// The clients leave at random moments, and half of them have their answers streamed.
#[tokio::test]
async fn two_thousand_clients_that_leave_early_occupy_no_slot_and_no_worker() {
    const SEED: u64 = 20_261_124;
    let stack = Stack::simulated(&["--max-queue", "4000"], &["--slots", "2", "--step-cost", "1ms"]).await;
    let mut random = SplitMix64(SEED);
    let mut gone = JoinSet::new();
    for k in 0..2000_u64 {
        let client = Client::new(stack.address());
        let path = if k % 2 == 0 { STREAM } else { "/generate" };
        let patience = Duration::from_secs_f64(0.3 * random.unit());
        let words = "w ".repeat(1 + usize::try_from(random.next() % 60).unwrap());
        gone.spawn(async move {
            let body = json!({"text": words});
            let ask = async {
                if path == STREAM {
                    client.events(path, &body).await.rest().await;
                } else {
                    client.post(path, &body).await;
                }
            };
            let _ = tokio::time::timeout(patience, ask).await;
        });
    }
    while let Some(done) = gone.join_next().await {
        done.unwrap_or_else(|error| panic!("seed {SEED}: {error}"));
    }
    stack.metric("pillion_queue_depth", |depth| depth == 0).await;
    stack.metric("pillion_running", |running| running == 0).await;
    let metrics = stack.metrics().await;
    assert!(metrics.with("pillion_cancelled_total", &[("stage", "running")]) > 0, "seed {SEED}");
    assert_eq!(metrics.sum("pillion_protocol_errors_total"), 0);
    // Both slots still take batches.
    let both = json!({"text": ["one two", "three four"]});
    assert_eq!(stack.client().generate(&both).await.json()["text"], json!(["two one", "four three"]));
    carries_on(&stack.client()).await;
}
