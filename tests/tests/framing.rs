//! Request smuggling: a request that two readers could see end in different places is refused, or is the last on its
//! connection.

use pillion_tests::client::Raw;
use pillion_tests::stack::Stack;
use serde_json::json;

const BODY: &str = r#"{"text":"a b"}"#;
const CHUNKED: &str = "e\r\n{\"text\":\"a b\"}\r\n0\r\n\r\n";
/// Bytes after a request. If the proxy took them for a second request, it would answer them.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";

/// The status of the only answer before the connection is closed.
async fn only(stack: &Stack, request: &str) -> u16 {
    let mut raw = Raw::connect(stack.address()).await;
    raw.send(request.as_bytes()).await;
    let (status, text) = raw.to_end().await;
    assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{request:?} is answered by {text}");
    status.unwrap_or_else(|| panic!("{request:?} is answered by {text}"))
}

#[tokio::test]
async fn an_ambiguous_head_is_refused() {
    let stack = Stack::simulated(&[], &[]).await;
    let twenty_digits = "9".repeat(20);
    for fields in [
        "content-length: 14\r\ncontent-length: 5",
        "content-length: 14, 5",
        "content-length: +14",
        "content-length: 0xe",
        "content-length: -1",
        &format!("content-length: {twenty_digits}"),
        "transfer-encoding: identity",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: xchunked",
        "transfer-encoding : chunked",
        "x: y\rz\r\ncontent-length: 14",
        "x: y\r\n z\r\ncontent-length: 14",
        "x\0: y\r\ncontent-length: 14",
    ] {
        let body = if fields.contains("chunked") { CHUNKED } else { BODY };
        let request = format!("POST /generate HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n{body}{SMUGGLED}");
        assert_eq!(only(&stack, &request).await, 400, "{fields}");
    }
    let old = format!("POST /generate HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{CHUNKED}{SMUGGLED}");
    assert_eq!(only(&stack, &old).await, 400);
    assert_eq!(stack.client().generate(&json!({"text": "a b"})).await.json()["text"], "b a");
}

#[tokio::test]
async fn with_a_length_and_chunks_the_chunks_count_and_the_connection_is_closed() {
    let stack = Stack::simulated(&[], &[]).await;
    for fields in ["content-length: 5\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 5"]
    {
        let request = format!("POST /generate HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n{CHUNKED}{SMUGGLED}");
        assert_eq!(only(&stack, &request).await, 200, "RFC 9112, section 6.3: {fields}");
    }
}

#[tokio::test]
async fn an_invalid_chunk_is_refused() {
    let stack = Stack::simulated(&[], &[]).await;
    let long = "a".repeat(20_000);
    for chunks in [
        "e\n{\"text\":\"a b\"}\n0\n\n",
        "0xe\r\n{\"text\":\"a b\"}\r\n0\r\n\r\n",
        "-1\r\n{\"text\":\"a b\"}\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n{\"text\":\"a b\"}\r\n0\r\n\r\n",
        "d\r\n{\"text\":\"a b\"}\r\n0\r\n\r\n",
        &format!("e;{long}\r\n{{\"text\":\"a b\"}}\r\n0\r\n\r\n"),
        &format!("e\r\n{{\"text\":\"a b\"}}\r\n0\r\nx: {long}{long}{long}{long}\r\n\r\n"),
    ] {
        let request =
            format!("POST /generate HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunks}{SMUGGLED}");
        assert_eq!(only(&stack, &request).await, 400, "{}", &chunks[..chunks.len().min(60)]);
    }
    assert_eq!(stack.client().generate(&json!({"text": "a b"})).await.json()["text"], "b a");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let stack = Stack::simulated(&[], &[]).await;
    let fields = "a: b\r\n".repeat(101);
    assert_eq!(only(&stack, &format!("GET /livez HTTP/1.1\r\nhost: a\r\n{fields}\r\n")).await, 431);
    let field = "a".repeat(17_000);
    assert_eq!(only(&stack, &format!("GET /livez HTTP/1.1\r\nhost: a\r\nx: {field}\r\n\r\n")).await, 431);
    let path = "a".repeat(17_000);
    let status = only(&stack, &format!("GET /{path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
    assert!([414, 431].contains(&status), "{status}");
    assert_eq!(stack.client().generate(&json!({"text": "a b"})).await.json()["text"], "b a");
}
