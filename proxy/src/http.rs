//! HTTP/1.1, and HTTP/2 with prior knowledge, in front: which path is whose, and what every request has in common.

mod activity;
mod admin;
mod body;
mod call;
mod events;
mod fields;
mod generate;
mod keys;
mod log;
mod openai;
mod preface;
mod record;
mod request;
mod response;
mod trace;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

use self::activity::{Activity, Overstayed, Watched};
pub use self::events::AnswerBody;
pub use self::keys::{ApiKeys, KeysError};
pub use self::log::RequestLog;
use self::openai::models;
use self::preface::Version;
use self::record::Record;
use self::response::{Api, ApiError};
use crate::admission::Promise;
use crate::batcher::{Handle, Past};
use crate::lifecycle::LINGER;
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

/// Bytes of a request's head, and of what is read at once.
const MAX_HEAD: usize = 16 * 1024;

/// Requests at once on one connection of HTTP/2.
const MAX_STREAMS: u32 = 256;
/// Bytes of bodies that a client of HTTP/2 may send before they are asked for: on a connection, and of a request.
const WINDOW: u32 = 64 * 1024;
/// How often a silent connection of HTTP/2 is asked whether it is there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(20);

static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

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

    /// Serves one connection until the client closes it or does nothing with it, or until `shutdown` says so and the
    /// requests in progress have been answered.
    pub async fn serve<I>(self: Arc<Self>, io: I, scope: Scope, mut shutdown: watch::Receiver<bool>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let activity = Arc::new(Activity::new(Instant::now()));
        let _counted = (scope == Scope::All).then(|| Counted::one_more(&self, |service| &service.connections));
        let opened = tokio::select! {
            biased;
            opened = preface::open(io, &activity) => opened,
            why = self.overstays(&activity) => return self.closes(why),
            () = told_and_waited(&mut shutdown) => return,
            () = self.workers_have_left(scope) => return,
        };
        match opened {
            Ok((Version::Http1, io)) => self.serve_http1(io, scope, activity, shutdown).await,
            Ok((Version::Http2, io)) => self.serve_http2(io, scope, activity, shutdown).await,
            Err(error) => debug!(%error, "a connection ended before its first request"),
        }
    }

    async fn serve_http1<I>(
        self: Arc<Self>,
        io: I,
        scope: Scope,
        activity: Arc<Activity>,
        mut shutdown: watch::Receiver<bool>,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let caller = Arc::new(Caller::new(Instant::now()));
        let service = service_fn(|request| {
            let (service, caller, attended) = (self.clone(), caller.clone(), activity.request());
            async move {
                let mut answer = service.answer(request, scope, &caller).await;
                if service.is_leaving() {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer.map(|body| Watched::new(body, attended, None)))
            }
        });
        let connection = http1::Builder::new()
            // Who is slow is told by what goes on on the connection, which knows a head that was begun from none.
            .header_read_timeout(None)
            .max_buf_size(MAX_HEAD)
            // Answers are small and written at once: one plain write costs the kernel less than a gathered one.
            .writev(false)
            .serve_connection(TokioIo::new(io), service);
        let finish = async {
            tokio::select! {
                () = told_and_waited(&mut shutdown) => {}
                () = self.workers_have_left(scope) => {}
            }
        };
        tokio::select! {
            () = to_end(connection, http1::Connection::graceful_shutdown, finish) => {}
            why = self.overstays(&activity) => self.closes(why),
        }
        if let Some(answered) = caller.answered() {
            self.handle.left(answered);
        }
    }

    async fn serve_http2<I>(
        self: Arc<Self>,
        io: I,
        scope: Scope,
        activity: Arc<Activity>,
        mut shutdown: watch::Receiver<bool>,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request| {
            let service = self.clone();
            let counted = Counted::within(&self, self.limits.connections, |service| &service.streams);
            let attended = activity.request();
            async move {
                // The client may try again: nothing has been done for it.
                let counted = counted.ok_or(h2::Error::from(h2::Reason::REFUSED_STREAM))?;
                // Many requests go on at once on such a connection: what came before says nothing of the next.
                let caller = Arc::new(Caller::new(Instant::now()));
                let answer = service.answer(request, scope, &caller).await;
                Ok::<_, h2::Error>(answer.map(|body| Watched::new(body, attended, Some(counted))))
            }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .max_concurrent_streams(MAX_STREAMS)
            .max_send_buf_size(MAX_HEAD)
            .initial_connection_window_size(WINDOW)
            .initial_stream_window_size(WINDOW)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .serve_connection(TokioIo::new(io), service);
        // It can tell the client which requests it has not seen.
        let finish = async {
            tokio::select! {
                () = told(&mut shutdown) => {}
                () = self.workers_have_left(scope) => {}
                why = self.overstays(&activity) => self.closes(why),
            }
        };
        tokio::select! {
            () = to_end(connection, http2::Connection::graceful_shutdown, finish) => {}
            () = activity.is_left_unread() => self.closes(Overstayed::Unread),
        }
    }

    /// Resolves when no worker has been there for a while that stays, since whoever was last there was told to stop: as a
    /// sidecar, the proxy is told only after it. Clients that come are admitted all the same, since another may come. Who
    /// looks at the proxy itself has nowhere else to go.
    async fn workers_have_left(&self, scope: Scope) {
        if scope == Scope::Admin {
            return std::future::pending().await;
        }
        loop {
            let since = self.handle.workers_leave().await;
            tokio::time::sleep(LINGER).await;
            if self.handle.workers_leaving() == Some(since) {
                return;
            }
        }
    }

    async fn overstays(&self, activity: &Activity) -> Overstayed {
        let few = self.limits.connections / 4;
        let crowded = || self.connections.load(Relaxed) > self.limits.connections - few;
        activity.overstayed(crowded).await
    }

    fn closes(&self, why: Overstayed) {
        let counter = match why {
            Overstayed::Idle => &self.metrics.connections_closed_idle,
            Overstayed::Head => &self.metrics.connections_closed_head,
            Overstayed::Unread => &self.metrics.connections_closed_unread,
        };
        counter.increment(1);
        debug!(%why, "a connection is closed");
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

/// One of something that a service counts, until it is dropped.
#[derive(Debug)]
struct Counted {
    service: Arc<Service>,
    counter: fn(&Service) -> &AtomicUsize,
}

impl Counted {
    fn one_more(service: &Arc<Service>, counter: fn(&Service) -> &AtomicUsize) -> Self {
        counter(service).fetch_add(1, Relaxed);
        Self { service: service.clone(), counter }
    }

    /// The same, unless there are so many.
    fn within(service: &Arc<Service>, most: usize, counter: fn(&Service) -> &AtomicUsize) -> Option<Self> {
        let one = Self::one_more(service, counter);
        (counter(service).load(Relaxed) <= most).then_some(one)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.counter)(&self.service).fetch_sub(1, Relaxed);
    }
}

/// What is remembered of a connection from one request to the next: when it had its last answer from a worker, and when it
/// was told to come back.
#[derive(Debug)]
struct Caller {
    since: Instant,
    /// Microseconds since then; 0 for never.
    answered: AtomicU64,
    /// The same.
    promised: AtomicU64,
    /// Texts of the request that was refused then.
    promised_texts: AtomicUsize,
}

impl Caller {
    fn new(since: Instant) -> Self {
        Self { since, answered: AtomicU64::new(0), promised: AtomicU64::new(0), promised_texts: AtomicUsize::new(0) }
    }

    /// When it had its last answer. Said once, since with the next request it is over.
    fn answered(&self) -> Option<Instant> {
        self.take(&self.answered)
    }

    fn has_its_answer(&self, now: Instant) {
        self.put(&self.answered, now);
    }

    /// Both. Said once.
    fn past(&self) -> Past {
        let texts = self.promised_texts.load(Relaxed);
        Past { answered: self.answered(), promised: self.take(&self.promised).map(|due| Promise { due, texts }) }
    }

    fn is_to_come_back(&self, Promise { due, texts }: Promise) {
        self.promised_texts.store(texts, Relaxed);
        self.put(&self.promised, due);
    }

    fn take(&self, from: &AtomicU64) -> Option<Instant> {
        match from.swap(0, Relaxed) {
            0 => None,
            micros => Some(self.since + Duration::from_micros(micros)),
        }
    }

    fn put(&self, into: &AtomicU64, instant: Instant) {
        let micros = u64::try_from(instant.saturating_duration_since(self.since).as_micros()).unwrap_or(u64::MAX);
        into.store(micros.max(1), Relaxed);
    }
}

/// Serves a connection until its client closes it, or until it is told to `finish` and has answered what is in progress.
async fn to_end<C>(connection: C, finish: impl FnOnce(Pin<&mut C>), shutdown: impl Future<Output = ()>)
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        // What has come is read first: a connection with a request is not idle.
        biased;
        ended = connection.as_mut() => ended,
        () = shutdown => {
            finish(connection.as_mut());
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended early");
    }
}

