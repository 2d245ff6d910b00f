//! Builds responses. No other file of the crate knows HTTP statuses.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use pillion_protocol::frame::FailureCode;
use serde::Serialize;

use crate::admission::Rejected;
use crate::api::call::Dialect;
use crate::api::error::{ApiError, ErrorBody, is_request_error};
use crate::domain::Failure;

/// The body of a response, whole or streamed.
pub(super) type AnswerBody = UnsyncBoxBody<Bytes, Infallible>;
/// A response.
pub(super) type Answer = Response<AnswerBody>;

/// The response for an error. `dialect` decides between statuses 400 and 422, and names the fields.
pub(super) fn error(error: &ApiError, request_id: &HeaderValue, dialect: &Dialect) -> Answer {
    #[derive(Serialize)]
    struct Envelope {
        error: ErrorBody,
    }
    let envelope = Envelope { error: error.body(request_id.to_str().ok(), dialect.fields) };
    // Serialising fails only for maps whose keys are not strings, and the envelope has none.
    let body = serde_json::to_vec(&envelope).unwrap_or_default();
    let mut answer = with_type(status(error, dialect), "application/json", body);
    let (name, value) = match error {
        ApiError::Unauthorised => (WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
        ApiError::Method { allow } => (ALLOW, HeaderValue::from_static(allow)),
        ApiError::Rejected(Rejected::QueueFull { retry_after } | Rejected::QueueBytes { retry_after })
        | ApiError::Failed(Failure::TooLate { retry_after, .. }) => (RETRY_AFTER, retry_after.as_secs().into()),
        // The client has waited for a worker already.
        ApiError::Failed(Failure::NoWorker) => (RETRY_AFTER, 1.into()),
        ApiError::Rejected(Rejected::Draining) | ApiError::Failed(Failure::ShutDown) | ApiError::BodyTimeout(_) => {
            (CONNECTION, HeaderValue::from_static("close"))
        }
        _ => return answer,
    };
    answer.headers_mut().insert(name, value);
    answer
}

fn status(error: &ApiError, dialect: &Dialect) -> StatusCode {
    let unprocessable =
        if dialect.has_unprocessable { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::BAD_REQUEST };
    match error {
        ApiError::NotJson(_) | ApiError::Body(_) => StatusCode::BAD_REQUEST,
        ApiError::Field { .. } | ApiError::Unsupported { .. } => unprocessable,
        ApiError::Unauthorised => StatusCode::UNAUTHORIZED,
        ApiError::NotFound { .. } | ApiError::NoModel { .. } => StatusCode::NOT_FOUND,
        ApiError::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
        ApiError::ContentType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ApiError::BodyTimeout(_) => StatusCode::REQUEST_TIMEOUT,
        ApiError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        ApiError::Rejected(Rejected::Draining) => StatusCode::SERVICE_UNAVAILABLE,
        ApiError::Rejected(_) => StatusCode::TOO_MANY_REQUESTS,
        ApiError::Failed(failure) => match failure {
            Failure::Deadline | Failure::Expired => StatusCode::GATEWAY_TIMEOUT,
            Failure::TooLate { .. } => StatusCode::TOO_MANY_REQUESTS,
            Failure::NoWorker | Failure::ShutDown => StatusCode::SERVICE_UNAVAILABLE,
            Failure::Worker { code, .. } if is_request_error(*code) => unprocessable,
            Failure::Worker { code: FailureCode::Internal, .. } | Failure::Unsendable(_) | Failure::Internal => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Failure::Worker { .. } | Failure::WorkerLost { .. } | Failure::NotResumable | Failure::ModelGone => {
                StatusCode::BAD_GATEWAY
            }
        },
    }
}

/// The response to a successful request, with a JSON body.
pub(super) fn json(body: impl Into<Bytes>) -> Answer {
    with_type(StatusCode::OK, "application/json", body)
}

/// The response to a probe: 200, or 503 with the `reason`.
pub(super) fn probe(reason: Option<&'static str>) -> Answer {
    let status = if reason.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    with_type(status, "text/plain; charset=utf-8", format!("{}\n", reason.unwrap_or("ok")))
}

/// A response to which a stream of server-sent events is added. Its headers forbid proxies on the way to cache or buffer it.
pub(super) fn event_stream() -> Answer {
    let mut answer = with_type(StatusCode::OK, "text/event-stream", Bytes::new());
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    answer.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    answer
}

/// The metrics, in version 0.0.4 of Prometheus's text format.
pub(super) fn metrics(text: String) -> Answer {
    with_type(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
}

fn with_type(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()).boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::api::generate::GENERATE;
    use crate::api::openai::CHAT_COMPLETIONS;

    #[test]
    fn every_failure_code_of_a_worker_has_a_status() {
        for (code, expected) in [
            (FailureCode::EmptyPrompt, 422),
            (FailureCode::TooManyTokens, 422),
            (FailureCode::InvalidRequest, 422),
            (FailureCode::NotResumable, 502),
            (FailureCode::Engine, 502),
            (FailureCode::Internal, 500),
            (FailureCode::Other, 502),
        ] {
            let error = ApiError::Failed(Failure::Worker { code, message: "why".into() });
            assert_eq!(status(&error, &GENERATE).as_u16(), expected, "{code:?}");
            let openai = if expected == 422 { 400 } else { expected };
            assert_eq!(status(&error, &CHAT_COMPLETIONS).as_u16(), openai, "{code:?}");
        }
    }

    #[test]
    fn a_full_queue_is_429_with_retry_after() {
        let full = ApiError::Rejected(Rejected::QueueFull { retry_after: Duration::from_secs(7) });
        let answer = error(&full, &HeaderValue::from_static("r1"), &GENERATE);
        assert_eq!(answer.status(), 429);
        assert_eq!(answer.headers()[RETRY_AFTER], "7");
    }
}
