//! What the proxy counts. Every counter stands at zero from the start, so that a rate over it is right from the first
//! event on.
//!
//! The recorder belongs to one proxy and is no global, so several proxies can live in one process.

use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram, Unit};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram, with_local_recorder};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

/// Seconds: from a lone small request to the longest that a proxy waits for.
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0];
/// Seconds for which an engine is idle between two batches: a few microseconds where all goes well.
const IDLE_SECONDS: &[f64] = &[0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0];
const MEMBERS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 40.0, 48.0, 64.0, 96.0, 128.0, 256.0, 512.0];

/// The statuses that the proxy answers with; the last place counts any other.
const STATUSES: [u16; 14] = [200, 400, 401, 404, 405, 408, 413, 415, 422, 429, 500, 502, 503, 504];

/// The endpoints as labels say them. A path that is none of them is `other`, whatever the client wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are the paths")]
pub enum Endpoint {
    Generate,
    GenerateStream,
    Completions,
    ChatCompletions,
    Models,
    Livez,
    Healthz,
    Readyz,
    Metrics,
    OpenApi,
    Other,
}

impl Endpoint {
    const ALL: [Self; 11] = [
        Self::Generate,
        Self::GenerateStream,
        Self::Completions,
        Self::ChatCompletions,
        Self::Models,
        Self::Livez,
        Self::Healthz,
        Self::Readyz,
        Self::Metrics,
        Self::OpenApi,
        Self::Other,
    ];
    /// Those of them that generate: the first ones.
    const CALLS: usize = 4;

    /// Whether it is for operators.
    pub fn is_admin(self) -> bool {
        matches!(self, Self::Livez | Self::Healthz | Self::Readyz | Self::Metrics)
    }

    /// As metrics and logs say it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Generate => "/generate",
            Self::GenerateStream => "/generate_stream",
            Self::Completions => "/v1/completions",
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Models => "/v1/models",
            Self::Livez => "/livez",
            Self::Healthz => "/healthz",
            Self::Readyz => "/readyz",
            Self::Metrics => "/metrics",
            Self::OpenApi => "/openapi.json",
            Self::Other => "other",
        }
    }
}

/// What made a batch leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// It could hold no more members.
    Full,
    /// A credit was free.
    Idle,
    /// A hold for companions ended.
    Hold,
    /// It could hold no more tokens.
    Tokens,
}

/// Every series of the proxy; each field is named like its series, which `deploy/README.md` explains.
#[derive(Debug)]
#[allow(missing_docs, reason = "each field is named like its series")]
pub struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    requests: [[Counter; STATUSES.len() + 1]; Endpoint::ALL.len()],
    batches: [Counter; 4],
    /// By endpoint, and by whether the answer was streamed.
    request_duration: [[Histogram; 2]; Endpoint::CALLS],
    time_to_first_token: [Histogram; Endpoint::CALLS],
    time_per_output_token: [Histogram; Endpoint::CALLS],
    pub queue_duration: Histogram,
    pub queue_depth: Gauge,
    pub running: Gauge,
    pub batch_size: Histogram,
    pub batch_duration: Histogram,
    pub engine_busy: Histogram,
    pub engine_idle: Histogram,
    pub forced_steps: Counter,
    pub prompt_tokens: Counter,
    pub generated_tokens: Counter,
    pub rejected_queue_full: Counter,
    pub rejected_queue_bytes: Counter,
    pub rejected_deadline: Counter,
    pub rejected_draining: Counter,
    pub cancelled_queued: Counter,
    pub cancelled_running: Counter,
    pub resumed_worker_lost: Counter,
    pub resumed_yielded: Counter,
    /// Texts that gave way to others and went on later.
    pub resumed_preempted: Counter,
    pub worker_reconnects: Counter,
    /// Workers whose connection ended without a word.
    pub workers_lost_closed: Counter,
    /// Workers that were dropped for breaking the protocol.
    pub workers_lost_protocol: Counter,
    /// Workers that were dropped because their engine made no progress.
    pub workers_lost_stuck: Counter,
    pub protocol_errors: Counter,
    /// Processes of other users that dialled the workers' socket.
    pub workers_refused: Counter,
    /// Clients that were hung up on: they sent no request,
    pub connections_closed_idle: Counter,
    /// or began a request's head and did not end it,
    pub connections_closed_head: Counter,
    /// or did not read an answer.
    pub connections_closed_unread: Counter,
}

