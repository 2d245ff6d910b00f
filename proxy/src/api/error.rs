//! The errors that clients get, with their messages, codes and types. `http` chooses the status of each.

use std::time::Duration;

use pillion_protocol::frame::{FailureCode, FinishReason};
use serde::Serialize;

use crate::admission::Rejected;
use crate::domain::Failure;

/// A dialect's field names for the prompt and the most new tokens. Errors from a worker name these fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FieldNames {
    pub prompt: &'static str,
    pub max_tokens: &'static str,
}

/// Why a request was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("the body is not valid JSON: {0}")]
    NotJson(String),
    /// The body ended early, or its framing is invalid.
    #[error("the body could not be read: {0}")]
    Body(String),
    /// A field is invalid. The message says why, and what is allowed.
    #[error("{message}")]
    Field { param: Option<String>, message: String },
    /// A field asks for something that Pillion does not support.
    #[error("{param} is not supported: {why}")]
    Unsupported { param: String, why: String },
    #[error("there is no model {name:?}; GET /v1/models lists the models")]
    NoModel { name: String },
    #[error("a valid API key is required: Authorization: Bearer KEY")]
    Unauthorised,
    #[error("there is no endpoint at {path}")]
    NotFound { path: String },
    #[error("the method is not allowed: this path accepts {allow}")]
    Method { allow: &'static str },
    #[error("the content type must be application/json, not {0}")]
    ContentType(String),
    #[error("the body did not arrive within {0:?}")]
    BodyTimeout(Duration),
    #[error("the body is larger than {limit} bytes")]
    TooLarge { limit: usize },
    /// The request was not admitted.
    #[error("{0}")]
    Rejected(#[from] Rejected),
    /// The request was admitted, but there is no answer.
    #[error("{0}")]
    Failed(#[from] Failure),
}

/// The error object in a response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ErrorBody {
    message: String,
    r#type: &'static str,
    code: &'static str,
    param: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
}

impl ApiError {
    /// The error's code, for programs, and its type, as the OpenAI API names it.
    fn kind(&self) -> (&'static str, &'static str) {
        const REQUEST: &str = "invalid_request_error";
        const LIMIT: &str = "rate_limit_error";
        match self {
            Self::NotJson(_) => ("not_json", REQUEST),
            Self::Body(_) => ("unreadable_body", REQUEST),
            Self::Field { .. } => ("invalid_field", REQUEST),
            Self::Unsupported { .. } => ("unsupported", REQUEST),
            Self::NoModel { .. } => ("model_not_found", REQUEST),
            Self::Unauthorised => ("invalid_api_key", "authentication_error"),
            Self::NotFound { .. } => ("not_found", REQUEST),
            Self::Method { .. } => ("method_not_allowed", REQUEST),
            Self::ContentType(_) => ("unsupported_content_type", REQUEST),
            Self::BodyTimeout(_) => ("body_timeout", REQUEST),
            Self::TooLarge { .. } => ("body_too_large", REQUEST),
            Self::Rejected(Rejected::QueueFull { .. }) => ("queue_full", LIMIT),
            Self::Rejected(Rejected::QueueBytes { .. }) => ("queue_bytes_full", LIMIT),
            Self::Rejected(Rejected::Draining) => ("draining", "server_error"),
            Self::Failed(failure) => match failure {
                Failure::TooLate { .. } => (failure_code(failure), LIMIT),
                Failure::Worker { code, .. } if is_request_error(*code) => (failure_code(failure), REQUEST),
                _ => (failure_code(failure), "server_error"),
            },
        }
    }

    /// The error's code, for programs.
    pub(crate) fn code(&self) -> &'static str {
        self.kind().0
    }

    /// The field that is the cause, if there is one.
    pub(crate) fn param(&self, fields: FieldNames) -> Option<String> {
        match self {
            Self::Field { param, .. } => param.clone(),
            Self::Unsupported { param, .. } => Some(param.clone()),
            Self::NoModel { .. } => Some("model".into()),
            Self::Failed(Failure::Worker { code: FailureCode::EmptyPrompt, .. }) => Some(fields.prompt.into()),
            Self::Failed(Failure::Worker { code: FailureCode::TooManyTokens, .. }) => Some(fields.max_tokens.into()),
            _ => None,
        }
    }

    /// The error object for a response.
    pub(crate) fn body(&self, request_id: Option<&str>, fields: FieldNames) -> ErrorBody {
        let (code, r#type) = self.kind();
        let (param, request_id) = (self.param(fields), request_id.map(str::to_owned));
        ErrorBody { message: self.to_string(), r#type, code, param, request_id }
    }
}

/// Whether a worker's failure code means that the request is invalid, rather than that the worker failed.
pub(crate) fn is_request_error(code: FailureCode) -> bool {
    matches!(code, FailureCode::EmptyPrompt | FailureCode::TooManyTokens | FailureCode::InvalidRequest)
}

/// The `finish_reason` of `/generate` and of the access log.
pub(crate) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Deadline => "deadline",
        FinishReason::Cancelled => "cancelled",
    }
}

/// The failure's code, for programs.
pub(crate) fn failure_code(failure: &Failure) -> &'static str {
    match failure {
        Failure::Deadline | Failure::Expired => "deadline",
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
        Failure::ShutDown => "draining",
        Failure::Unsendable(_) | Failure::Internal => "internal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_a_message_a_type_a_code_a_param_and_a_request_id() {
        let fields = FieldNames { prompt: "text", max_tokens: "max_new_tokens" };
        let error = ApiError::Field { param: Some("stop".into()), message: "no".into() };
        let body = serde_json::to_value(error.body(Some("r1"), fields)).unwrap();
        let expected = serde_json::json!({
            "message": "no", "type": "invalid_request_error", "code": "invalid_field", "param": "stop",
            "request_id": "r1"
        });
        assert_eq!(body, expected);
        let worker = |code| ApiError::Failed(Failure::Worker { code, message: "no".into() }).body(None, fields);
        assert_eq!(worker(FailureCode::EmptyPrompt).param.as_deref(), Some("text"));
        assert_eq!(worker(FailureCode::TooManyTokens).param.as_deref(), Some("max_new_tokens"));
        assert_eq!(worker(FailureCode::TooManyTokens).r#type, "invalid_request_error");
        assert_eq!(worker(FailureCode::Engine).r#type, "server_error");
    }
}
