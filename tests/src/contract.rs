//! Checks every answer that a test reads against the API's own description.

use std::collections::HashMap;
use std::sync::LazyLock;

use hyper::Method;
use hyper::header::HeaderMap;
use jsonschema::Validator;
use serde_json::{Value, json};

use crate::client::Answer;
use crate::events::Event;

/// The description from the proxy's source. A test checks that the proxy serves the same.
pub static DESCRIPTION: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../proxy/src/http/openapi.json")).expect("openapi.json is JSON")
});

static SCHEMAS: LazyLock<HashMap<&'static str, Validator>> = LazyLock::new(|| {
    let schemas = DESCRIPTION["components"]["schemas"].as_object().expect("schemas");
    schemas.keys().map(|name| (name.as_str(), validator(name))).collect()
});

fn validator(name: &str) -> Validator {
    let reference = format!("#/components/schemas/{name}");
    let schema = json!({"$ref": reference, "components": DESCRIPTION["components"]});
    jsonschema::options().should_validate_formats(true).build(&schema).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Checks a value against a schema of the description.
///
/// # Panics
/// The value is not as described.
#[track_caller]
pub fn hold(name: &str, value: &Value) {
    let faults: Vec<String> = SCHEMAS[name].iter_errors(value).map(|error| error.to_string()).collect();
    assert!(faults.is_empty(), "{value} is no {name}: {faults:?}");
}

/// Checks an answer against the description of its path, method and status. If the path is not described, the answer
/// must be 404. If only the method is not described, the answer must be 405, or 401
/// if the request lacks a valid key.
///
/// # Panics
/// The answer is not as described.
#[track_caller]
pub fn hold_answer(method: &Method, path: &str, answer: &Answer) {
    let (status, headers) = (answer.status, &answer.headers);
    let Some(described) = operations(path) else {
        assert_eq!(status, 404, "{path} is not described");
        return hold("ErrorAnswer", &body(path, answer));
    };
    let method = if *method == Method::HEAD { "get".to_owned() } else { method.as_str().to_lowercase() };
    let operation = match &described[&method] {
        Value::Null => {
            assert!(status == 405 || status == 401, "{method} {path} is not described, and answered with {status}");
            return hold("ErrorAnswer", &body(path, answer));
        }
        operation => operation,
    };
    let response = &operation["responses"][status.to_string()];
    assert!(!response.is_null(), "{method} {path} does not say that it may answer {status}: {}", answer.text());
    let response = followed(response);
    hold_headers(path, response, headers);
    let content = response["content"].as_object().expect("every answer has a body");
    let kind = answer.header("content-type").unwrap_or_default().split(';').next().unwrap_or_default();
    let schema = &content.get(kind).unwrap_or_else(|| panic!("{path} answers {status} with {kind:?}"))["schema"];
    if kind == "application/json" && !answer.body.is_empty() {
        match schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next()) {
            Some(name) => hold(name, &body(path, answer)),
            None => assert!(body(path, answer).is_object(), "{path}"),
        }
    }
}

/// Checks an event of a stream against the description of its path.
///
/// # Panics
/// The event is not as described.
#[track_caller]
pub fn hold_event(path: &str, event: &Event) {
    let name = match path {
        _ if event.is_comment || event.data == "[DONE]" => return,
        "/generate_stream" if event.name == "error" => "FailedPiece",
        "/generate_stream" => "Piece",
        _ if event.data.starts_with("{\"error\":") => "ErrorAnswer",
        "/v1/completions" => "CompletionChunk",
        "/v1/chat/completions" => "ChatChunk",
        _ => panic!("{path} sends no events"),
    };
    hold(name, &event.json());
}

/// The description of a path. The paths of single models share one description.
fn operations(path: &str) -> Option<&'static Value> {
    let path = path.split('?').next().unwrap_or_default();
    let described = DESCRIPTION["paths"].as_object().expect("paths");
    let template = if path.starts_with("/v1/models/") { "/v1/models/{id}" } else { path };
    described.get(template)
}

fn followed(response: &'static Value) -> &'static Value {
    match response["$ref"].as_str() {
        Some(reference) => {
            DESCRIPTION.pointer(reference.trim_start_matches('#')).expect("the reference leads somewhere")
        }
        None => response,
    }
}

#[track_caller]
fn hold_headers(path: &str, response: &Value, headers: &HeaderMap) {
    for name in response["headers"].as_object().into_iter().flat_map(serde_json::Map::keys) {
        assert!(headers.contains_key(name), "{path} answers without {name}: {headers:?}");
    }
}

#[track_caller]
fn body(path: &str, answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{path}: {error}: {}", answer.text()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schema_can_be_used_and_finds_what_is_wrong() {
        assert!(SCHEMAS.len() > 10);
        hold("Usage", &json!({"prompt_tokens": 1, "completion_tokens": 0}));
        for wrong in [json!({"prompt_tokens": 1}), json!({"prompt_tokens": -1, "completion_tokens": 0})] {
            assert!(!SCHEMAS["Usage"].is_valid(&wrong), "{wrong}");
        }
    }
}
