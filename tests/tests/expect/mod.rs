//! What every answer must look like.

use pillion_tests::client::{Answer, Client};
use pillion_tests::fake_worker::echo::expected;
use serde_json::{Value, json};

/// The error of an answer, whose form is checked.
#[track_caller]
pub(crate) fn error(answer: &Answer, status: u16) -> Value {
    assert_eq!(answer.status, status, "{}", answer.text());
    let body = answer.json();
    let error = &body["error"];
    for field in ["message", "type", "code"] {
        assert!(error[field].as_str().is_some_and(|text| !text.is_empty()), "{field} in {body}");
    }
    assert!(error.get("param").is_some_and(|param| param.is_null() || param.is_string()), "{body}");
    assert_eq!(error["request_id"].as_str(), answer.header("x-request-id"), "{body}");
    error.clone()
}

/// The proxy still answers as it should.
pub(crate) async fn carries_on(client: &Client) {
    let answer = client.generate(&json!({"text": "still here"})).await;
    assert_eq!(answer.json()["text"], expected("still here", 128, 0), "{}", answer.text());
}
