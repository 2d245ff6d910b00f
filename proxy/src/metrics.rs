//! The proxy's metrics. Every counter exists with the value 0 from the start, so that a rate over it is right from the first
//! event.
//!
//! Each proxy has a recorder of its own instead of a global one, so several proxies can run in one process.

use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram, with_local_recorder};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use pillion_process::log;

use crate::numbers::as_f64;

/// Buckets for durations, in seconds: from a small request that is alone to twice the default timeout.
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0];
/// Buckets for an engine's idle time between two batches, in seconds. Under load it is some microseconds.
const IDLE_SECONDS: &[f64] = &[0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0];
const MEMBERS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 40.0, 48.0, 64.0, 96.0, 128.0, 256.0, 512.0];

/// The statuses that the proxy answers with. Any other status is counted as `other`.
const STATUSES: [u16; 14] = [200, 400, 401, 404, 405, 408, 413, 415, 422, 429, 500, 502, 503, 504];

/// The endpoints, as labels name them. Every unknown path is `other`, so that clients cannot create labels.
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
    /// All endpoints, in the order of the enum, with their paths, which are their labels.
    const ALL: [(Self, &'static str); 11] = [
        (Self::Generate, "/generate"),
        (Self::GenerateStream, "/generate_stream"),
        (Self::Completions, "/v1/completions"),
        (Self::ChatCompletions, "/v1/chat/completions"),
        (Self::Models, "/v1/models"),
        (Self::Livez, "/livez"),
        (Self::Healthz, "/healthz"),
        (Self::Readyz, "/readyz"),
        (Self::Metrics, "/metrics"),
        (Self::OpenApi, "/openapi.json"),
        (Self::Other, "other"),
    ];
    /// Number of endpoints that generate text, which are the first ones.
    const GENERATING: usize = 4;

    /// The endpoint at a path. The path of a single model belongs to `Models` too.
    pub fn at(path: &str) -> Self {
        let is_at = |(_, known): &&(Self, &str)| *known == path;
        match Self::ALL.iter().find(is_at) {
            Some((endpoint, _)) => *endpoint,
            None if path.starts_with("/v1/models/") => Self::Models,
            None => Self::Other,
        }
    }

    /// Whether the endpoint is a probe or the metrics.
    pub fn is_admin(self) -> bool {
        matches!(self, Self::Livez | Self::Healthz | Self::Readyz | Self::Metrics)
    }

    /// The endpoint's name in metrics and logs.
    pub fn label(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// The reason a batch left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// The batch could hold no more members.
    Full,
    /// A credit was free.
    Idle,
    /// A hold for more members ended.
    Hold,
    /// The batch could hold no more tokens.
    Tokens,
}

/// Declares the series whose labels are fixed. An entry has a field, a name, a label with its value (if any), and a help
/// text, which series with the same name share.
macro_rules! series {
    (
        counters { $($counter:ident $counter_name:literal $($key:literal = $value:literal)? $(: $counter_help:literal)?;)* }
        gauges { $($gauge:ident $gauge_name:literal: $gauge_help:literal;)* }
        histograms { $($histogram:ident $histogram_name:literal: $histogram_help:literal;)* }
    ) => {
        /// The series of the proxy. Each field is named like its series, which `deploy/README.md` explains.
        #[derive(Debug)]
        #[allow(missing_docs, reason = "each field is named like its series")]
        pub struct Metrics {
            recorder: Arc<PrometheusRecorder>,
            handle: PrometheusHandle,
            requests: [[Counter; STATUSES.len() + 1]; Endpoint::ALL.len()],
            batches: [Counter; 4],
            /// By endpoint, and by whether the answer was streamed.
            request_duration: [[Histogram; 2]; Endpoint::GENERATING],
            time_to_first_token: [Histogram; Endpoint::GENERATING],
            time_per_output_token: [Histogram; Endpoint::GENERATING],
            $(pub $counter: Counter,)*
            $(pub $gauge: Gauge,)*
            $(pub $histogram: Histogram,)*
        }

        /// Registers and describes every series with the current recorder.
        fn register(recorder: Arc<PrometheusRecorder>) -> Metrics {
            describe_labelled();
            $($(describe_counter!($counter_name, $counter_help);)?)*
            $(describe_gauge!($gauge_name, $gauge_help);)*
            $(describe_histogram!($histogram_name, $histogram_help);)*
            gauge!("pillion_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1);
            Metrics {
                handle: recorder.handle(),
                recorder,
                requests: Endpoint::ALL.map(|(_, endpoint)| requests(endpoint)),
                batches: ["full", "idle", "hold", "tokens"]
                    .map(|trigger| counter!("pillion_batches_total", "trigger" => trigger)),
                request_duration: std::array::from_fn(|index| ["false", "true"].map(|stream| {
                    let endpoint = Endpoint::ALL[index].1;
                    histogram!("pillion_request_duration_seconds", "endpoint" => endpoint, "stream" => stream)
                })),
                time_to_first_token: by_endpoint("pillion_time_to_first_token_seconds"),
                time_per_output_token: by_endpoint("pillion_time_per_output_token_seconds"),
                $($counter: counter!($counter_name $(, $key => $value)?),)*
                $($gauge: gauge!($gauge_name),)*
                $($histogram: histogram!($histogram_name),)*
            }
        }
    };
}

series! {
    counters {
        forced_steps "pillion_forced_steps_total": "Decode steps spent on prompts of uneven length";
        prompt_tokens "pillion_prompt_tokens_total": "Tokens of answered prompts";
        generated_tokens "pillion_generated_tokens_total": "Tokens of answers";
        rejected_queue_full "pillion_rejected_total" "reason" = "queue_full": "Refused requests";
        rejected_queue_bytes "pillion_rejected_total" "reason" = "queue_bytes";
        rejected_deadline "pillion_rejected_total" "reason" = "deadline";
        rejected_draining "pillion_rejected_total" "reason" = "draining";
        cancelled_queued "pillion_cancelled_total" "stage" = "queued": "Texts whose client went away";
        cancelled_running "pillion_cancelled_total" "stage" = "running";
        resumed_worker_lost "pillion_resumed_total" "reason" = "worker_lost":
            "Texts that continued after an attempt ended early";
        resumed_yielded "pillion_resumed_total" "reason" = "yielded";
        resumed_preempted "pillion_resumed_total" "reason" = "preempted";
        worker_reconnects "pillion_worker_reconnects_total": "Workers that connected after one was lost";
        workers_lost_closed "pillion_workers_lost_total" "reason" = "closed":
            "Workers lost without a goodbye";
        workers_lost_protocol "pillion_workers_lost_total" "reason" = "protocol";
        workers_lost_stuck "pillion_workers_lost_total" "reason" = "stuck";
        workers_lost_internal "pillion_workers_lost_total" "reason" = "internal";
        protocol_errors "pillion_protocol_errors_total": "Connections closed because a worker broke the protocol";
        log_lines_lost "pillion_log_lines_lost_total": "Log lines lost because nobody read standard error";
        workers_refused "pillion_workers_refused_total":
            "Connections to the workers' socket from users that are not allowed";
        connections_closed_idle "pillion_connections_closed_total" "reason" = "idle":
            "Client connections closed because no request came, a head was not completed, or an answer was not read";
        connections_closed_head "pillion_connections_closed_total" "reason" = "head";
        connections_closed_unread "pillion_connections_closed_total" "reason" = "unread";
    }
    gauges {
        queue_depth "pillion_queue_depth": "Texts that wait";
        running "pillion_running": "Texts that a worker has";
    }
    histograms {
        queue_duration "pillion_queue_duration_seconds": "Time that a text waited";
        batch_size "pillion_batch_size": "Members of a batch when it leaves";
        batch_duration "pillion_batch_duration_seconds": "Time from when a batch leaves to its end";
        engine_busy "pillion_engine_busy_seconds": "Engine time of each batch";
        engine_idle "pillion_engine_idle_seconds": "Engine idle time before each batch";
    }
}

fn describe_labelled() {
    describe_counter!("pillion_requests_total", "Answered requests");
    describe_counter!("pillion_batches_total", "Batches, by the reason they left");
    describe_gauge!("pillion_workers_connected", "Connected workers");
    describe_gauge!("pillion_build_info", "The running version; always 1");
    describe_histogram!("pillion_request_duration_seconds", "Time from a request's head to the end of its answer");
    describe_histogram!("pillion_time_to_first_token_seconds", "Time from admission to the first token");
    describe_histogram!("pillion_time_per_output_token_seconds", "Time from leaving the queue to the end, per token");
}

/// The counters of an endpoint's requests, by status.
fn requests(endpoint: &'static str) -> [Counter; STATUSES.len() + 1] {
    std::array::from_fn(|index| {
        let code = STATUSES.get(index).map_or_else(|| "other".to_owned(), u16::to_string);
        counter!("pillion_requests_total", "endpoint" => endpoint, "code" => code)
    })
}

/// A histogram for each endpoint that generates text.
fn by_endpoint(name: &'static str) -> [Histogram; Endpoint::GENERATING] {
    std::array::from_fn(|index| histogram!(name, "endpoint" => Endpoint::ALL[index].1))
}

impl Metrics {
    /// Registers all series. Counters begin at 0.
    ///
    /// # Errors
    /// A histogram has no buckets, which would be a bug in this file.
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

    /// All series in Prometheus's text format.
    pub fn render(&self) -> String {
        self.log_lines_lost.absolute(log::lost());
        self.handle.render()
    }

    /// Moves the samples of histograms into their buckets. Without this, memory grows between scrapes.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// Counts an answered request.
    pub fn request(&self, endpoint: Endpoint, status: u16) {
        let index = STATUSES.iter().position(|&known| known == status).unwrap_or(STATUSES.len());
        self.requests[endpoint as usize][index].increment(1);
    }

    /// The histogram of times from a request's head to the end of its answer, for an endpoint that generates text.
    pub fn request_duration(&self, endpoint: Endpoint, stream: bool) -> &Histogram {
        &self.request_duration[generating(endpoint)][usize::from(stream)]
    }

    /// The histogram of times from a request's admission to a text's first token.
    pub fn time_to_first_token(&self, endpoint: Endpoint) -> &Histogram {
        &self.time_to_first_token[generating(endpoint)]
    }

    /// The histogram of times from when a text leaves the queue to its end, divided by its tokens.
    pub fn time_per_output_token(&self, endpoint: Endpoint) -> &Histogram {
        &self.time_per_output_token[generating(endpoint)]
    }

    /// Counts a batch that left.
    pub fn batch(&self, trigger: Trigger, members: usize) {
        self.batches[trigger as usize].increment(1);
        self.batch_size.record(as_f64(members));
    }

    /// The gauge of connected workers with this model.
    pub fn workers_connected(&self, model: &str) -> Gauge {
        with_local_recorder(&*self.recorder, || gauge!("pillion_workers_connected", "model" => model.to_owned()))
    }
}

/// The index of an endpoint among those that generate text; 0 for any other endpoint.
fn generating(endpoint: Endpoint) -> usize {
    let index = endpoint as usize;
    if index < Endpoint::GENERATING { index } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_0_at_the_start() {
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
    fn histograms_are_rendered_with_buckets() {
        let metrics = Metrics::new().unwrap();
        metrics.queue_duration.record(0.003);
        metrics.batch(Trigger::Idle, 40);
        let text = metrics.render();
        assert!(text.contains(r#"pillion_queue_duration_seconds_bucket{le="0.005"} 1"#), "{text}");
        assert!(text.contains(r#"pillion_batch_size_bucket{le="40"} 1"#), "{text}");
    }

    #[test]
    fn an_unknown_status_is_counted_as_other() {
        let metrics = Metrics::new().unwrap();
        metrics.request(Endpoint::Other, 418);
        assert!(metrics.render().contains(r#"pillion_requests_total{endpoint="other",code="other"} 1"#));
    }

    #[test]
    fn an_endpoint_is_found_by_its_path() {
        for (index, (endpoint, path)) in Endpoint::ALL.into_iter().enumerate() {
            assert_eq!((endpoint as usize, endpoint.label(), Endpoint::at(path)), (index, path, endpoint));
        }
        assert_eq!(Endpoint::at("/v1/models/a/b"), Endpoint::Models);
        assert_eq!(Endpoint::at("/v1/modelsx"), Endpoint::Other);
    }
}
