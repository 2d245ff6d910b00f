//! A whole proxy with simulated workers and clients in one runtime, over pipes in memory.
//!
//! With tokio's time paused, hours pass in an instant and in the same way each time: what a test says of time is exact.

mod http2;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use pillion_proxy::app::Proxy;
use pillion_proxy::config::Config;
use pillion_proxy::http::Scope;
use serde_json::Value;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

pub use self::http2::Http2Client;
use crate::client::Answer;
use crate::fake_worker::{Ending, FakeWorker, FaultKind, Profile};
use crate::metrics::Metrics;

/// Bytes in a pipe: few, so that writers have to wait.
const PIPE: usize = 4096;
/// A worker's pause before it dials again.
const REDIAL: Duration = Duration::from_millis(50);

/// A proxy in memory. Dropping it ends all that belongs to it.
#[derive(Debug)]
pub struct Memory {
    proxy: Proxy,
    tasks: JoinSet<()>,
}

/// A simulated worker in memory.
#[derive(Debug)]
pub struct MemoryWorker {
    drain: watch::Sender<bool>,
    life: JoinHandle<()>,
}

impl Memory {
    /// A proxy with these flags. Needs a runtime.
    ///
    /// # Panics
    /// A flag is wrong.
    pub fn start(flags: &[&str]) -> Self {
        let arguments = ["pillion-proxy", "--socket", "/nowhere"].iter().chain(flags).copied();
        let config = Config::read(arguments).unwrap_or_else(|error| panic!("{error}"));
        let (proxy, scheduler) = Proxy::new(&config).expect("metrics can be set up");
        let mut tasks = JoinSet::new();
        tasks.spawn(scheduler.run());
        Self { proxy, tasks }
    }

    /// Adds a worker, which dials again whenever its connection ends.
    pub fn worker(&mut self, profile: Profile) -> MemoryWorker {
        let (drain, told) = watch::channel(false);
        let proxy = self.proxy.clone();
        let life = tokio::spawn(async move {
            let mut worker = FakeWorker::new(profile);
            loop {
                let (near, far) = duplex(PIPE);
                let serving = tokio::spawn(proxy.clone().serve_worker(far));
                let ended = worker.serve(near, told.clone()).await;
                serving.await.expect("a link does not panic");
                match ended {
                    Ok(Ending::Drained | Ending::DrainTimeout | Ending::Fault(FaultKind::Abort)) => return,
                    _ => tokio::time::sleep(REDIAL).await,
                }
            }
        });
        MemoryWorker { drain, life }
    }

    /// The proxy's end of a connection on which anything can be sent in place of a worker.
    pub fn dial(&mut self) -> DuplexStream {
        let (near, far) = duplex(PIPE);
        self.tasks.spawn(self.proxy.clone().serve_worker(far));
        near
    }

    /// A client's end of a connection on which anything can be sent.
    pub fn connect(&mut self) -> DuplexStream {
        self.connect_to(Scope::All)
    }

    /// The same, to a listener that offers this.
    pub fn connect_to(&mut self, scope: Scope) -> DuplexStream {
        let (near, far) = duplex(PIPE);
        self.tasks.spawn(self.proxy.clone().serve_client(far, scope));
        near
    }

    /// Asks `/generate`, over a connection of its own. Dropping the future closes the connection.
    ///
    /// # Panics
    /// There is no answer.
    pub fn generate(&mut self, request: &Value) -> impl Future<Output = Answer> + Send + use<> {
        self.post("/generate", request)
    }

    /// Posts JSON to a path, over a connection of its own, and reads the whole answer. Dropping the future closes the
    /// connection.
    ///
    /// # Panics
    /// There is no answer.
    pub fn post(&mut self, path: &'static str, request: &Value) -> impl Future<Output = Answer> + Send + use<> {
        let near = self.connect();
        let request = request.clone();
        async move { MemoryClient::over(near).await.post(path, &request).await }
    }

    /// Gets a path, over a connection of its own.
    ///
    /// # Panics
    /// There is no answer.
    pub async fn get(&mut self, path: &str) -> Answer {
        self.client().await.send(Method::GET, path, Bytes::new()).await
    }

    /// A client that keeps one connection.
    pub async fn client(&mut self) -> MemoryClient {
        MemoryClient::over(self.connect()).await
    }

    /// What the proxy counts.
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&self.proxy.metrics.render())
    }

    /// The proxy itself.
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }
}

/// A client with a connection in memory. Dropping it closes the connection.
#[derive(Debug)]
pub struct MemoryClient {
    sender: http1::SendRequest<Full<Bytes>>,
    connection: http1::Connection<TokioIo<DuplexStream>, Full<Bytes>>,
}

impl MemoryClient {
    async fn over(near: DuplexStream) -> Self {
        let (sender, connection) = http1::handshake(TokioIo::new(near)).await.expect("a pipe");
        Self { sender, connection }
    }

    /// Asks `/generate`.
    ///
    /// # Panics
    /// There is no answer.
    pub async fn generate(&mut self, request: &Value) -> Answer {
        self.post("/generate", request).await
    }

    /// Posts JSON to a path and reads the whole answer.
    ///
    /// # Panics
    /// There is no answer.
    pub async fn post(&mut self, path: &str, request: &Value) -> Answer {
        self.send(Method::POST, path, request.to_string().into()).await
    }

    async fn send(&mut self, method: Method, path: &str, body: Bytes) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "memory")
            .header("x-request-id", "memory")
            .body(Full::new(body))
            .expect("a request");
        let Self { sender, connection } = self;
        let ask = async {
            let (head, body) = sender.send_request(request).await.expect("an answer").into_parts();
            let body = body.collect().await.expect("a whole answer").to_bytes();
            Answer { status: head.status.as_u16(), headers: head.headers, body }
        };
        // Both in one future, so that dropping it leaves nothing that goes on.
        let mut ask = std::pin::pin!(ask);
        tokio::select! {
            biased;
            answer = &mut ask => answer,
            // What is left to read is there already.
            _ = connection => timeout(REDIAL, ask).await.expect("an answer before the connection ended"),
        }
    }
}

impl MemoryWorker {
    /// Tells it to leave.
    pub fn drain(&self) {
        self.drain.send_replace(true);
    }

    /// Kills it without a word.
    pub fn kill(&self) {
        self.life.abort();
    }

    /// Whether it is gone.
    pub fn is_gone(&self) -> bool {
        self.life.is_finished()
    }
}

impl Drop for MemoryWorker {
    fn drop(&mut self) {
        self.life.abort();
    }
}
