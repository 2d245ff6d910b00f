//! Records a request while it is answered, for the metrics and for its line in the access log.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::header::{HeaderMap, HeaderValue};
use pillion_process::log::LogFormat;
use tokio::time::Instant;

use super::access_log::{self, Line};
use super::client_history::ClientHistory;
use super::request_id::X_REQUEST_ID;
use super::response::{self, Answer};
use super::trace::TraceParent;
use crate::api::call::Dialect;
use crate::api::error::{ApiError, failure_code, finish_reason};
use crate::domain::{Answered, Failure, GenerationRequest, ModelId, Origin, Outcome};
use crate::metrics::{Endpoint, Metrics};
use crate::numbers::as_f64;

/// The record of one request. Dropping it writes the log line. If it has no status by then, the client has gone away.
#[derive(Debug)]
pub(super) struct Record {
    metrics: Arc<Metrics>,
    log_format: LogFormat,
    client: Arc<ClientHistory>,
    endpoint: Endpoint,
    dialect: &'static Dialect,
    request_id: HeaderValue,
    trace: Option<TraceParent>,
    started: Instant,
    admitted: Option<Instant>,
    /// The model that was asked for.
    model: ModelId,
    stream: bool,
    status: Option<u16>,
    /// Why the request ended: the reason of its texts, or `several` if they differ.
    reason: Option<&'static str>,
    /// The field because of which the request was refused.
    param: Option<String>,
    texts: TextTotals,
}

/// Totals over the texts of a request.
#[derive(Debug, Default)]
struct TextTotals {
    all: usize,
    ended: usize,
    /// Time from admission until the last text left the queue.
    queued: Duration,
    /// Members of the largest batch that one of the texts was in.
    batch_size: usize,
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl Record {
    pub(super) fn new(
        metrics: Arc<Metrics>,
        log_format: LogFormat,
        client: Arc<ClientHistory>,
        endpoint: Endpoint,
        dialect: &'static Dialect,
        request_id: HeaderValue,
        headers: &HeaderMap,
    ) -> Self {
        let (trace, texts) = (TraceParent::from_headers(headers), TextTotals::default());
        let (started, admitted, model) = (Instant::now(), None, ModelId::ANY);
        let (stream, status, reason, param) = (false, None, None, None);
        Self {
            metrics,
            log_format,
            client,
            endpoint,
            dialect,
            request_id,
            trace,
            started,
            admitted,
            model,
            stream,
            status,
            reason,
            param,
            texts,
        }
    }

    /// When the request's head was complete.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// The request's id, which is ASCII.
    pub(super) fn request_id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }

    /// The request's id and trace for the worker's logs, if the request belongs to a trace.
    pub(super) fn origin(&self) -> Option<Arc<Origin>> {
        let traceparent = self.trace.as_ref()?.to_string();
        Some(Arc::new(Origin { request_id: self.request_id().to_owned(), traceparent }))
    }

    /// The client's previous answer, if it had one. From now on it counts as having none.
    pub(super) fn take_answered(&self) -> Option<Answered> {
        self.client.take_answered()
    }

    /// Number of texts.
    pub(super) fn texts(&self) -> usize {
        self.texts.all
    }

    /// Records that the request is about to be admitted.
    pub(super) fn admitted(&mut self, requests: &[GenerationRequest], stream: bool, now: Instant) {
        self.model = requests.first().map_or(ModelId::ANY, |request| request.key.target.model);
        (self.texts.all, self.stream, self.admitted) = (requests.len(), stream, Some(now));
    }