/// The same, and then leaves a request that is on its way the time to come: a client that has no answer yet cannot tell a
/// connection that was closed from a request that was lost.
async fn told_and_waited(shutdown: &mut watch::Receiver<bool>) {
    told(shutdown).await;
    tokio::time::sleep(LINGER).await;
}

/// Resolves when the value is true, or its sender is gone.
async fn told(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|&told| told).await;
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

/// Numbers for requests that come without one: unique within a process, and unlike those of another.
#[derive(Debug)]
struct RequestIds {
    base: u64,
    next: AtomicU64,
}

impl RequestIds {
    fn new() -> Self {
        use std::hash::{BuildHasher, RandomState};
        Self { base: RandomState::new().hash_one(std::process::id()), next: AtomicU64::new(0) }
    }

    /// The client's own where it sent a sane one: 1 to 128 visible ASCII characters.
    fn of(&self, headers: &HeaderMap) -> HeaderValue {
        let sane = |value: &&HeaderValue| {
            (1..=128).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
        };
        if let Some(value) = headers.get(&X_REQUEST_ID).filter(sane) {
            return value.clone();
        }
        let number = self.base.wrapping_add(self.next.fetch_add(1, Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut digits = [0; 16];
        for (place, digit) in digits.iter_mut().enumerate() {
            let nibble = number.to_be_bytes()[place / 2] >> (4 * (1 - place % 2)) & 15;
            *digit = b"0123456789abcdef"[usize::from(nibble)];
        }
        HeaderValue::from_bytes(&digits).unwrap_or(HeaderValue::from_static("unnumbered"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sane_request_id_is_kept_and_any_other_replaced() {
        let ids = RequestIds::new();
        let of = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(&X_REQUEST_ID, HeaderValue::from_bytes(value).unwrap());
            ids.of(&headers)
        };
        assert_eq!(of(b"abc-1"), "abc-1");
        for insane in [&b""[..], b"two words", &[b'x'; 129], "\u{e9}".as_bytes()] {
            assert_ne!(of(insane).as_bytes(), insane);
        }
        assert_ne!(ids.of(&HeaderMap::new()), ids.of(&HeaderMap::new()));
    }
}