impl Metrics {
    /// All counters at zero.
    ///
    /// # Errors
    /// A histogram has no buckets; that would be a mistake in this file.
    pub fn new() -> Result<Self, BuildError> {
        let recorder = Arc::new(
            PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)?
                .set_buckets_for_metric(Matcher::Full("pillion_engine_idle_seconds".into()), IDLE_SECONDS)?
                .set_buckets_for_metric(Matcher::Suffix("batch_size".into()), MEMBERS)?
                .build_recorder(),
        );
        Ok(with_local_recorder(&*recorder, || register(recorder.clone())))
    }

    /// The text that Prometheus scrapes.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Moves what histograms have collected into their buckets. Without it their memory grows between scrapes.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// One answered request.
    pub fn request(&self, endpoint: Endpoint, status: u16) {
        let place = STATUSES.iter().position(|&known| known == status).unwrap_or(STATUSES.len());
        self.requests[endpoint as usize][place].increment(1);
    }

    /// From a request's head to the end of its answer. Of an endpoint that generates; of another, the first one's.
    pub fn request_duration(&self, endpoint: Endpoint, stream: bool) -> &Histogram {
        &self.request_duration[call(endpoint)][usize::from(stream)]
    }

    /// From a request's admission to a text's first token.
    pub fn time_to_first_token(&self, endpoint: Endpoint) -> &Histogram {
        &self.time_to_first_token[call(endpoint)]
    }

    /// From a text's leaving the queue to its end, a token.
    pub fn time_per_output_token(&self, endpoint: Endpoint) -> &Histogram {
        &self.time_per_output_token[call(endpoint)]
    }

    /// One batch that left.
    pub fn batch(&self, trigger: Trigger, members: usize) {
        self.batches[trigger as usize].increment(1);
        self.batch_size.record(count(members));
    }

    /// How many workers with this model are connected.
    pub fn workers_connected(&self, model: &str) -> Gauge {
        with_local_recorder(&*self.recorder, || gauge!("pillion_workers_connected", "model" => model.to_owned()))
    }
}

/// An endpoint's place among those that generate.
fn call(endpoint: Endpoint) -> usize {
    let place = endpoint as usize;
    if place < Endpoint::CALLS { place } else { 0 }
}

/// A count as a metric's value.
#[allow(clippy::cast_precision_loss, reason = "counts of members stay far below 2^52")]
pub fn count(n: usize) -> f64 {
    n as f64
}

