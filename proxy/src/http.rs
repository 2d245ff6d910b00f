//! HTTP/1.1, and HTTP/2 with prior knowledge, in front: which path is whose, and what every request has in common.

mod activity;
mod admin;
mod body;
mod call;
mod caller;
mod connection;
mod events;
mod fields;
mod generate;
mod keys;
mod log;
mod openai;
mod preface;
mod record;
mod request;
mod request_id;
mod response;
mod trace;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{Method, Request, Response};
use tokio::time::Instant;

use self::caller::Caller;
pub use self::events::AnswerBody;
pub use self::keys::{ApiKeys, KeysError};
pub use self::log::RequestLog;
use self::openai::models;
use self::record::Record;
use self::request_id::{RequestIds, X_REQUEST_ID};
use self::response::{Api, ApiError};
use crate::batcher::Handle;
use crate::metrics::{Endpoint, Metrics};

/// What requests are measured against.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Texts that the queue takes: a longer list can never be admitted.
    pub texts: usize,
    /// Connections of clients; and as many requests may go on at once on those of HTTP/2.
    pub connections: usize,
    /// The longest that a request may take, and what it may take where it does not say.
    pub request_timeout: Duration,
}

/// What every connection shares.
#[derive(Debug)]
pub struct Service {
    handle: Handle,
    metrics: Arc<Metrics>,
    limits: Limits,
    leaving: AtomicBool,
    draining: AtomicBool,
    log: Arc<RequestLog>,
    log_prompts: bool,
    keys: Option<ApiKeys>,
    request_ids: RequestIds,
    connections: AtomicUsize,
    /// Requests on connections of HTTP/2.
    streams: AtomicUsize,
}

/// What a listener offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    All,
    /// Probes and metrics alone.
    Admin,
}

/// An answer.
pub type Answer = Response<AnswerBody>;

impl Service {
    /// A service that puts requests into `handle`. With `keys`, only requests that bring one of them may do more than look
    /// at the service's state.
    pub fn new(
        handle: Handle,
        metrics: Arc<Metrics>,
        limits: Limits,
        keys: Option<ApiKeys>,
        log: Arc<RequestLog>,
        log_prompts: bool,
    ) -> Self {
        let request_ids = RequestIds::new();
        Self {
            handle,
            metrics,
            limits,
            leaving: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            log,
            log_prompts,
            keys,
            request_ids,
            connections: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
        }
    }

    fn allows(&self, request: &Request<Incoming>) -> bool {
        self.keys.as_ref().is_none_or(|keys| keys.allow(request.headers()))
    }

    /// From now on the service is not ready, and every answer is its connection's last. What comes over connections that
    /// are open is still admitted.
    pub fn leave(&self) {
        self.leaving.store(true, Relaxed);
    }

    /// Whether an answer is its connection's last: clients are to go elsewhere.
    fn is_leaving(&self) -> bool {
        self.leaving.load(Relaxed) || self.handle.workers_leaving().is_some()
    }

    /// From now on nothing is admitted.
    pub fn drain(&self) {
        self.draining.store(true, Relaxed);
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    async fn answer(&self, request: Request<Incoming>, scope: Scope, caller: &Arc<Caller>) -> Answer {
        let request_id = self.request_ids.of(request.headers());
        let endpoint = match endpoint(request.uri().path()) {
            endpoint if scope == Scope::Admin && !endpoint.is_admin() => Endpoint::Other,
            endpoint => endpoint,
        };
        let api = match endpoint {
            Endpoint::Generate => Api::Generate,
            Endpoint::GenerateStream => Api::GenerateStream,
            Endpoint::Completions => Api::Completions,
            Endpoint::ChatCompletions => Api::Chat,
            _ => return self.administer(endpoint, &request, request_id),
        };
        let now = Instant::now();
        let record = Record::new(self.metrics.clone(), self.log.clone(), endpoint, request_id, request.headers(), now);
        if !self.allows(&request) {
            record.refuse(ApiError::Unauthorised, api)
        } else if request.method() != Method::POST {
            record.refuse(ApiError::Method { allow: "POST" }, api)
        } else {
            self.call(api, request, caller, record).await
        }
    }

    /// Answers what is no call: probes, metrics, and what is not there.
    fn administer(&self, endpoint: Endpoint, request: &Request<Incoming>, request_id: HeaderValue) -> Answer {
        let api = if endpoint == Endpoint::Models { Api::Models } else { Api::Generate };
        let answer = match (endpoint, request.method()) {
            (Endpoint::Models, _) if !self.allows(request) => Err(ApiError::Unauthorised),
            (Endpoint::Models, &Method::GET | &Method::HEAD) => models::answer(request.uri().path(), &self.handle),
            (Endpoint::Other, _) => Err(ApiError::NotFound { path: request.uri().path().to_owned() }),
            (_, &Method::GET | &Method::HEAD) => Ok(self.tell(endpoint)),
            _ => Err(ApiError::Method { allow: "GET, HEAD" }),
        };
        let mut answer = answer.unwrap_or_else(|error| error.into_answer(&request_id, api));
        answer.headers_mut().insert(&X_REQUEST_ID, request_id);
        self.metrics.request(endpoint, answer.status().as_u16());
        answer
    }
}

fn endpoint(path: &str) -> Endpoint {
    match path {
        "/generate" => Endpoint::Generate,
        "/generate_stream" => Endpoint::GenerateStream,
        "/v1/completions" => Endpoint::Completions,
        "/v1/chat/completions" => Endpoint::ChatCompletions,
        path if path == models::PATH || path.starts_with("/v1/models/") => Endpoint::Models,
        "/livez" => Endpoint::Livez,
        "/healthz" => Endpoint::Healthz,
        "/readyz" => Endpoint::Readyz,
        "/metrics" => Endpoint::Metrics,
        "/openapi.json" => Endpoint::OpenApi,
        _ => Endpoint::Other,
    }
}
