//! Programs of an earlier build beside today's: the protocol promises that they understand each other.
//!
//! `tests/run` builds the earlier proxy and simulated worker from the commit that `tests/skew/revision` names.

use std::path::PathBuf;

use nix::sys::signal::Signal;
use pillion_tests::client::Answer;
use pillion_tests::events::Event;
use pillion_tests::fake_worker::echo::expected;
use pillion_tests::process::{PREVIOUS, binary};
use pillion_tests::reference::{builtin, skipped, worker};
use pillion_tests::stack::Stack;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const OLD_PROXY: &str = "previous/pillion-proxy";
const OLD_WORKER: &str = "previous/simulated-worker";
const WORKER: &str = "simulated-worker";

fn is_skipped(test: &str, more: &[Result<PathBuf, String>]) -> bool {
    // Without the history there is nothing to build them from.
    if std::env::var_os(PREVIOUS).is_none_or(|folder| folder.is_empty()) {
        pillion_tests::say(&format!("SKIPPED {test}: {PREVIOUS} names no earlier build"));
        return true;
    }
    skipped(test, &[&[binary(OLD_PROXY), binary(OLD_WORKER)], more].concat())
}

fn add(stack: &mut Stack, program: &str, flags: &[&str]) {
    let socket = stack.socket();
    stack.worker(program, flags, &socket);
}

fn ask(stack: &Stack, request: Value) -> JoinHandle<Answer> {
    let client = stack.client();
    tokio::spawn(async move { client.generate(&request).await })
}

/// Everything that one client can see: whole answers, lists, limits, and refusals of the worker's.
async fn answers_as_ever(stack: &Stack) {
    let client = stack.client();
    let text = "some words to be turned round";
    assert_eq!(client.generate(&json!({"text": text})).await.json()["text"], expected(text, 128, 0));
    let list = client.generate(&json!({"text": ["one two", "three four"], "max_new_tokens": 1})).await.json();
    assert_eq!(list["text"], json!(["two", "four"]));
    assert_eq!(list["finish_reason"], json!(["length", "length"]));
    let long = client.generate(&json!({"text": "a b", "max_new_tokens": 1_000_000})).await;
    assert_eq!((long.status, &long.json()["error"]["param"]), (422, &json!("max_new_tokens")));
}

async fn streams_as_ever(stack: &Stack) {
    let text = "a few words that come one by one";
    let events = stack.client().events("/generate_stream", &json!({"text": text})).await.rest().await;
    let events: Vec<_> = events.iter().map(Event::json).collect();
    let streamed: String = events.iter().filter_map(|event| event["text"].as_str()).collect();
    assert_eq!(streamed, expected(text, 128, 0));
    assert_eq!(events.last().unwrap()["finish_reason"], "stop");
}

/// A worker dies in the middle of its work, which one of the other build ends; then both are told to leave, and do.
async fn go_on_with_each_others_work(mut stack: Stack, dies: &str, goes_on: &str) {
    add(&mut stack, dies, &["--eager", "--fault", "abort", "--fault-step", "3"]);
    stack.ready().await;
    let texts = (0..20).map(|k| format!("rider {k} of twenty who come together"));
    let asked: Vec<_> = texts.map(|text| (expected(&text, 128, 0), ask(&stack, json!({"text": text})))).collect();
    stack.metric("pillion_workers_connected", |workers| workers == 0).await;
    add(&mut stack, goes_on, &[]);
    for (expected, answer) in asked {
        assert_eq!(answer.await.unwrap().json()["text"], expected);
    }
    assert!(stack.metrics().await.with("pillion_resumed_total", &[("reason", "worker_lost")]) > 0);
    assert_eq!(stack.metrics().await.sum("pillion_protocol_errors_total"), 0);
    add(&mut stack, dies, &[]);
    stack.metric("pillion_workers_connected", |workers| workers == 2).await;
    for worker in [2, 1] {
        stack.workers[worker].signal(Signal::SIGTERM);
        assert_eq!(stack.workers[worker].ended().await, Some(0), "{}", stack.workers[worker].log());
    }
    assert_eq!(stack.metrics().await.sum("pillion_protocol_errors_total"), 0);
}

#[tokio::test]
async fn todays_proxy_serves_earlier_workers() {
    if is_skipped("todays_proxy_serves_earlier_workers", &[]) {
        return;
    }
    let mut stack = Stack::proxy(&[]).await;
    add(&mut stack, OLD_WORKER, &[]);
    stack.ready().await;
    answers_as_ever(&stack).await;
    streams_as_ever(&stack).await;
    // It does not know chats, and said so by not saying that it does.
    let chat = json!({"model": "simulated", "messages": [{"role": "user", "content": "hello"}]});
    let answer = stack.client().post("/v1/chat/completions", &chat).await;
    assert!((400..500).contains(&answer.status), "{}: {}", answer.status, answer.text());
    assert_eq!(stack.metrics().await.sum("pillion_protocol_errors_total"), 0);
    stack.restart_proxy(Signal::SIGTERM).await;
    stack.ready().await;
    answers_as_ever(&stack).await;
}

#[tokio::test]
async fn an_earlier_proxy_serves_todays_workers() {
    if is_skipped("an_earlier_proxy_serves_todays_workers", &[]) {
        return;
    }
    let mut stack = Stack::proxy_of(OLD_PROXY, &[]).await;
    add(&mut stack, WORKER, &[]);
    stack.ready().await;
    answers_as_ever(&stack).await;
    stack.restart_proxy(Signal::SIGTERM).await;
    stack.ready().await;
    answers_as_ever(&stack).await;
}

#[tokio::test]
async fn workers_of_both_builds_go_on_with_each_others_work() {
    if is_skipped("workers_of_both_builds_go_on_with_each_others_work", &[]) {
        return;
    }
    go_on_with_each_others_work(Stack::proxy(&[]).await, OLD_WORKER, WORKER).await;
    go_on_with_each_others_work(Stack::proxy(&[]).await, WORKER, OLD_WORKER).await;
    go_on_with_each_others_work(Stack::proxy_of(OLD_PROXY, &[]).await, OLD_WORKER, WORKER).await;
    go_on_with_each_others_work(Stack::proxy_of(OLD_PROXY, &[]).await, WORKER, WORKER).await;
}

#[tokio::test]
async fn an_earlier_proxy_serves_the_real_worker() {
    let model = builtin();
    if is_skipped("an_earlier_proxy_serves_the_real_worker", &[worker(), model.clone()]) {
        return;
    }
    let mut stack = Stack::proxy_of(OLD_PROXY, &[]).await;
    add(&mut stack, "pillion-worker", &["--model", model.unwrap().to_str().unwrap(), "--device", "cpu"]);
    stack.ready().await;
    let texts: Vec<String> = (1..40).map(|k| format!("What is {k} + {k}?")).collect();
    let answer = stack.client().generate(&json!({"text": texts})).await.json();
    for k in 1..40 {
        assert_eq!(answer["text"][k - 1].as_str().map(str::trim), Some(&*(2 * k).to_string()), "{answer}");
    }
    stack.workers[0].signal(Signal::SIGTERM);
    assert_eq!(stack.workers[0].ended().await, Some(0));
}
