//! The HTTP service, which answers the requests of all connections.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use hyper::body::Body;
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::{Method, Request};
use pillion_process::log::LogFormat;

use super::client_history::ClientHistory;
use super::record::Record;
use super::request_id::{RequestIds, X_REQUEST_ID};
use super::response::{self, Answer};
use super::router::{self, Scope};
use crate::api::call::Limits;
use crate::api::error::ApiError;
use crate::api::generate::GENERATE;
use crate::api::openai::models;
use crate::auth::ApiKeys;
use crate::config::Config;
use crate::metrics::{Endpoint, Metrics};
use crate::scheduler::{Handle, Serving};

/// The description of the API (`OpenAPI` 3.1), with the version filled in.
static DESCRIPTION: LazyLock<Bytes> = LazyLock::new(|| {
    let text = include_str!("openapi.json").replacen("\"VERSION\"", concat!("\"", env!("CARGO_PKG_VERSION"), "\""), 1);
    text.into()
});

/// The HTTP service of a listener. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Service {
    pub(super) shared: Arc<Shared>,
    scope: Scope,
}

/// State that all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub handle: Handle,
    pub metrics: Arc<Metrics>,
    pub limits: Limits,
    pub log_format: LogFormat,
    pub log_prompts: bool,
    keys: Option<ApiKeys>,
    request_ids: RequestIds,
    draining: AtomicBool,
}

impl Service {
    /// Creates a service that submits requests to `handle`. If there are API keys, a request needs one of them, except for
    /// probes, metrics and the description of the API.
    pub fn new(handle: Handle, metrics: Arc<Metrics>, config: &Config) -> Self {
        let limits = Limits {
            body_bytes: config.max_body_bytes,
            texts: config.max_queue,
            request_timeout: config.request_timeout,
        };
        let shared = Shared {
            handle,
            metrics,
            limits,
            log_format: config.log_format,
            log_prompts: config.log_prompts,
            keys: config.api_keys.clone(),
            request_ids: RequestIds::new(),
            draining: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared), scope: Scope::All }
    }

    /// The same service for a listener that serves probes and metrics only.
    #[must_use]
    pub fn for_operators(&self) -> Self {
        Self { scope: Scope::Admin, ..self.clone() }
    }

    /// Whether each answer is the last on its connection, since the proxy or its last worker is shutting down.
    pub fn is_leaving(&self) -> bool {
        self.shared.handle.serving(Serving::is_leaving)
    }

    /// From now on no request is admitted.
    pub fn drain(&self) {
        self.shared.draining.store(true, Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.shared.draining.load(Relaxed)
    }

    /// Resolves when connections are to be closed as soon as they are idle, since clients are to go elsewhere. Never resolves
    /// for a listener of probes and metrics.
    pub async fn clients_have_to_leave(&self) {
        match self.scope {
            Scope::All => self.shared.handle.clients_have_to_leave().await,
            Scope::Admin => std::future::pending().await,
        }
    }

    /// Tells the scheduler that a client has closed its connection.
    pub fn client_left(&self, client: &ClientHistory) {
        if let Some(answered) = client.take_answered() {
            self.shared.handle.left(answered);
        }
    }

    /// Answers a request. `client` is the history of the client that sent it.
    pub(crate) async fn answer<B>(&self, request: Request<B>, client: &Arc<ClientHistory>) -> Answer
    where
        B: Body<Data = Bytes, Error: Display> + Unpin,
    {
        let request_id = self.shared.request_ids.choose(request.headers());
        let endpoint = router::endpoint(request.uri().path(), self.scope);
        let Some(dialect) = router::dialect(endpoint) else { return self.answer_now(endpoint, &request, request_id) };
        let (metrics, log) = (self.shared.metrics.clone(), self.shared.log_format);
        let client = client.clone();
        let record = Record::new(metrics, log, client, endpoint, dialect, request_id, request.headers());
        if !self.is_authorised(&request) {
            record.refuse(&ApiError::Unauthorised)
        } else if request.method() != Method::POST {
            record.refuse(&ApiError::Method { allow: "POST" })
        } else {
            self.generate(dialect, request, record).await
        }
    }

    fn is_authorised<B>(&self, request: &Request<B>) -> bool {
        let header = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
        self.shared.keys.as_ref().is_none_or(|keys| keys.allow(header))
    }

    /// Answers a request that generates no text: for a probe, the metrics, models, the description, or an unknown path.
    fn answer_now<B>(&self, endpoint: Endpoint, request: &Request<B>, request_id: HeaderValue) -> Answer {
        let path = request.uri().path();
        let answer = match (endpoint, request.method()) {
            (Endpoint::Models, _) if !self.is_authorised(request) => Err(ApiError::Unauthorised),
            (Endpoint::Models, &Method::GET | &Method::HEAD) => {
                self.shared.handle.serving(|serving| models::answer(path, &serving.models)).map(response::json)
            }
            (Endpoint::Other, _) => Err(ApiError::NotFound { path: path.to_owned() }),
            (Endpoint::Metrics, &Method::GET | &Method::HEAD) => Ok(response::metrics(self.shared.metrics.render())),
            (Endpoint::OpenApi, &Method::GET | &Method::HEAD) => Ok(response::json(DESCRIPTION.clone())),
            (Endpoint::Readyz, &Method::GET | &Method::HEAD) => Ok(response::probe(self.unready())),
            (_, &Method::GET | &Method::HEAD) => Ok(response::probe(None)),
            _ => Err(ApiError::Method { allow: "GET, HEAD" }),
        };
        // Errors of these endpoints are the same in every dialect, so any of them will do.
        let mut answer = answer.unwrap_or_else(|error| response::error(&error, &request_id, &GENERATE));
        answer.headers_mut().insert(&X_REQUEST_ID, request_id);
        self.shared.metrics.request(endpoint, answer.status().as_u16());
        answer
    }

    /// Why the service is not ready, if it is not. A full queue does not count: it must not take the pod out of service.
    fn unready(&self) -> Option<&'static str> {
        self.shared.handle.serving(|serving| {
            if serving.shutting_down {
                Some("draining: the proxy is shutting down")
            } else if serving.leaving.is_some() {
                Some("draining: the last worker was told to stop")
            } else if serving.workers == 0 {
                Some("no worker is connected")
            } else {
                None
            }
        })
    }
}