/// Names and describes every series with the recorder in force.
fn register(recorder: Arc<PrometheusRecorder>) -> Metrics {
    describe();
    let requests = Endpoint::ALL.map(|endpoint| {
        std::array::from_fn(|place| {
            let code = STATUSES.get(place).map_or_else(|| "other".to_owned(), u16::to_string);
            counter!("pillion_requests_total", "endpoint" => endpoint.label(), "code" => code)
        })
    });
    let calls: [&str; Endpoint::CALLS] = std::array::from_fn(|place| Endpoint::ALL[place].label());
    gauge!("pillion_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1);
    Metrics {
        handle: recorder.handle(),
        recorder,
        requests,
        batches: ["full", "idle", "hold", "tokens"]
            .map(|trigger| counter!("pillion_batches_total", "trigger" => trigger)),
        request_duration: calls.map(|endpoint| {
            ["false", "true"].map(
                |stream| histogram!("pillion_request_duration_seconds", "endpoint" => endpoint, "stream" => stream),
            )
        }),
        time_to_first_token: calls
            .map(|endpoint| histogram!("pillion_time_to_first_token_seconds", "endpoint" => endpoint)),
        time_per_output_token: calls
            .map(|endpoint| histogram!("pillion_time_per_output_token_seconds", "endpoint" => endpoint)),
        queue_duration: histogram!("pillion_queue_duration_seconds"),
        queue_depth: gauge!("pillion_queue_depth"),
        running: gauge!("pillion_running"),
        batch_size: histogram!("pillion_batch_size"),
        batch_duration: histogram!("pillion_batch_duration_seconds"),
        engine_busy: histogram!("pillion_engine_busy_seconds"),
        engine_idle: histogram!("pillion_engine_idle_seconds"),
        forced_steps: counter!("pillion_forced_steps_total"),
        prompt_tokens: counter!("pillion_prompt_tokens_total"),
        generated_tokens: counter!("pillion_generated_tokens_total"),
        rejected_queue_full: counter!("pillion_rejected_total", "reason" => "queue_full"),
        rejected_queue_bytes: counter!("pillion_rejected_total", "reason" => "queue_bytes"),
        rejected_deadline: counter!("pillion_rejected_total", "reason" => "deadline"),
        rejected_draining: counter!("pillion_rejected_total", "reason" => "draining"),
        cancelled_queued: counter!("pillion_cancelled_total", "stage" => "queued"),
        cancelled_running: counter!("pillion_cancelled_total", "stage" => "running"),
        resumed_worker_lost: counter!("pillion_resumed_total", "reason" => "worker_lost"),
        resumed_yielded: counter!("pillion_resumed_total", "reason" => "yielded"),
        resumed_preempted: counter!("pillion_resumed_total", "reason" => "preempted"),
        worker_reconnects: counter!("pillion_worker_reconnects_total"),
        workers_lost_closed: counter!("pillion_workers_lost_total", "reason" => "closed"),
        workers_lost_protocol: counter!("pillion_workers_lost_total", "reason" => "protocol"),
        workers_lost_stuck: counter!("pillion_workers_lost_total", "reason" => "stuck"),
        protocol_errors: counter!("pillion_protocol_errors_total"),
        workers_refused: counter!("pillion_workers_refused_total"),
        connections_closed_idle: counter!("pillion_connections_closed_total", "reason" => "idle"),
        connections_closed_head: counter!("pillion_connections_closed_total", "reason" => "head"),
        connections_closed_unread: counter!("pillion_connections_closed_total", "reason" => "unread"),
    }
}

fn describe() {
    describe_counter!("pillion_requests_total", Unit::Count, "Answered requests");
    describe_counter!("pillion_batches_total", Unit::Count, "Batches by what made them leave");
    describe_gauge!("pillion_workers_connected", Unit::Count, "Workers connected");
    describe_gauge!("pillion_build_info", "The running version; always 1");
    describe_histogram!("pillion_request_duration_seconds", Unit::Seconds, "From a request's head to its answer");
    describe_histogram!(
        "pillion_queue_duration_seconds",
        Unit::Seconds,
        "Time a text waited before it left in a batch"
    );
    describe_histogram!(
        "pillion_time_to_first_token_seconds",
        Unit::Seconds,
        "From admission to the first token that the proxy saw"
    );
    describe_histogram!(
        "pillion_time_per_output_token_seconds",
        Unit::Seconds,
        "Time from leaving the queue to the end, a token"
    );
    describe_gauge!("pillion_queue_depth", Unit::Count, "Texts waiting");
    describe_gauge!("pillion_running", Unit::Count, "Texts with a worker");
    describe_histogram!("pillion_batch_size", Unit::Count, "Members of a batch as it left");
    describe_histogram!("pillion_batch_duration_seconds", Unit::Seconds, "From a batch's leaving to its end");
    describe_histogram!("pillion_engine_busy_seconds", Unit::Seconds, "Time that a batch took its engine");
    describe_histogram!(
        "pillion_engine_idle_seconds",
        Unit::Seconds,
        "Time for which the engine that took a batch had been idle before"
    );
    describe_counter!("pillion_forced_steps_total", Unit::Count, "Decode steps spent on uneven prompts");
    describe_counter!("pillion_prompt_tokens_total", Unit::Count, "Tokens of answered prompts");
    describe_counter!("pillion_generated_tokens_total", Unit::Count, "Tokens produced");
    describe_counter!("pillion_rejected_total", Unit::Count, "Requests refused at admission");
    describe_counter!("pillion_cancelled_total", Unit::Count, "Texts whose client went away");
    describe_counter!("pillion_resumed_total", Unit::Count, "Texts that went on after their attempt ended early");
    describe_counter!("pillion_worker_reconnects_total", Unit::Count, "Workers that connected after one was lost");
    describe_counter!("pillion_workers_lost_total", Unit::Count, "Workers that were lost without having said goodbye");
    describe_counter!(
        "pillion_protocol_errors_total",
        Unit::Count,
        "Connections closed because a worker broke the protocol"
    );
    describe_counter!(
        "pillion_workers_refused_total",
        Unit::Count,
        "Connections to the workers' socket from users that may not be workers"
    );
    describe_counter!(
        "pillion_connections_closed_total",
        Unit::Count,
        "Clients that were hung up on because they kept a connection for nothing"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_stands_at_zero_from_the_start() {
        let text = Metrics::new().unwrap().render();
        for line in [
            r#"pillion_requests_total{endpoint="/generate",code="200"} 0"#,
            r#"pillion_batches_total{trigger="hold"} 0"#,
            r#"pillion_rejected_total{reason="queue_full"} 0"#,
            r#"pillion_cancelled_total{stage="queued"} 0"#,
            r#"pillion_resumed_total{reason="worker_lost"} 0"#,
            r#"pillion_workers_lost_total{reason="stuck"} 0"#,
            "pillion_forced_steps_total 0",
            "pillion_protocol_errors_total 0",
            "pillion_workers_refused_total 0",
            r#"pillion_connections_closed_total{reason="idle"} 0"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in:\n{text}");
        }
        assert!(text.contains("pillion_build_info{version="));
    }

    #[test]
    fn histograms_have_buckets_and_are_no_summaries() {
        let metrics = Metrics::new().unwrap();
        metrics.queue_duration.record(0.003);
        metrics.batch(Trigger::Idle, 40);
        let text = metrics.render();
        assert!(text.contains(r#"pillion_queue_duration_seconds_bucket{le="0.005"} 1"#), "{text}");
        assert!(text.contains(r#"pillion_batch_size_bucket{le="40"} 1"#), "{text}");
    }

    #[test]
    fn an_unforeseen_status_is_counted_as_other() {
        let metrics = Metrics::new().unwrap();
        metrics.request(Endpoint::Other, 418);
        assert!(metrics.render().contains(r#"pillion_requests_total{endpoint="other",code="other"} 1"#));
    }
}
