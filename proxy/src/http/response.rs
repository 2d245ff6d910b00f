//! Answers. The only file that knows a status code.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use pillion_protocol::frame::{FailureCode, FinishReason};
use serde::Serialize;

use super::Answer;
use super::events::AnswerBody;
use crate::admission::Rejected;
use crate::job::Failure;

/// Whose words and statuses an answer is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    /// `/generate`, and whatever is not named here.
    Generate,
    /// `/generate_stream`.
    GenerateStream,
    /// `/v1/completions`.
    Completions,
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/models`.
    Models,
}

impl Api {
    /// The fields in which the prompt and the most new tokens are told.
    fn fields(self) -> (&'static str, &'static str) {
        match self {
            Self::Generate | Self::GenerateStream => ("text", "max_new_tokens"),
            Self::Completions => ("prompt", "max_tokens"),
            Self::Chat | Self::Models => ("messages", "max_completion_tokens"),
        }
    }

    /// What a wrong field is answered with: OpenAI's clients know no 422.
    fn unprocessable(self) -> StatusCode {
        match self {
            Self::Generate | Self::GenerateStream => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Completions | Self::Chat | Self::Models => StatusCode::BAD_REQUEST,
        }
    }
}

/// Whatever is wrong with a request, or with its answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ApiError {
    /// The body is not JSON.
    #[error("the body is not valid JSON: {0}")]
    NotJson(String),
    /// The body ended early, or was framed wrongly.
    #[error("the body could not be read: {0}")]
    Body(String),
    /// A field is wrong.
    #[error("{message}")]
    Field {
        /// The field, where one can be named.
        param: Option<String>,
        /// What was wrong and what is allowed.
        message: String,
    },
    /// A field asks for what cannot be done here.
    #[error("{param} is not supported: {why}")]
    Unsupported {
        /// The field.
        param: String,
        /// Why not.
        why: String,
    },
    /// No such model.
    #[error("there is no model {name:?}; GET /v1/models lists what there is")]
    NoModel {
        /// Its name.
        name: String,
    },
    /// It brings no key, or a wrong one.
    #[error("an API key is needed: Authorization: Bearer KEY")]
    Unauthorised,
    /// No such path.
    #[error("there is nothing at {path}")]
    NotFound {
        /// The path.
        path: String,
    },
    /// The path takes other methods.
    #[error("this path takes {allow}")]
    Method {
        /// Those it takes.
        allow: &'static str,
    },
    /// The body is said to be something else than JSON.
    #[error("the body must be application/json, not {0}")]
    ContentType(String),
    /// The body came too slowly.
    #[error("the body did not arrive within {0:?}")]
    BodyTimeout(Duration),
    /// The body is too large.
    #[error("the body is larger than {limit} bytes")]
    TooLarge {
        /// The most bytes allowed.
        limit: usize,
    },
    /// It was not admitted.
    #[error("{0}")]
    Rejected(#[from] Rejected),
    /// It was admitted and has no answer.
    #[error("{0}")]
    Failed(#[from] Failure),
}

/// What of an error reaches the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ErrorBody {
    message: String,
    r#type: &'static str,
    code: &'static str,
    param: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
}

impl ApiError {
    fn status(&self, api: Api) -> StatusCode {
        match self {
            Self::NotJson(_) | Self::Body(_) => StatusCode::BAD_REQUEST,
            Self::Field { .. } | Self::Unsupported { .. } => api.unprocessable(),
            Self::Unauthorised => StatusCode::UNAUTHORIZED,
            Self::NotFound { .. } | Self::NoModel { .. } => StatusCode::NOT_FOUND,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::ContentType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTimeout(_) => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Rejected(Rejected::Draining) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Rejected(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Failed(failure) => failure_status(failure, api),
        }
    }

    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::NotJson(_) => "not_json",
            Self::Body(_) => "unreadable_body",
            Self::Field { .. } => "invalid_field",
            Self::Unsupported { .. } => "unsupported",
            Self::NoModel { .. } => "model_not_found",
            Self::Unauthorised => "invalid_api_key",
            Self::NotFound { .. } => "not_found",
            Self::Method { .. } => "method_not_allowed",
            Self::ContentType(_) => "unsupported_content_type",
            Self::BodyTimeout(_) => "body_timeout",
            Self::TooLarge { .. } => "body_too_large",
            Self::Rejected(Rejected::QueueFull { .. }) => "queue_full",
            Self::Rejected(Rejected::QueueBytes { .. }) => "queue_bytes_full",
            Self::Rejected(Rejected::Draining) => "draining",
            Self::Failed(failure) => failure_code(failure),
        }
    }

    fn param(&self, api: Api) -> Option<String> {
        match self {
            Self::Field { param, .. } => param.clone(),
            Self::Unsupported { param, .. } => Some(param.clone()),
            Self::NoModel { .. } => Some("model".into()),
            Self::Failed(Failure::Worker { code, .. }) => match code {
                FailureCode::EmptyPrompt => Some(api.fields().0.into()),
                FailureCode::TooManyTokens => Some(api.fields().1.into()),
                _ => None,
            },
            _ => None,
        }
    }

    /// The error as a client reads it.
    pub(super) fn body(&self, request_id: Option<&str>, api: Api) -> ErrorBody {
        let status = self.status(api);
        let kind = if status.is_server_error() {
            "server_error"
        } else if status == StatusCode::UNAUTHORIZED {
            "authentication_error"
        } else if status == StatusCode::TOO_MANY_REQUESTS {
            "rate_limit_error"
        } else {
            "invalid_request_error"
        };
        let request_id = request_id.map(str::to_owned);
        ErrorBody { message: self.to_string(), r#type: kind, code: self.code(), param: self.param(api), request_id }
    }

    /// The error as an answer.
    pub(super) fn into_answer(self, request_id: &HeaderValue, api: Api) -> Answer {
        #[derive(Serialize)]
        struct Envelope {
            error: ErrorBody,
        }
        let mut answer = json(self.status(api), &Envelope { error: self.body(request_id.to_str().ok(), api) });
        let headers = answer.headers_mut();
        match &self {
            Self::Unauthorised => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::Method { allow } => {
                headers.insert(ALLOW, HeaderValue::from_static(allow));
            }
            Self::Rejected(Rejected::QueueFull { retry_after } | Rejected::QueueBytes { retry_after })
            | Self::Failed(Failure::TooLate { retry_after, .. }) => {
                // In whole seconds, and not too early.
                let seconds = retry_after.as_millis().div_ceil(1000).clamp(1, 60);
                headers.insert(RETRY_AFTER, HeaderValue::from(u64::try_from(seconds).unwrap_or(60)));
            }
            Self::Rejected(Rejected::Draining) | Self::BodyTimeout(_) => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        answer
    }
}

fn failure_status(failure: &Failure, api: Api) -> StatusCode {
    match failure {
        Failure::Deadline => StatusCode::GATEWAY_TIMEOUT,
        Failure::TooLate { .. } => StatusCode::TOO_MANY_REQUESTS,
        Failure::NoWorker => StatusCode::SERVICE_UNAVAILABLE,
        Failure::WorkerLost { .. } | Failure::NotResumable | Failure::ModelGone => StatusCode::BAD_GATEWAY,
        Failure::Worker { code, .. } => match code {
            FailureCode::EmptyPrompt | FailureCode::TooManyTokens | FailureCode::InvalidRequest => api.unprocessable(),
            FailureCode::NotResumable | FailureCode::Engine | FailureCode::Other => StatusCode::BAD_GATEWAY,
            FailureCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        },
        Failure::Unsendable(_) | Failure::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// How an answer ended, in the words of `/generate`.
pub(super) fn reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Deadline => "deadline",
        FinishReason::Cancelled => "cancelled",
    }
}

/// Why a text has no answer, for programs.
pub(super) fn failure_code(failure: &Failure) -> &'static str {
    match failure {
        Failure::Deadline => "deadline",
        Failure::TooLate { .. } => "deadline_out_of_reach",
        Failure::NoWorker => "no_worker",
        Failure::WorkerLost { .. } => "worker_lost",
        Failure::NotResumable => "not_resumable",
        Failure::ModelGone => "model_gone",
        Failure::Worker { code, .. } => match code {
            FailureCode::EmptyPrompt => "empty_prompt",
            FailureCode::TooManyTokens => "too_many_tokens",
            FailureCode::InvalidRequest => "invalid_for_model",
            FailureCode::NotResumable | FailureCode::Engine | FailureCode::Other => "worker_failed",
            FailureCode::Internal => "internal",
        },
        Failure::Unsendable(_) | Failure::Internal => "internal",
    }
}

/// `value` as JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    // The types that are written here have no maps with other keys than strings, so writing them cannot fail.
    let body = serde_json::to_vec(value).unwrap_or_default();
    with_type(status, "application/json", body.into())
}

/// `value` as JSON, for a request that went well.
pub(super) fn ok(value: &impl Serialize) -> Answer {
    json(StatusCode::OK, value)
}

/// JSON that is written already, for a request that went well.
pub(super) fn ok_raw(body: Vec<u8>) -> Answer {
    with_type(StatusCode::OK, "application/json", body.into())
}

/// A probe's answer: ready or alive, or not and why.
pub(super) fn probe(fault: Option<&'static str>) -> Answer {
    let status = if fault.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    with_type(status, "text/plain; charset=utf-8", format!("{}\n", fault.unwrap_or("ok")).into())
}

/// The head of a stream of events, whose body is still to come. Nobody on the way is to keep it, or to collect it first.
pub(super) fn event_stream() -> Answer {
    let mut answer = with_type(StatusCode::OK, "text/event-stream", Bytes::new());
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    answer.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    answer
}

/// The metrics, in the version of Prometheus's text format that its scraper names.
pub(super) fn metrics(text: String) -> Answer {
    with_type(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text.into())
}

/// The API's own description.
pub(super) fn description(text: &Bytes) -> Answer {
    with_type(StatusCode::OK, "application/json", text.clone())
}

fn with_type(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(AnswerBody::Whole(Full::new(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_failure_codes_reach_no_client_unmapped() {
        for (code, status) in [
            (FailureCode::EmptyPrompt, 422),
            (FailureCode::TooManyTokens, 422),
            (FailureCode::InvalidRequest, 422),
            (FailureCode::NotResumable, 502),
            (FailureCode::Engine, 502),
            (FailureCode::Internal, 500),
            (FailureCode::Other, 502),
        ] {
            let error = ApiError::Failed(Failure::Worker { code, message: "why".into() });
            assert_eq!(error.status(Api::Generate).as_u16(), status, "{code:?}");
            let theirs = if status == 422 { 400 } else { status };
            assert_eq!(error.status(Api::Chat).as_u16(), theirs, "{code:?}");
        }
    }

    #[test]
    fn an_error_says_what_where_and_which_request() {
        let error = ApiError::Field { param: Some("stop".into()), message: "no".into() };
        let body = serde_json::to_value(error.body(Some("r1"), Api::Generate)).unwrap();
        let expected = serde_json::json!({
            "message": "no", "type": "invalid_request_error", "code": "invalid_field", "param": "stop",
            "request_id": "r1"
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let error = ApiError::Rejected(Rejected::QueueFull { retry_after: Duration::from_secs(7) });
        let answer = error.into_answer(&HeaderValue::from_static("r1"), Api::Generate);
        assert_eq!(answer.status(), 429);
        assert_eq!(answer.headers()[RETRY_AFTER], "7");
    }
}
