//! `/generate` and the probes.

mod expect;

use expect::{carries_on, error};
use hyper::Method;
use pillion_tests::client::Raw;
use pillion_tests::fake_worker::echo::expected;
use pillion_tests::stack::Stack;
use serde_json::{Value, json};

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn a_text_gets_an_answer_and_its_usage() {
    let stack = Stack::simulated(&[], &[]).await;
    let answer = stack.client().generate(&json!({"text": "one two three"})).await;
    assert_eq!(answer.status, 200);
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 3});
    assert_eq!(answer.json(), json!({"text": "three two one", "finish_reason": "stop", "usage": usage}));
    let answer = stack.client().generate(&json!({"text": "one two three", "max_new_tokens": 2})).await;
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 2});
    assert_eq!(answer.json(), json!({"text": "three two", "finish_reason": "length", "usage": usage}));
}

#[tokio::test]
async fn a_list_keeps_its_order_and_sums_its_usage() {
    let stack = Stack::simulated(&["--max-batch-size", "3"], &["--slots", "2"]).await;
    let texts: Vec<_> = (0..10).map(|k| format!("{k} and {}", "more ".repeat(k % 4))).collect();
    let answer = stack.client().generate(&json!({"text": texts})).await.json();
    let answers: Vec<_> = texts.iter().map(|text| expected(text, 128, 0)).collect();
    assert_eq!(answer["text"], json!(answers));
    assert_eq!(answer["finish_reason"], json!(vec!["stop"; 10]));
    let words: usize = texts.iter().map(|text| text.split_whitespace().count()).sum();
    assert_eq!(answer["usage"], json!({"prompt_tokens": words, "completion_tokens": words}));
    let answer = stack.client().generate(&json!({"text": ["alone"]})).await.json();
    assert_eq!(answer["text"], json!(["alone"]), "a list of one text gets a list");
}

#[tokio::test]
async fn a_failed_text_gets_an_error_and_the_rest_of_its_list_gets_answers() {
    let stack = Stack::simulated(&[], &[]).await;
    let client = stack.client();
    let answer = client.generate(&json!({"text": ["a b", "!fail:engine x", "c d"]})).await;
    assert_eq!(answer.status, 200);
    let body = answer.json();
    assert_eq!(body["text"], json!(["b a", null, "d c"]));
    assert_eq!(body["finish_reason"], json!(["stop", "error", "stop"]));
    assert!(body["errors"][1]["message"].is_string() && body["errors"][0].is_null(), "{body}");
    for (code, status, param) in [
        ("engine", 502, Value::Null),
        ("not_resumable", 502, Value::Null),
        ("something_new", 502, Value::Null),
        ("invalid_request", 422, Value::Null),
        ("empty_prompt", 422, json!("text")),
        ("too_many_tokens", 422, json!("max_new_tokens")),
    ] {
        let answer = client.generate(&json!({"text": format!("!fail:{code}")})).await;
        assert_eq!(error(&answer, status)["param"], param, "{code}");
    }
    let answer = client.generate(&json!({"text": "one two", "max_new_tokens": 4095})).await;
    assert_eq!(error(&answer, 422)["param"], "max_new_tokens");
    assert_eq!(error(&client.generate(&json!({"text": " \n "})).await, 422)["param"], "text");
    carries_on(&client).await;
}

#[tokio::test]
async fn a_valid_request_id_is_returned_and_any_other_is_replaced() {
    let stack = Stack::simulated(&[], &[]).await;
    let client = stack.client();
    let send = async |id: &str| {
        let headers = [JSON, ("x-request-id", id)];
        let answer = client.send(Method::POST, "/generate", &headers, "{\"text\": \"a\"}").await;
        answer.header("x-request-id").map(str::to_owned)
    };
    assert_eq!(send("mine-1").await.as_deref(), Some("mine-1"));
    let long = "x".repeat(1000);
    let replaced = send(&long).await;
    assert!(replaced.is_some() && replaced.as_deref() != Some(&long));
    let first = client.get("/livez").await;
    let second = client.get("/nothing").await;
    assert!(first.header("x-request-id").is_some());
    assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
    let headers = [JSON, ("x-request-id", "mine-2")];
    let answer = client.send(Method::POST, "/generate", &headers, "{}").await;
    assert_eq!(error(&answer, 422)["request_id"], "mine-2");
}

