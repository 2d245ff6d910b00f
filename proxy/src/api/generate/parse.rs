//! Parses the body of `POST /generate` and `POST /generate_stream`.

use std::sync::Arc;

use pillion_protocol::frame::{Options, Prompt};

use super::render::Generate;
use crate::api::call::{Call, Limits};
use crate::api::error::ApiError;
use crate::api::fields::{EPSILON, Fields, MAX_NEW_TOKENS, missing};
use crate::domain::{BatchKey, GenerationRequest};

/// The limit of an answer, in tokens, if the request has none.
const DEFAULT_NEW_TOKENS: u32 = 128;

/// Parses and validates a body.
pub(super) fn parse(body: &[u8], limits: &Limits, stream: bool) -> Result<Call, ApiError> {
    let mut fields = Fields::parse(body)?;
    let (texts, is_list) = fields.strings("text", 1..=limits.texts, limits.body_bytes)?;
    if texts.is_empty() {
        return Err(missing("text", "a string or a list of strings"));
    }
    let given = fields.integer("max_new_tokens", 1, MAX_NEW_TOKENS)?;
    let min_new_tokens = fields.least_tokens("min_new_tokens", "max_new_tokens", given)?;
    let default = Options::default();
    let options = Options {
        sampling_topk: fields.integer("sampling_topk", 0, MAX_NEW_TOKENS)?.unwrap_or(default.sampling_topk),
        sampling_topp: fields.number("sampling_topp", EPSILON..=1.0)?.unwrap_or(default.sampling_topp),
        sampling_temperature: fields
            .number("sampling_temperature", EPSILON..=100.0)?
            .unwrap_or(default.sampling_temperature),
        repetition_penalty: fields.number("repetition_penalty", EPSILON..=100.0)?.unwrap_or(default.repetition_penalty),
        no_repeat_ngram_size: fields.integer("no_repeat_ngram_size", 0, 1024)?.unwrap_or(0),
    };
    let template = GenerationRequest {
        prompt: Prompt::Text(String::new()),
        key: BatchKey::new(options, min_new_tokens),
        max_new_tokens: given.unwrap_or(DEFAULT_NEW_TOKENS.max(min_new_tokens)),
        // Without a limit of the request's own, the worker may lower the default to the positions that the prompt leaves.
        fit: given.is_none(),
        stop: Arc::new(fields.stops()?),
        chat_template_kwargs: Arc::default(),
    };
    let timeout = fields.timeout(limits.request_timeout)?;
    fields.refuse_unknown()?;
    let templates = std::iter::repeat_n(template, texts.len());
    let request = |(text, template)| GenerationRequest { prompt: Prompt::Text(text), ..template };
    let requests = texts.into_iter().zip(templates).map(request).collect();
    Ok(Call { requests, timeout, stream, renderer: Box::new(Generate { is_list }) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::Stops;

    const LIMITS: Limits = Limits { body_bytes: 1024, texts: 4, request_timeout: Duration::from_secs(60) };

    fn parse(body: &[u8], limits: &Limits) -> Result<Call, ApiError> {
        super::parse(body, limits, false)
    }

    fn param(body: &str) -> Option<String> {
        match parse(body.as_bytes(), &LIMITS) {
            Err(ApiError::Field { param, message }) => {
                assert!(!message.is_empty());
                param
            }
            other => panic!("{body} gave {other:?}"),
        }
    }

    #[test]
    fn absent_fields_have_the_documented_defaults() {
        let request = parse(br#"{"text": "a"}"#, &LIMITS).unwrap();
        assert_eq!(request.timeout, Duration::from_secs(60));
        assert_eq!(
            request.requests,
            [GenerationRequest {
                prompt: Prompt::Text("a".into()),
                key: BatchKey::new(Options::default(), 0),
                max_new_tokens: 128,
                fit: true,
                stop: Arc::default(),
                chat_template_kwargs: Arc::default(),
            }]
        );
    }

    #[test]
    fn every_field_is_parsed() {
        let body = br#"{"text": ["a", "b"], "max_new_tokens": 9, "min_new_tokens": 2, "sampling_topk": 5,
            "sampling_topp": 0.5, "sampling_temperature": 2, "repetition_penalty": 1.5, "no_repeat_ngram_size": 3,
            "stop": ["x", "y"], "stop_token_ids": [7, 9.0], "timeout_ms": 250}"#;
        let request = parse(body, &LIMITS).unwrap();
        let options = Options {
            sampling_topk: 5,
            sampling_topp: 0.5,
            sampling_temperature: 2.0,
            repetition_penalty: 1.5,
            no_repeat_ngram_size: 3,
        };
        assert_eq!(request.timeout, Duration::from_millis(250));
        assert_eq!(request.requests.len(), 2);
        assert_eq!(request.requests[1].key, BatchKey::new(options, 2));
        assert_eq!((request.requests[1].max_new_tokens, request.requests[1].fit), (9, false));
        let stops = Stops { strings: vec!["x".to_owned(), "y".to_owned()], token_ids: vec![7, 9] };
        assert_eq!(*request.requests[1].stop, stops);
    }

    #[test]
    fn a_text_may_have_escapes() {
        let request = parse(br#"{"te\u0078t": ["plain", "a \"quoted\" line\n", "\u00e9"]}"#, &LIMITS).unwrap();
        let texts = request.requests.iter().map(|request| request.prompt.clone()).collect::<Vec<_>>();
        assert_eq!(texts, ["plain", "a \"quoted\" line\n", "\u{e9}"].map(|text| Prompt::Text(text.into())));
    }

    #[test]
    fn the_default_limit_grows_to_min_new_tokens() {
        let request = parse(br#"{"text": "a", "min_new_tokens": 300}"#, &LIMITS).unwrap();
        assert_eq!((request.requests[0].max_new_tokens, request.requests[0].fit), (300, true));
    }

    #[test]
    fn a_whole_number_may_have_a_decimal_point() {
        let request = parse(br#"{"text": "a", "max_new_tokens": 9.0, "timeout_ms": 1e3}"#, &LIMITS).unwrap();
        assert_eq!((request.requests[0].max_new_tokens, request.timeout), (9, Duration::from_secs(1)));
    }

    #[test]
    fn an_error_names_the_invalid_field() {
        for (body, name) in [
            (r"{}", "text"),
            (r#"{"text": ""}"#, "text"),
            (r#"{"text": 5}"#, "text"),
            (r#"{"text": []}"#, "text"),
            (r#"{"text": ["a", ""]}"#, "text"),
            (r#"{"text": ["a", 1]}"#, "text"),
            (r#"{"text": ["a", "a", "a", "a", "a"]}"#, "text"),
            (r#"{"text": "a", "max_new_tokens": -1}"#, "max_new_tokens"),
            (r#"{"text": "a", "max_new_tokens": 0}"#, "max_new_tokens"),
            (r#"{"text": "a", "max_new_tokens": 1.5}"#, "max_new_tokens"),
            (r#"{"text": "a", "max_new_tokens": 4294967296.0}"#, "max_new_tokens"),
            (r#"{"text": "a", "max_new_tokens": 1e300}"#, "max_new_tokens"),
            (r#"{"text": "a", "max_new_tokens": "5"}"#, "max_new_tokens"),
            (r#"{"text": "a", "max_new_tokens": 5, "min_new_tokens": 6}"#, "min_new_tokens"),
            (r#"{"text": "a", "sampling_topk": -1}"#, "sampling_topk"),
            (r#"{"text": "a", "sampling_topp": 0}"#, "sampling_topp"),
            (r#"{"text": "a", "sampling_topp": 1.01}"#, "sampling_topp"),
            (r#"{"text": "a", "sampling_temperature": 1e-7}"#, "sampling_temperature"),
            (r#"{"text": "a", "sampling_temperature": -0.5}"#, "sampling_temperature"),
            (r#"{"text": "a", "repetition_penalty": 1e39}"#, "repetition_penalty"),
            (r#"{"text": "a", "no_repeat_ngram_size": true}"#, "no_repeat_ngram_size"),
            (r#"{"text": "a", "stop": ""}"#, "stop"),
            (r#"{"text": "a", "stop": [1]}"#, "stop"),
            (r#"{"text": "a", "stop_token_ids": 7}"#, "stop_token_ids"),
            (r#"{"text": "a", "stop_token_ids": [-1]}"#, "stop_token_ids"),
            (r#"{"text": "a", "timeout_ms": 0}"#, "timeout_ms"),
            (r#"{"text": "a", "timeout_ms": 60001}"#, "timeout_ms"),
            (r#"{"text": "a", "max_tokens": 5}"#, "max_tokens"),
        ] {
            assert_eq!(param(body).as_deref(), Some(name), "{body}");
        }
        assert_eq!(param("[1]"), None);
    }

    #[test]
    fn a_body_that_is_not_json_is_reported_as_such() {
        for body in
            [&b""[..], b"{", b"text", b"{\"text\": \"\xff\"}", b"{\"text\": \"\\ud800\"}", b"{\"text\": \"\n\"}"]
        {
            assert!(matches!(parse(body, &LIMITS), Err(ApiError::NotJson(_))), "{body:?}");
        }
        let deep = "[".repeat(100_000);
        assert!(matches!(parse(deep.as_bytes(), &LIMITS), Err(ApiError::NotJson(_))));
    }
}
