//! Writes the answers of `/generate` and `/generate_stream`.

use serde::Serialize;

use crate::api::call::Renderer;
use crate::api::error::{ApiError, ErrorBody, FieldNames, finish_reason};
use crate::api::write;
use crate::domain::{Completion, Outcome};

/// This dialect's field names for the prompt and the most new tokens.
pub(super) const FIELDS: FieldNames = FieldNames { prompt: "text", max_tokens: "max_new_tokens" };

/// Writes the answers of both endpoints.
#[derive(Debug)]
pub(super) struct Generate {
    /// Whether the request's `text` was a list. If so, the answer is a list too.
    pub is_list: bool,
}

/// A whole answer to a list of texts.
#[derive(Debug, Serialize)]
struct GeneratedList<'a> {
    text: Vec<Option<&'a str>>,
    finish_reason: Vec<&'static str>,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<Vec<Option<ErrorBody>>>,
}

/// The fields that follow the text in a whole answer to one text.
#[derive(Debug, Serialize)]
struct AfterText {
    finish_reason: &'static str,
    usage: Usage,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

/// The event for a piece of a text.
#[derive(Debug, Serialize)]
struct Piece<'a> {
    text: &'a str,
    batch_id: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

/// The event for a text that has failed.
#[derive(Debug, Serialize)]
struct Failed {
    error: ErrorBody,
    batch_id: usize,
}

impl Usage {
    fn of(completion: &Completion) -> Self {
        let Completion { prompt_tokens, completion_tokens, .. } = *completion;
        Self { prompt_tokens: prompt_tokens.into(), completion_tokens: completion_tokens.into() }
    }
}

impl Renderer for Generate {
    /// Returns the first text's error if all texts failed.
    fn whole(&self, outcomes: &[Outcome]) -> Result<Vec<u8>, ApiError> {
        if let ([Ok(completion)], false) = (outcomes, self.is_list) {
            let after = AfterText { finish_reason: finish_reason(completion.reason), usage: Usage::of(completion) };
            return Ok(write::json_with_text(&completion.text, &after));
        }
        if let Some(Err(first)) = outcomes.first()
            && outcomes.iter().all(Result::is_err)
        {
            return Err(first.clone().into());
        }
        let mut usage = Usage::default();
        for one in outcomes.iter().flatten().map(Usage::of) {
            usage.prompt_tokens += one.prompt_tokens;
            usage.completion_tokens += one.completion_tokens;
        }
        let reason =
            |outcome: &Outcome| outcome.as_ref().map_or("error", |completion| finish_reason(completion.reason));
        let error = |outcome: &Outcome| {
            outcome.as_ref().err().map(|failure| ApiError::Failed(failure.clone()).body(None, FIELDS))
        };
        Ok(write::json(&GeneratedList {
            text: outcomes.iter().map(|outcome| outcome.as_ref().ok().map(|completion| &*completion.text)).collect(),
            finish_reason: outcomes.iter().map(reason).collect(),
            usage,
            errors: outcomes.iter().any(Result::is_err).then(|| outcomes.iter().map(error).collect()),
        }))
    }

    fn piece(&mut self, text: usize, piece: &str, completion: Option<&Completion>, out: &mut Vec<u8>) {
        let finish_reason = completion.map(|completion| finish_reason(completion.reason));
        let piece = Piece { text: piece, batch_id: text, finish_reason, usage: completion.map(Usage::of) };
        write::event(out, None, &piece);
    }

    fn failed(&mut self, text: usize, error: ApiError, request_id: &str, out: &mut Vec<u8>) {
        write::event(out, Some("error"), &Failed { error: error.body(Some(request_id), FIELDS), batch_id: text });
    }
}

#[cfg(test)]
mod tests {
    use pillion_protocol::frame::FinishReason;
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::Failure;

    fn completion(text: &str) -> Completion {
        Completion {
            text: text.into(),
            reason: FinishReason::Length,
            prompt_tokens: 3,
            completion_tokens: 2,
            first_token_at: None,
            dispatch: None,
        }
    }

    fn render_whole(outcomes: &[Outcome], is_list: bool) -> Result<Value, ApiError> {
        Generate { is_list }.whole(outcomes).map(|body| serde_json::from_slice(&body).unwrap())
    }

    #[test]
    fn one_text_gets_one_answer() {
        let answer = render_whole(&[Ok(completion("a"))], false).unwrap();
        let expected =
            json!({"text": "a", "finish_reason": "length", "usage": {"prompt_tokens": 3, "completion_tokens": 2}});
        assert_eq!(answer, expected);
    }

    #[test]
    fn a_list_keeps_its_order_and_a_failed_text_has_an_error() {
        let body = render_whole(&[Ok(completion("a")), Err(Failure::NoWorker), Ok(completion("b"))], true).unwrap();
        assert_eq!(body["text"], json!(["a", null, "b"]));
        assert_eq!(body["finish_reason"], json!(["length", "error", "length"]));
        assert_eq!(body["usage"], json!({"prompt_tokens": 6, "completion_tokens": 4}));
        assert_eq!(body["errors"][1]["code"], "no_worker");
        assert_eq!(body["errors"][0], Value::Null);
    }

    #[test]
    fn a_list_whose_texts_all_failed_is_an_error() {
        let outcomes = [Err(Failure::Deadline), Err(Failure::NoWorker)];
        assert_eq!(render_whole(&outcomes, true).unwrap_err(), ApiError::Failed(Failure::Deadline));
    }

    #[test]
    fn a_stream_has_pieces_and_then_a_finish_reason_or_an_error() {
        let mut out = Vec::new();
        let mut renderer = Generate { is_list: true };
        renderer.piece(1, "a\u{e9}", None, &mut out);
        renderer.piece(0, "", Some(&completion("not again")), &mut out);
        renderer.failed(1, Failure::NoWorker.into(), "r1", &mut out);
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