#[tokio::test]
async fn a_full_queue_is_429_with_retry_after() {
    let stack = Stack::simulated(&["--max-queue", "2"], &["--no-credit"]).await;
    let mut waiting = Raw::connect(stack.address()).await;
    waiting.post("{\"text\": [\"a\", \"b\"]}").await;
    stack.metric("pillion_queue_depth", |depth| depth == 2).await;
    let answer = stack.client().generate(&json!({"text": "c"})).await;
    error(&answer, 429);
    assert!(answer.header("retry-after").and_then(|after| after.parse::<u64>().ok()).is_some_and(|after| after >= 1));
    assert_eq!(stack.client().get("/readyz").await.status, 200, "a full queue does not make the proxy unready");
    drop(waiting);
    stack.metric("pillion_queue_depth", |depth| depth == 0).await;
    for _ in 0..3 {
        // The request gets both queue slots, which the last one gave back: by its client leaving, or by its deadline.
        let answer = stack.client().generate(&json!({"text": ["a", "b"], "timeout_ms": 50})).await;
        error(&answer, 504);
    }
}

#[tokio::test]
async fn a_deadline_that_passes_before_any_text_is_504() {
    let stack = Stack::simulated(&[], &["--no-credit"]).await;
    let answer = stack.client().generate(&json!({"text": "a", "timeout_ms": 100})).await;
    error(&answer, 504);
    let stack = Stack::simulated(&[], &["--batch-cost", "1h"]).await;
    let answer = stack.client().generate(&json!({"text": "a", "timeout_ms": 100})).await;
    error(&answer, 504);
}

#[tokio::test]
async fn a_deadline_that_passes_during_generation_ends_the_text_with_what_it_has() {
    let stack = Stack::simulated(&[], &["--step-cost", "50ms"]).await;
    let words = "w ".repeat(1000);
    let answer = stack.client().generate(&json!({"text": words, "max_new_tokens": 1000, "timeout_ms": 1000})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let body = answer.json();
    assert_eq!(body["finish_reason"], "deadline");
    let count = body["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((1..1000).contains(&count), "{body}");
    assert_eq!(body["text"].as_str().unwrap().split(' ').count() as u64, count);
}

#[tokio::test]
async fn without_a_worker_requests_wait_and_the_proxy_is_not_ready() {
    let stack = Stack::proxy(&["--worker-wait", "300ms"]).await;
    let client = stack.client();
    assert_eq!(client.get("/readyz").await.status, 503);
    assert!(client.get("/readyz").await.text().contains("worker"), "the probe says why");
    assert_eq!(client.get("/livez").await.status, 200);
    assert_eq!(client.get("/healthz").await.status, 200);
    error(&client.generate(&json!({"text": "a"})).await, 503);
}

#[tokio::test]
async fn a_request_that_waits_for_a_worker_is_served_when_one_connects() {
    let mut stack = Stack::proxy(&[]).await;
    let client = stack.client();
    let waiting = tokio::spawn(async move { client.generate(&json!({"text": "patience pays"})).await });
    stack.metric("pillion_queue_depth", |depth| depth == 1).await;
    stack.simulated_worker(&[]);
    assert_eq!(waiting.await.unwrap().json()["text"], "pays patience");
}

#[tokio::test]
async fn head_requests_are_answered_like_get_without_a_body() {
    let stack = Stack::simulated(&[], &[]).await;
    let client = stack.client();
    for path in ["/livez", "/healthz", "/readyz", "/metrics"] {
        let answer = client.send(Method::HEAD, path, &[], "").await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.body.is_empty(), "{path}");
    }
}

#[tokio::test]
async fn with_a_second_address_for_probes_the_first_one_still_serves_everything() {
    let stack = Stack::simulated(&["--admin-listen", "127.0.0.1:0"], &[]).await;
    assert_eq!(stack.client().get("/livez").await.status, 200);
    carries_on(&stack.client()).await;
}
