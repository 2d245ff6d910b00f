//! `/generate` refuses invalid requests and serves valid ones afterwards.

mod expect;

use expect::{carries_on, error};
use hyper::Method;
use pillion_tests::client::Raw;
use pillion_tests::stack::Stack;
use serde_json::{Value, json};

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn every_invalid_field_is_refused_by_name() {
    let stack = Stack::simulated(&["--max-queue", "8"], &[]).await;
    let client = stack.client();
    let wrong = [
        ("text", vec![json!(""), json!([]), json!(5), json!({}), json!(true), json!(["a", ""]), json!(["a", 1])]),
        ("text", vec![json!(vec!["a"; 9]), Value::Null]),
        ("max_new_tokens", vec![json!(0), json!(-1), json!(1.5), json!("5"), json!(1e300), json!(u64::MAX), json!([])]),
        ("min_new_tokens", vec![json!(-1), json!({}), json!(1e18)]),
        ("sampling_topk", vec![json!(-1), json!("x"), json!(u64::MAX)]),
        ("sampling_topp", vec![json!(0), json!(1.1), json!(-0.5), json!("x"), json!(1e39)]),
        ("sampling_temperature", vec![json!(0), json!(-1), json!(1e39), json!(1e-60), json!([])]),
        ("repetition_penalty", vec![json!(0), json!(-2), json!(1e39), json!(false)]),
        ("no_repeat_ngram_size", vec![json!(-1), json!(0.5), json!(u64::MAX)]),
        ("stop", vec![json!(""), json!(5), json!(["ok", ""]), json!([[]])]),
        ("timeout_ms", vec![json!(0), json!(-5), json!("1s"), json!(u64::MAX)]),
        ("max_tokens", vec![json!(5)]),
        ("seed", vec![json!(5)]),
    ];
    let mut refused = 0;
    for (field, value) in wrong.iter().flat_map(|(field, values)| values.iter().map(move |value| (*field, value))) {
        let mut request = json!({"text": "a"});
        request[field] = value.clone();
        let answer = client.generate(&request).await;
        assert_eq!(error(&answer, 422)["param"], field, "{request} gave {}", answer.text());
        refused += 1;
    }
    carries_on(&client).await;
    let counted = stack.metrics().await.with("pillion_requests_total", &[("endpoint", "/generate"), ("code", "422")]);
    assert_eq!(counted, refused);
}

#[tokio::test]
async fn without_a_worker_a_client_is_told_when_to_try_again() {
    let stack = Stack::proxy(&["--worker-wait", "10ms"]).await;
    let answer = stack.client().generate(&json!({"text": "a"})).await;
    assert_eq!(error(&answer, 503)["code"], "no_worker");
    assert_eq!(answer.headers["retry-after"], "1");
}

#[tokio::test]
async fn invalid_json_is_400_and_json_without_the_right_fields_is_422() {
    let stack = Stack::simulated(&[], &[]).await;
    let client = stack.client();
    let deep = "[".repeat(100_000);
    for body in [&b""[..], b"{", b"hello", b"{\"text\": \"a\",}", b"{\"text\": \"\xff\xfe\"}", b"\x00", deep.as_bytes()]
    {
        let answer = client.send(Method::POST, "/generate", &[JSON], body.to_vec()).await;
        error(&answer, 400);
    }
    for body in ["[]", "5", "null", "\"text\"", "{}"] {
        error(&client.send(Method::POST, "/generate", &[JSON], body).await, 422);
    }
    carries_on(&client).await;
}

#[tokio::test]
async fn methods_paths_and_content_types_are_checked() {
    let stack = Stack::simulated(&[], &[]).await;
    let client = stack.client();
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::PATCH] {
        let answer = client.send(method, "/generate", &[], "").await;
        error(&answer, 405);
        assert_eq!(answer.header("allow"), Some("POST"));
    }
    let answer = client.send(Method::POST, "/livez", &[JSON], "{}").await;
    error(&answer, 405);
    assert!(answer.header("allow").is_some_and(|allow| allow.contains("GET")), "{answer:?}");
    for path in ["/", "/generate/", "/Generate", "/nothing?text=a", "/%67enerate"] {
        error(&client.get(path).await, 404);
        error(&client.post(path, &json!({"text": "a"})).await, 404);
    }
    for kind in ["text/plain", "application/xml", "multipart/form-data; boundary=x", "image/png"] {
        let answer = client.send(Method::POST, "/generate", &[("content-type", kind)], "{\"text\": \"a\"}").await;
        error(&answer, 415);
    }
    for kind in ["application/json; charset=utf-8", "Application/JSON", "application/x-www-form-urlencoded"] {
        let answer = client.send(Method::POST, "/generate", &[("content-type", kind)], "{\"text\": \"a\"}").await;
        assert_eq!(answer.status, 200, "{kind}");
    }
    let answer = client.send(Method::POST, "/generate", &[], "{\"text\": \"a\"}").await;
    assert_eq!(answer.status, 200, "without a content type");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_with_and_without_a_content_length() {
    let stack = Stack::simulated(&["--max-body-bytes", "1KiB"], &[]).await;
    let client = stack.client();
    let answer = client.generate(&json!({"text": "a ".repeat(1000)})).await;
    error(&answer, 413);
    let mut raw = Raw::connect(stack.address()).await;
    raw.send(b"POST /generate HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n").await;
    for _ in 0..3 {
        raw.send(format!("200\r\n{}\r\n", "a".repeat(512)).as_bytes()).await;
    }
    raw.send(b"0\r\n\r\n").await;
    assert_eq!(raw.to_end().await.0, Some(413));
    carries_on(&client).await;
}

#[tokio::test]
async fn a_malformed_head_closes_its_own_connection_only() {
    let stack = Stack::simulated(&[], &[]).await;
    let many = "x: y\r\n".repeat(2000);
    let long = "y".repeat(1024 * 1024);
    for (head, status) in [
        ("complete nonsense\r\n\r\n".to_owned(), Some(400)),
        ("\u{0}\u{1}\u{2}\r\n\r\n".to_owned(), Some(400)),
        (format!("POST /generate HTTP/1.1\r\nhost: x\r\n{many}\r\n"), Some(431)),
        (format!("POST /generate HTTP/1.1\r\nhost: x\r\nx: {long}\r\n\r\n"), Some(431)),
        ("POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n".to_owned(), Some(400)),
        ("POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n".to_owned(), Some(400)),
    ] {
        let mut raw = Raw::connect(stack.address()).await;
        raw.send(head.as_bytes()).await;
        let (seen, text) = raw.to_end().await;
        // If the head is refused before all of it is read, the connection is reset, and the answer may be lost.
        assert!(seen == status || (seen.is_none() && head.len() > 100_000), "{:?}: {text}", head.get(..60));
    }
    let mut half = Raw::connect(stack.address()).await;
    half.send(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"text\"").await;
    drop(half);
    carries_on(&stack.client()).await;
}

#[tokio::test]
async fn a_body_that_does_not_arrive_in_time_is_408() {
    let stack = Stack::simulated(&["--request-timeout", "500ms"], &[]).await;
    let mut raw = Raw::connect(stack.address()).await;
    raw.send(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n{").await;
    let (status, text) = raw.to_end().await;
    assert_eq!(status, Some(408), "{text}");
    carries_on(&stack.client()).await;
}
