//! What is remembered of a request while it is answered: for the metrics, and for its one line in the log.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::header::{HeaderMap, HeaderValue};
use tokio::time::Instant;

use super::Answer;
use super::log::{Line, RequestLog};
use super::request_id::X_REQUEST_ID;
use super::response::{Api, ApiError, failure_code, reason_name};
use super::trace::TraceParent;
use crate::job::{End, Origin};
use crate::metrics::{Endpoint, Metrics};

/// One request's. Dropping it writes its line; one that was not [closed](Self::close) until then was given up by its
/// client.
#[derive(Debug)]
pub(super) struct Record {
    metrics: Arc<Metrics>,
    log: Arc<RequestLog>,
    endpoint: Endpoint,
    request_id: HeaderValue,
    trace: Option<TraceParent>,
    started: Instant,
    admitted: Option<Instant>,
    texts: usize,
    stream: bool,
    status: Option<u16>,
    /// Texts that have ended.
    ended: usize,
    /// Until the last text left the queue.
    queued: Duration,
    /// Members of the largest batch that one of its texts rode in.
    batch_size: usize,
    prompt_tokens: u64,
    completion_tokens: u64,
    /// Why it ended: as its texts did, if all did alike.
    reason: Option<&'static str>,
}

impl Record {
    pub(super) fn new(
        metrics: Arc<Metrics>,
        log: Arc<RequestLog>,
        endpoint: Endpoint,
        request_id: HeaderValue,
        headers: &HeaderMap,
        started: Instant,
    ) -> Self {
        Self {
            metrics,
            log,
            endpoint,
            request_id,
            trace: TraceParent::of(headers),
            started,
            admitted: None,
            texts: 0,
            stream: false,
            status: None,
            ended: 0,
            queued: Duration::ZERO,
            batch_size: 0,
            prompt_tokens: 0,
            completion_tokens: 0,
            reason: None,
        }
    }

    /// When its head had come.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// Its number, which is ASCII.
    pub(super) fn request_id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }

    /// What it is called in logs.
    pub(super) fn origin(&self) -> Option<Arc<Origin>> {
        let traceparent = self.trace.as_ref()?.to_string();
        Some(Arc::new(Origin { request_id: self.request_id().to_owned(), traceparent }))
    }

    /// How many texts it has.
    pub(super) fn texts(&self) -> usize {
        self.texts
    }

    /// It is about to be admitted, with so many texts.
    pub(super) fn admitted(&mut self, texts: usize, stream: bool, now: Instant) {
        (self.texts, self.stream, self.admitted) = (texts, stream, Some(now));
    }

    /// One of its texts has ended.
    pub(super) fn heard(&mut self, end: &End) {
        self.ended += 1;
        let reason = match end {
            Ok(completion) => reason_name(completion.reason),
            Err(failure) => failure_code(failure),
        };
        self.reason = Some(self.reason.filter(|&before| before != reason).map_or(reason, |_| "several"));
        let (Ok(completion), Some(admitted)) = (end, self.admitted) else { return };
        self.prompt_tokens += u64::from(completion.prompt_tokens);
        self.completion_tokens += u64::from(completion.completion_tokens);
        let left = completion.boarding.map(|boarding| boarding.first);
        if let Some(boarding) = completion.boarding {
            self.queued = self.queued.max(boarding.first - admitted);
            self.batch_size = self.batch_size.max(boarding.members);
        }
        if let Some(first) = completion.first_token_at {
            self.metrics.time_to_first_token(self.endpoint).record((first - admitted).as_secs_f64());
        }
        if let Some(left) = left
            && completion.completion_tokens > 0
        {
            let each = left.elapsed().as_secs_f64() / f64::from(completion.completion_tokens);
            self.metrics.time_per_output_token(self.endpoint).record(each);
        }
    }

    /// It is answered by an error.
    pub(super) fn refuse(mut self, error: ApiError, api: Api) -> Answer {
        self.reason = Some(error.code());
        let answer = error.into_answer(&self.request_id, api);
        self.close(answer)
    }

    /// It is answered, and with that over.
    pub(super) fn close(mut self, answer: Answer) -> Answer {
        self.answered(answer)
    }

    /// It is answered, and goes on while the answer's body is written.
    pub(super) fn answered(&mut self, mut answer: Answer) -> Answer {
        let status = answer.status().as_u16();
        self.status = Some(status);
        self.metrics.request(self.endpoint, status);
        answer.headers_mut().insert(&X_REQUEST_ID, self.request_id.clone());
        answer
    }
}

/// To the microsecond.
fn millis(time: Duration) -> f64 {
    f64::from(u32::try_from(time.as_micros()).unwrap_or(u32::MAX)) / 1000.0
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        if self.status.is_some() {
            self.metrics.request_duration(self.endpoint, self.stream).record(took.as_secs_f64());
        }
        if !RequestLog::is_on() {
            return;
        }
        let gone = self.status.is_none() || (self.status == Some(200) && self.ended < self.texts);
        let line = Line {
            request_id: self.request_id(),
            trace_id: self.trace.as_ref().map(TraceParent::trace_id),
            endpoint: self.endpoint.label(),
            status: self.status,
            stream: self.stream,
            texts: self.texts,
            duration_ms: millis(took),
            queue_ms: millis(self.queued),
            batch_size: self.batch_size,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            reason: if gone { "cancelled" } else { self.reason.unwrap_or("none") },
        };
        self.log.take(&line, SystemTime::now());
    }
}
