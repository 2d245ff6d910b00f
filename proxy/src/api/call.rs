//! A parsed request, and what a dialect must provide.

use std::fmt::Debug;
use std::time::{Duration, SystemTime};

use super::error::{ApiError, FieldNames};
use crate::domain::{Completion, GenerationRequest, Outcome};
use crate::scheduler::models::Models;

/// Limits for requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The largest body, in bytes.
    pub body_bytes: usize,
    /// The size of the queue, in texts. A request with more texts can never be admitted.
    pub texts: usize,
    /// The longest timeout of a request, and the default.
    pub request_timeout: Duration,
}

/// What a dialect needs, besides the body, to parse a request.
#[derive(Debug)]
pub(crate) struct ParseContext<'a> {
    pub limits: &'a Limits,
    /// The models that workers have announced.
    pub models: &'a Models,
    pub request_id: &'a str,
    pub clock: fn() -> SystemTime,
}

/// A format for requests, answers and errors.
#[derive(Debug)]
pub(crate) struct Dialect {
    /// Parses and validates a body.
    pub parse: fn(&[u8], &ParseContext<'_>) -> Result<Call, ApiError>,
    pub fields: FieldNames,
    /// Whether an invalid field is answered with 422. Clients of the OpenAI API expect 400.
    pub has_unprocessable: bool,
}

/// A valid request.
#[derive(Debug)]
pub(crate) struct Call {
    /// One for each text.
    pub requests: Vec<GenerationRequest>,
    /// The time from admission to the deadline.
    pub timeout: Duration,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// Writes the answer.
    pub renderer: Box<dyn Renderer>,
}

/// Writes the answer to one request.
pub(crate) trait Renderer: Debug + Send {
    /// Writes the whole answer as a JSON body.
    ///
    /// # Errors
    /// All texts failed, or one failed and the dialect's format has no place for the error of a single text.
    fn whole(&self, outcomes: &[Outcome]) -> Result<Vec<u8>, ApiError>;

    /// Appends what opens a stream, before the first piece of a text.
    fn begin(&mut self, _out: &mut Vec<u8>) {}

    /// Appends the events for a piece of a text. The last piece of a text comes with its `completion`.
    fn piece(&mut self, text: usize, piece: &str, completion: Option<&Completion>, out: &mut Vec<u8>);

    /// Appends the event for a text that has failed.
    fn failed(&mut self, text: usize, error: ApiError, request_id: &str, out: &mut Vec<u8>);

    /// Appends what closes a stream, after all texts have ended.
    fn end(&mut self, _out: &mut Vec<u8>) {}
}
