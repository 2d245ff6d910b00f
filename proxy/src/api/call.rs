//! What every dialect turns a request into.

use std::fmt::Debug;
use std::time::{Duration, SystemTime};

use super::error::{ApiError, FieldNames};
use crate::domain::{Completion, GenerationRequest, Outcome};
use crate::scheduler::models::Models;

/// What requests are measured against.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Texts that the queue takes: a longer list can never be admitted.
    pub texts: usize,
    /// The longest that a request may take, and what it may take if it does not say.
    pub request_timeout: Duration,
}

/// What a request is read against.
#[derive(Debug)]
pub(crate) struct ParseContext<'a> {
    pub limits: &'a Limits,
    /// The models that workers have announced.
    pub models: &'a Models,
    pub request_id: &'a str,
    pub now: SystemTime,
}

/// A family of endpoints with one way to write requests, answers and errors.
#[derive(Debug)]
pub(crate) struct Dialect {
    /// Reads and checks a body.
    pub parse: fn(&[u8], &ParseContext<'_>) -> Result<Call, ApiError>,
    pub fields: FieldNames,
    /// Whether a wrong field is answered with 422. OpenAI's clients know only 400.
    pub has_unprocessable: bool,
}

/// A valid request.
#[derive(Debug)]
pub(crate) struct Call {
    /// One per text.
    pub requests: Vec<GenerationRequest>,
    /// How long it may take.
    pub timeout: Duration,
    /// Whether the answer is sent as it is made.
    pub stream: bool,
    /// How the answer is written.
    pub renderer: Box<dyn Renderer>,
}

/// Writes the answers of one request.
pub(crate) trait Renderer: Debug + Send {
    /// The whole answer: a JSON body.
    ///
    /// # Errors
    /// The answer is an error, so that no failure hides behind a 200.
    fn whole(&self, outcomes: &[Outcome]) -> Result<Vec<u8>, ApiError>;

    /// Appends what stands before the first event of a stream.
    fn begin(&mut self, _out: &mut Vec<u8>) {}

    /// Appends the event for a new piece of a text, with its completion if that was the last.
    fn piece(&mut self, text: usize, piece: &str, completion: Option<&Completion>, out: &mut Vec<u8>);

    /// Appends the event for a text that has failed.
    fn failed(&mut self, text: usize, error: ApiError, request_id: &str, out: &mut Vec<u8>);

    /// Appends what stands after the last event.
    fn end(&mut self, _out: &mut Vec<u8>) {}
}