    /// Records that one of the texts has ended.
    pub(super) fn ended(&mut self, outcome: &Outcome) {
        let (texts, now) = (&mut self.texts, Instant::now());
        texts.ended += 1;
        // A client that was refused got no answer, and does not come back as one that did.
        if texts.ended == texts.all && !matches!(outcome, Err(Failure::TooLate { .. })) {
            self.client.set_answered(Answered { at: now, model: self.model });
        }
        let reason = match outcome {
            Ok(completion) => finish_reason(completion.reason),
            Err(failure) => failure_code(failure),
        };
        self.reason = Some(self.reason.filter(|&before| before != reason).map_or(reason, |_| "several"));
        let Some(admitted) = self.admitted else { return };
        if matches!(outcome, Err(Failure::Expired | Failure::NoWorker)) {
            texts.queued = now - admitted;
        }
        let Ok(completion) = outcome else { return };
        texts.prompt_tokens += u64::from(completion.prompt_tokens);
        texts.completion_tokens += u64::from(completion.completion_tokens);
        if let Some(first) = completion.first_token_at {
            self.metrics.time_to_first_token(self.endpoint).record((first - admitted).as_secs_f64());
        }
        let Some(dispatch) = completion.dispatch else { return };
        texts.queued = texts.queued.max(dispatch.first - admitted);
        texts.batch_size = texts.batch_size.max(dispatch.members);
        if completion.completion_tokens > 0 {
            let each = (now - dispatch.first).as_secs_f64() / f64::from(completion.completion_tokens);
            self.metrics.time_per_output_token(self.endpoint).record(each);
        }
    }

    /// Answers with an error, and ends the record.
    pub(super) fn refuse(mut self, error: &ApiError) -> Answer {
        self.reason = Some(error.code());
        self.param = error.param(self.dialect.fields).filter(|param| is_name(param));
        let answer = response::error(error, &self.request_id, self.dialect);
        self.close(answer)
    }

    /// Records a whole answer, and ends the record.
    pub(super) fn close(mut self, answer: Answer) -> Answer {
        self.answered(answer)
    }

    /// Records an answer whose body is still being written, and adds the request's id to its headers.
    pub(super) fn answered(&mut self, mut answer: Answer) -> Answer {
        let status = answer.status().as_u16();
        self.status = Some(status);
        self.metrics.request(self.endpoint, status);
        answer.headers_mut().insert(&X_REQUEST_ID, self.request_id.clone());
        answer
    }
}

/// Milliseconds, with microseconds as decimals.
fn millis(time: Duration) -> f64 {
    as_f64(usize::try_from(time.as_micros()).unwrap_or(usize::MAX)) / 1000.0
}

/// Whether a field's name can be logged. The name of an unknown field is the client's, and could be anything.
fn is_name(field: &str) -> bool {
    (1..=64).contains(&field.len()) && field.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.[]".contains(&byte))
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        if self.status.is_some() {
            self.metrics.request_duration(self.endpoint, self.stream).record(took.as_secs_f64());
        }
        if !access_log::is_on() {
            return;
        }
        let texts = &self.texts;
        let is_cancelled = self.status.is_none() || (self.status == Some(200) && texts.ended < texts.all);
        let line = Line {
            request_id: self.request_id(),
            trace_id: self.trace.as_ref().map(TraceParent::trace_id),
            endpoint: self.endpoint.label(),
            status: self.status,
            stream: self.stream,
            texts: texts.all,
            duration_ms: millis(took),
            queue_ms: millis(texts.queued),
            batch_size: texts.batch_size,
            prompt_tokens: texts.prompt_tokens,
            completion_tokens: texts.completion_tokens,
            reason: if is_cancelled { "cancelled" } else { self.reason.unwrap_or("none") },
            param: self.param.as_deref(),
        };
        access_log::write(self.log_format, &line, SystemTime::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_as_many_milliseconds_as_it_should() {
        assert!((millis(Duration::from_secs(86_400)) - 86_400_000.0).abs() < 1.0);
        assert!((millis(Duration::from_micros(1500)) - 1.5).abs() < 1e-9);
    }

    #[test]
    fn only_what_looks_like_a_fields_name_is_logged() {
        assert!(is_name("messages[0].content") && is_name("top_p"));
        assert!(!is_name("my secret: 7") && !is_name("a\"b") && !is_name(&"a".repeat(65)));
    }
}
