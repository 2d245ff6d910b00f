//! The HTTP service: every request passes here, whatever connection it came over.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::{Method, Request};
use tokio::time::{Instant, sleep};

use super::client_history::ClientHistory;
use super::record::Record;
use super::request_id::{RequestIds, X_REQUEST_ID};
use super::response::{self, Answer};
use super::router::{self, Scope};
use crate::admission::LINGER;
use crate::api::call::Limits;
use crate::api::error::ApiError;
use crate::api::generate::GENERATE;
use crate::api::openai::models;
use crate::auth::ApiKeys;
use crate::log::RequestLog;
use crate::metrics::{Endpoint, Metrics};
use crate::scheduler::Handle;

/// The API's own description (`OpenAPI` 3.1), as it is sent.
static DESCRIPTION: LazyLock<Bytes> = LazyLock::new(|| {
    let text = include_str!("openapi.json").replacen("\"VERSION\"", concat!("\"", env!("CARGO_PKG_VERSION"), "\""), 1);
    text.into()
});

/// The service as one listener offers it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Service {
    pub(super) shared: Arc<Shared>,
    scope: Scope,
}

/// What every connection shares.
#[derive(Debug)]
pub(super) struct Shared {
    pub handle: Handle,
    pub metrics: Arc<Metrics>,
    pub limits: Limits,
    pub log: Arc<RequestLog>,
    pub log_prompts: bool,
    keys: Option<ApiKeys>,
    request_ids: RequestIds,
    leaving: AtomicBool,
    draining: AtomicBool,
}

impl Service {
    /// A service that puts requests into `handle`'s queue. With `keys`, only requests that bring one of them may do more than
    /// look at the service's state.
    pub fn new(
        handle: Handle,
        metrics: Arc<Metrics>,
        limits: Limits,
        keys: Option<ApiKeys>,
        log: Arc<RequestLog>,
        log_prompts: bool,
    ) -> Self {
        let request_ids = RequestIds::new();
        let (leaving, draining) = (AtomicBool::new(false), AtomicBool::new(false));
        let shared = Shared { handle, metrics, limits, log, log_prompts, keys, request_ids, leaving, draining };
        Self { shared: Arc::new(shared), scope: Scope::All }
    }

    /// The same service, as a listener for operators offers it: probes and metrics alone.
    #[must_use]
    pub fn for_operators(&self) -> Self {
        Self { scope: Scope::Admin, ..self.clone() }
    }

    /// From now on the service is not ready, and every answer is its connection's last. Requests that come over open
    /// connections are still admitted.
    pub fn leave(&self) {
        self.shared.leaving.store(true, Relaxed);
    }

    /// Whether an answer is its connection's last: clients are to go elsewhere.
    pub fn is_leaving(&self) -> bool {
        self.shared.leaving.load(Relaxed) || self.shared.handle.workers_leaving().is_some()
    }

    /// From now on no request is admitted.
    pub fn drain(&self) {
        self.shared.draining.store(true, Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.shared.draining.load(Relaxed)
    }

    /// Resolves a while after the last worker was told to stop, unless another has come: as a sidecar, the proxy is told to
    /// stop only after its worker. Never resolves for operators, who have nowhere else to go.
    pub async fn workers_have_left(&self) {
        if self.scope == Scope::Admin {
            return std::future::pending().await;
        }
        loop {
            let since = self.shared.handle.workers_leave().await;
            sleep(LINGER).await;
            if self.shared.handle.workers_leaving() == Some(since) {
                return;
            }
        }
    }

    /// A client has closed its connection.
    pub fn client_left(&self, client: &ClientHistory) {
        if let Some(answered) = client.take_answered() {
            self.shared.handle.left(answered);
        }
    }

    /// Answers a request. `client` is the one that sent it.
    pub(crate) async fn answer(&self, request: Request<Incoming>, client: &Arc<ClientHistory>) -> Answer {
        let request_id = self.shared.request_ids.of(request.headers());
        let endpoint = router::endpoint(request.uri().path(), self.scope);
        let Some(dialect) = router::dialect(endpoint) else { return self.administer(endpoint, &request, request_id) };
        let (metrics, log) = (self.shared.metrics.clone(), self.shared.log.clone());
        let record = Record::new(metrics, log, endpoint, dialect, request_id, request.headers(), Instant::now());
        if !self.is_authorised(&request) {
            record.refuse(&ApiError::Unauthorised)
        } else if request.method() != Method::POST {
            record.refuse(&ApiError::Method { allow: "POST" })
        } else {
            self.call(dialect, request, client, record).await
        }
    }

    fn is_authorised(&self, request: &Request<Incoming>) -> bool {
        let header = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
        self.shared.keys.as_ref().is_none_or(|keys| keys.allow(header))
    }

    /// Answers a request that generates nothing: probes, metrics, models, and paths that are not there.
    fn administer(&self, endpoint: Endpoint, request: &Request<Incoming>, request_id: HeaderValue) -> Answer {
        let path = request.uri().path();
        let answer = match (endpoint, request.method()) {
            (Endpoint::Models, _) if !self.is_authorised(request) => Err(ApiError::Unauthorised),
            (Endpoint::Models, &Method::GET | &Method::HEAD) => {
                self.shared.handle.with_models(|all| models::answer(path, all)).map(response::json)
            }
            (Endpoint::Other, _) => Err(ApiError::NotFound { path: path.to_owned() }),
            (Endpoint::Metrics, &Method::GET | &Method::HEAD) => Ok(response::metrics(self.shared.metrics.render())),
            (Endpoint::OpenApi, &Method::GET | &Method::HEAD) => Ok(response::json(DESCRIPTION.clone())),
            (Endpoint::Readyz, &Method::GET | &Method::HEAD) => Ok(response::probe(self.unready())),
            (_, &Method::GET | &Method::HEAD) => Ok(response::probe(None)),
            _ => Err(ApiError::Method { allow: "GET, HEAD" }),
        };
        // Errors of these endpoints are the same in every dialect.
        let mut answer = answer.unwrap_or_else(|error| response::error(&error, &request_id, &GENERATE));
        answer.headers_mut().insert(&X_REQUEST_ID, request_id);
        self.shared.metrics.request(endpoint, answer.status().as_u16());
        answer
    }

    /// Why the service is not ready; `None` where it is. A full queue is no reason: it must not take the pod away.
    fn unready(&self) -> Option<&'static str> {
        if self.shared.leaving.load(Relaxed) {
            Some("draining: the proxy is shutting down")
        } else if self.shared.handle.workers_leaving().is_some() {
            Some("draining: the last worker was told to stop")
        } else if self.shared.handle.workers_serving() == 0 {
            Some("no worker is connected")
        } else {
            None
        }
    }
}
