//! How `/generate` and `/generate_stream` write their answers.

use pillion_protocol::json::put_string;
use serde::Serialize;

use super::Answer;
use super::call::Shape;
use super::events;
use super::response::{Api, ApiError, ErrorBody, ok, ok_raw, reason_name};
use crate::job::{Completion, End};

/// The shape of both.
#[derive(Debug)]
pub(super) struct Generate {
    /// Whether `text` was a list, so that the answer is one.
    pub is_list: bool,
}

/// The answer for a list.
#[derive(Debug, Serialize)]
struct Generated<'a> {
    text: Vec<Option<&'a str>>,
    finish_reason: Vec<&'static str>,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<Vec<Option<ErrorBody>>>,
}

/// The answer for one text, but for the text.
#[derive(Debug, Serialize)]
struct ButText {
    finish_reason: &'static str,
    usage: Usage,
}

#[derive(Debug, Default, Serialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

/// An event of a stream.
#[derive(Debug, Serialize)]
struct Piece<'a> {
    text: &'a str,
    batch_id: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

/// The event that says why a text has no more.
#[derive(Debug, Serialize)]
struct Failed {
    error: ErrorBody,
    batch_id: usize,
}

impl Usage {
    fn of(completion: &Completion) -> Self {
        Self {
            prompt_tokens: u64::from(completion.prompt_tokens),
            completion_tokens: u64::from(completion.completion_tokens),
        }
    }
}

impl Shape for Generate {
    /// An error where nothing of the request went well.
    fn whole(&self, ends: &[End]) -> Result<Answer, ApiError> {
        if let Some(Err(first)) = ends.first()
            && ends.iter().all(Result::is_err)
        {
            return Err(first.clone().into());
        }
        let mut usage = Usage::default();
        for one in ends.iter().flatten().map(Usage::of) {
            usage.prompt_tokens += one.prompt_tokens;
            usage.completion_tokens += one.completion_tokens;
        }
        let reason = |end: &End| end.as_ref().map_or("error", |completion| reason_name(completion.reason));
        let error =
            |end: &End| end.as_ref().err().map(|failure| ApiError::Failed(failure.clone()).body(None, Api::Generate));
        if let ([Ok(completion)], false) = (ends, self.is_list) {
            return Ok(ok_raw(one(completion, usage)));
        }
        Ok(ok(&Generated {
            text: ends.iter().map(text).collect(),
            finish_reason: ends.iter().map(reason).collect(),
            usage,
            errors: ends.iter().any(Result::is_err).then(|| ends.iter().map(error).collect()),
        }))
    }

    fn news(&mut self, text: usize, piece: &str, end: Option<&Completion>, out: &mut Vec<u8>) {
        let finish_reason = end.map(|completion| reason_name(completion.reason));
        let piece = Piece { text: piece, batch_id: text, finish_reason, usage: end.map(Usage::of) };
        events::write(out, None, &piece);
    }

    fn failed(&mut self, text: usize, error: ApiError, api: Api, request_id: &str, out: &mut Vec<u8>) {
        events::write(out, Some("error"), &Failed { error: error.body(Some(request_id), api), batch_id: text });
    }
}

/// The answer for one text. The text is written by itself, since it is long and mostly plain; the others follow as an object
/// of their own, of which the brace becomes the comma between them.
fn one(completion: &Completion, usage: Usage) -> Vec<u8> {
    let mut body = Vec::with_capacity(completion.text.len() + 128);
    body.extend(b"{\"text\":");
    put_string(&completion.text, &mut body);
    let others = body.len();
    let rest = ButText { finish_reason: reason_name(completion.reason), usage };
    // It has no maps with other keys than strings, so writing it cannot fail.
    let _ = serde_json::to_writer(&mut body, &rest);
    body[others] = b',';
    body
}

fn text(end: &End) -> Option<&str> {
    end.as_ref().ok().map(|completion| &*completion.text)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use pillion_protocol::frame::FinishReason;
    use serde_json::{Value, json};

    use super::*;
    use crate::job::Failure;

    fn well(text: &str) -> Completion {
        Completion {
            text: text.into(),
            reason: FinishReason::Length,
            prompt_tokens: 3,
            completion_tokens: 2,
            first_token_at: None,
            boarding: None,
        }
    }

    fn respond(ends: &[End], is_list: bool) -> Result<Answer, ApiError> {
        Generate { is_list }.whole(ends)
    }

    async fn body(answer: Answer) -> Value {
        serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap()
    }

    #[tokio::test]
    async fn one_text_gets_one_answer() {
        let answer = respond(&[Ok(well("a"))], false).unwrap();
        let expected =
            json!({"text": "a", "finish_reason": "length", "usage": {"prompt_tokens": 3, "completion_tokens": 2}});
        assert_eq!(body(answer).await, expected);
    }

    #[tokio::test]
    async fn a_list_keeps_its_order_and_a_member_that_failed_has_its_error() {
        let answer = respond(&[Ok(well("a")), Err(Failure::NoWorker), Ok(well("b"))], true).unwrap();
        let body = body(answer).await;
        assert_eq!(body["text"], json!(["a", null, "b"]));
        assert_eq!(body["finish_reason"], json!(["length", "error", "length"]));
        assert_eq!(body["usage"], json!({"prompt_tokens": 6, "completion_tokens": 4}));
        assert_eq!(body["errors"][1]["code"], "no_worker");
        assert_eq!(body["errors"][0], Value::Null);
    }

    #[test]
    fn a_list_of_which_nothing_went_well_is_an_error() {
        let ends = [Err(Failure::Deadline), Err(Failure::NoWorker)];
        assert_eq!(respond(&ends, true).unwrap_err(), ApiError::Failed(Failure::Deadline));
    }

    #[test]
    fn a_stream_says_what_is_new_and_then_how_it_ended() {
        let mut out = Vec::new();
        let mut shape = Generate { is_list: true };
        shape.news(1, "a\u{e9}", None, &mut out);
        shape.news(0, "", Some(&well("not again")), &mut out);
        shape.failed(1, Failure::NoWorker.into(), Api::GenerateStream, "r1", &mut out);
        let text = String::from_utf8(out).unwrap();
        let events: Vec<&str> = text.split_terminator("\n\n").collect();
        assert_eq!(events[0], "data: {\"text\":\"a\u{e9}\",\"batch_id\":1}");
        let last: Value = serde_json::from_str(events[1].strip_prefix("data: ").unwrap()).unwrap();
        let usage = json!({"prompt_tokens": 3, "completion_tokens": 2});
        assert_eq!(last, json!({"text": "", "batch_id": 0, "finish_reason": "length", "usage": usage}));
        let error: Value = serde_json::from_str(events[2].strip_prefix("event: error\ndata: ").unwrap()).unwrap();
        assert_eq!(error["error"]["code"], "no_worker");
        assert_eq!((&error["batch_id"], &error["error"]["request_id"]), (&json!(1), &json!("r1")));
    }
}
