//! What an answer must be. Plain data.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;

use super::plan::Request;
use crate::events::{Event, Parser};
use crate::fake_worker::echo::expected;

/// What a client got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Got {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
    /// When, after it asked.
    pub after: Duration,
}

/// What is wrong with an answer.
pub type Wrong = String;

/// Whether this is an answer to that request. `swapped`: another model took the place of the first.
///
/// # Errors
/// It is none.
pub fn judge(request: &Request, got: &Got, swapped: bool) -> Result<(), Wrong> {
    let text = String::from_utf8_lossy(&got.body);
    let wrong = |why: &str| Err(format!("{why}: {} {text} after {:?} to {request:?}", got.status, got.after));
    match got.status {
        200 if request.is_stream => judge_stream(request, &got.body, swapped).or_else(|why| wrong(&why)),
        200 => match serde_json::from_slice(&got.body) {
            Ok(answer) => judge_whole(request, &answer).or_else(|why| wrong(&why)),
            Err(_) => wrong("it is no JSON"),
        },
        502 if request.is_poison() => Ok(()),
        504 if request.timeout.is_some_and(|timeout| got.after >= timeout) => Ok(()),
        429 if request.timeout.is_some() => Ok(()),
        _ => wrong("such a failure was not planned"),
    }
}

fn judge_whole(request: &Request, answer: &Value) -> Result<(), Wrong> {
    let of = |field: &str, nth: usize| {
        let value = if request.model.is_some() { &answer["choices"][0][field] } else { &answer[field] };
        if request.texts.len() == 1 { value.clone() } else { value[nth].clone() }
    };
    for (nth, text) in request.texts.iter().enumerate() {
        let (said, reason) = (of("text", nth), of("finish_reason", nth));
        part(request, text, said.as_str().unwrap_or_default(), reason.as_str().unwrap_or_default())?;
    }
    Ok(())
}

/// A text's answer, and why it ended.
fn part(request: &Request, text: &str, said: &str, reason: &str) -> Result<(), Wrong> {
    let whole = expected(text, request.max, request.min);
    match reason {
        "stop" | "length" if said == whole => Ok(()),
        "deadline" if request.timeout.is_some() && whole.starts_with(said) => Ok(()),
        _ => Err(format!("{said:?} ({reason}) is not {whole:?}")),
    }
}

fn judge_stream(request: &Request, body: &[u8], swapped: bool) -> Result<(), Wrong> {
    let (mut parser, mut events) = (Parser::default(), VecDeque::new());
    parser.push(body, &mut events);
    if !parser.is_between() {
        return Err("it broke off within an event".into());
    }
    let mut said = String::new();
    let mut end = None;
    for event in events.iter().filter(|event: &&Event| !event.is_comment) {
        if end.is_some() {
            return Err("something comes after its end".into());
        }
        let data: Value = serde_json::from_str(&event.data).map_err(|error| error.to_string())?;
        said.push_str(data["text"].as_str().unwrap_or_default());
        end = data["finish_reason"].as_str().or(data["error"]["code"].as_str()).map(str::to_owned);
    }
    let whole = expected(&request.texts[0], request.max, request.min);
    let may_end = match end.as_deref() {
        None => return Err("it has no end".into()),
        Some("not_resumable") => request.looks_back,
        Some("model_gone") => swapped,
        Some("worker_lost") => request.is_poison(),
        Some("deadline_exceeded" | "timeout") => request.timeout.is_some(),
        Some(reason) => return part(request, &request.texts[0], &said, reason),
    };
    if may_end && whole.starts_with(&said) { Ok(()) } else { Err(format!("{said:?} ended with {end:?}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(is_stream: bool) -> Request {
        Request {
            texts: vec!["one two three".into()],
            max: 10,
            min: 0,
            looks_back: false,
            is_stream,
            timeout: None,
            leaves: None,
            model: None,
            window: None,
        }
    }

    fn verdict(request: &Request, status: u16, body: &str) -> bool {
        judge(request, &Got { status, body: body.into(), after: Duration::ZERO }, false).is_ok()
    }

    #[test]
    fn only_its_own_whole_answer_will_do() {
        let request = request(false);
        assert!(verdict(&request, 200, r#"{"text": "three two one", "finish_reason": "stop"}"#));
        assert!(!verdict(&request, 200, r#"{"text": "three two", "finish_reason": "stop"}"#), "a part");
        assert!(!verdict(&request, 200, r#"{"text": "six five four", "finish_reason": "stop"}"#), "another's");
        assert!(!verdict(&request, 502, "{}") && !verdict(&request, 504, "{}") && !verdict(&request, 429, "{}"));
        let hurried = Request { timeout: Some(Duration::ZERO), ..request };
        assert!(verdict(&hurried, 504, "{}"));
        assert!(verdict(&hurried, 200, r#"{"text": "three two", "finish_reason": "deadline"}"#));
    }

    #[test]
    fn a_stream_has_one_end_and_nothing_after_it() {
        let request = request(true);
        let text = "data: {\"text\": \"three two\"}\n\n";
        let end = "data: {\"text\": \" one\", \"finish_reason\": \"stop\"}\n\n";
        assert!(verdict(&request, 200, &format!(": keep-alive\n\n{text}{end}")));
        assert!(!verdict(&request, 200, text), "no end");
        assert!(!verdict(&request, 200, end), "a piece is lost");
        assert!(!verdict(&request, 200, &format!("{text}{end}{end}")), "two ends");
        assert!(!verdict(&request, 200, &format!("{text}data: {{")), "it broke off");
        assert!(!verdict(&request, 200, "event: error\ndata: {\"error\": {\"code\": \"not_resumable\"}}\n\n"));
    }
}
