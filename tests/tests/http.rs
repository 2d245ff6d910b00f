//! HTTP: pipelining, chunks, HTTP/2, API keys, the description of the API, and the access log.

mod expect;

use std::fs;

use expect::{carries_on, error};
use hyper::Method;
use pillion_tests::client::{Client, Raw};
use pillion_tests::contract::DESCRIPTION;
use pillion_tests::eventually;
use pillion_tests::fake_worker::echo::expected;
use pillion_tests::folder::Folder;
use pillion_tests::stack::Stack;
use serde_json::json;
use tokio::task::JoinSet;

const JSON: (&str, &str) = ("content-type", "application/json");

fn post(path: &str, more: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: x\r\n{more}content-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let stack = Stack::simulated(&[], &["--step-cost", "1ms"]).await;
    let mut raw = Raw::connect(stack.address()).await;
    let requests = [
        post("/generate", "", r#"{"text": "first one of all"}"#),
        "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        post("/generate", "connection: close\r\n", r#"{"text": "last one"}"#),
    ];
    raw.send(requests.concat().as_bytes()).await;
    let (_, text) = raw.to_end().await;
    let places = ["all of one first", "\r\n\r\nok\n", "one last"]
        .map(|said| text.find(said).unwrap_or_else(|| panic!("{text}")));
    assert!(places.is_sorted(), "{text}");
}

#[tokio::test]
async fn a_body_may_be_chunked() {
    let stack = Stack::simulated(&[], &[]).await;
    let mut raw = Raw::connect(stack.address()).await;
    let head = "POST /generate HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    raw.send(head.as_bytes()).await;
    for piece in ["9\r\n{\"text\": \r\n", "f;x=y\r\n\"chunk by chunk\r\n", "2\r\n\"}\r\n0\r\n\r\n"] {
        raw.send(piece.as_bytes()).await;
        tokio::task::yield_now().await;
    }
    let (status, text) = raw.to_end().await;
    assert_eq!(status, Some(200), "{text}");
    assert!(text.contains("chunk by chunk"), "{text}");
}

#[tokio::test]
async fn expect_100_continue_is_answered_before_the_body_is_sent() {
    let stack = Stack::simulated(&[], &[]).await;
    let body = r#"{"text": "may I"}"#;
    let head = |bytes: usize| {
        format!(
            "POST /generate HTTP/1.1\r\nhost: x\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: {bytes}\r\n\r\n"
        )
    };
    let mut raw = Raw::connect(stack.address()).await;
    raw.send(head(body.len()).as_bytes()).await;
    assert!(raw.line().await.starts_with("HTTP/1.1 100"));
    raw.send(body.as_bytes()).await;
    assert!(raw.to_end().await.1.contains("I may"));
    let mut raw = Raw::connect(stack.address()).await;
    raw.send(head(1 << 30).as_bytes()).await;
    assert_eq!(raw.to_end().await.0, Some(413), "the 413 comes without a 100 before it");
}

#[tokio::test]
async fn openapi_json_describes_the_api() {
    let stack = Stack::proxy(&[]).await;
    let served = stack.client().get("/openapi.json").await.json();
    assert!(
        served["info"]["version"].as_str().is_some_and(|version| version.starts_with(char::is_numeric)),
        "{served}"
    );
    let mut described = DESCRIPTION.clone();
    described["info"]["version"] = served["info"]["version"].clone();
    assert_eq!(served, described);
    let answer = stack.client().send(Method::HEAD, "/openapi.json", &[], "").await;
    assert_eq!((answer.status, answer.body.len()), (200, 0));
}

#[tokio::test]
async fn http2_works_with_prior_knowledge() {
    let stack = Stack::simulated(&[], &["--step-cost", "1ms"]).await;
    let client = Client::http2(stack.address());
    let mut asked = JoinSet::new();
    for k in 0..200 {
        let client = client.clone();
        asked.spawn(async move {
            let text = format!("{k} over one connection");
            if k % 2 == 0 {
                let answer = client.generate(&json!({"text": text})).await;
                assert_eq!(answer.json()["text"], expected(&text, 128, 0));
            } else {
                let events = client.events("/generate_stream", &json!({"text": text})).await.rest().await;
                let all: String =
                    events.iter().map(|event| event.json()["text"].as_str().unwrap().to_owned()).collect();
                assert_eq!(all, expected(&text, 128, 0));
            }
        });
    }
    while let Some(done) = asked.join_next().await {
        done.unwrap();
    }
    error(&client.generate(&json!({"text": ""})).await, 422);
    assert_eq!(client.get("/readyz").await.status, 200);
    let mut dropped = client.events("/generate_stream", &json!({"text": "a b", "min_new_tokens": 100})).await;
    dropped.next().await.unwrap();
    drop(dropped);
    stack.metric("pillion_running", |running| running == 0).await;
    carries_on(&stack.client()).await;
}

#[tokio::test]
async fn with_an_api_key_file_only_requests_with_a_key_are_served() {
    let folder = pillion_tests::folder::Folder::new();
    let file = folder.path().join("keys");
    fs::write(&file, "# for tests\nsecret-one\nsecret-two\n").unwrap();
    let stack = Stack::simulated(&["--api-key-file", file.to_str().unwrap()], &[]).await;
    let client = stack.client();
    let ask = async |path: &str, key: Option<&str>, body: &str| {
        let bearer = key.map(|key| format!("Bearer {key}")).unwrap_or_default();
        let headers = [JSON, ("authorization", &*bearer)];
        client.send(Method::POST, path, &headers[..=usize::from(key.is_some())], body.to_owned()).await
    };
    let body = r#"{"text": "a b"}"#;
    for (key, status) in [(None, 401), (Some("secret"), 401), (Some("secret-one"), 200), (Some("secret-two"), 200)] {
        assert_eq!(ask("/generate", key, body).await.status, status, "{key:?}");
    }
    let refused = ask("/v1/completions", None, "{}").await;
    assert_eq!(error(&refused, 401)["code"], "invalid_api_key");
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    error(&client.get("/v1/models").await, 401);
    for open in ["/livez", "/healthz", "/readyz", "/metrics", "/openapi.json"] {
        assert_eq!(client.get(open).await.status, 200, "{open}");
    }
    // Kubernetes changes a secret in the same way: it renames another file into its place.
    fs::write(folder.path().join("new"), "secret-three\n").unwrap();
    fs::rename(folder.path().join("new"), &file).unwrap();
    eventually("the new key is accepted", async || {
        (ask("/generate", Some("secret-three"), body).await.status == 200).then_some(())
    })
    .await;
    assert_eq!(ask("/generate", Some("secret-one"), body).await.status, 401);
}

#[tokio::test]
async fn a_request_has_one_log_line_with_its_trace_and_without_its_text() {
    let mut stack = Stack::simulated(&[], &[]).await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    let headers = [JSON, ("traceparent", &*parent), ("x-request-id", "mine")];
    let answer = stack.client().send(Method::POST, "/generate", &headers, r#"{"text": "a private word"}"#).await;
    assert_eq!(answer.status, 200);
    let line =
        stack.proxy.logged("log line", |line| line.contains("\"request_id\":\"mine\"").then(|| line.to_owned())).await;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    for (field, value) in [
        ("message", json!("request")),
        ("trace_id", json!(trace)),
        ("endpoint", json!("/generate")),
        ("status", json!(200)),
        ("texts", json!(1)),
        ("batch_size", json!(1)),
        ("prompt_tokens", json!(3)),
        ("completion_tokens", json!(3)),
        ("reason", json!("stop")),
    ] {
        assert_eq!(line[field], value, "{line}");
    }
    assert!(line["queue_ms"].is_string() || line["queue_ms"].is_number(), "{line}");
    assert!(!line.to_string().contains("private"), "{line}");
}

#[tokio::test]
async fn the_log_names_the_field_that_was_refused_and_how_long_a_request_waited_in_vain() {
    let mut stack = Stack::proxy(&["--worker-wait", "50ms"]).await;
    let mut logged = async |id: &str, body: &'static str| {
        let headers = [JSON, ("x-request-id", id)];
        let status = stack.client().send(Method::POST, "/generate", &headers, body).await.status;
        let id = format!("\"request_id\":\"{id}\"");
        let line = stack.proxy.logged("log line", |line| line.contains(&id).then(|| line.to_owned())).await;
        (status, serde_json::from_str::<serde_json::Value>(&line).unwrap())
    };
    let (status, line) = logged("wrong", r#"{"text": "a", "sampling_topk": "many"}"#).await;
    assert_eq!((status, &line["param"]), (422, &json!("sampling_topk")), "{line}");
    let (status, line) = logged("unknown", r#"{"text": "a", "my secret: 7": 1}"#).await;
    assert_eq!((status, line.get("param")), (422, None), "{line}");
    assert!(!line.to_string().contains("secret"), "{line}");
    // One waits for a worker, the other for the end of its time.
    for (id, body, expected) in
        [("lonely", r#"{"text": "a"}"#, 503), ("late", r#"{"text": "a", "timeout_ms": 30}"#, 504)]
    {
        let (status, line) = logged(id, body).await;
        assert_eq!(status, expected, "{line}");
        assert!(line["queue_ms"].as_f64().unwrap() >= 29.0, "{line}");
    }
}

#[tokio::test]
async fn log_prompts_logs_prompts_and_answers_and_rust_log_turns_off_the_lines_of_requests() {
    let wrapper = ["env", "RUST_LOG=info,pillion_proxy::request=off"];
    let mut stack = Stack::proxy_by(&wrapper, Folder::new(), &["--log-prompts"]).await;
    stack.simulated_worker(&[]);
    stack.ready().await;
    let client = stack.client();
    assert_eq!(client.generate(&json!({"text": "alpha beta"})).await.status, 200);
    client.events("/generate_stream", &json!({"text": "gamma delta"})).await.rest().await;
    for text in ["alpha beta", "beta alpha", "gamma delta", "sending a piece of an answer"] {
        stack.proxy.logged(text, |line| line.contains(text).then_some(())).await;
    }
    assert!(!stack.proxy.log().contains("pillion_proxy::request"), "{}", stack.proxy.log());
}
