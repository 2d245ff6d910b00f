//! The proxy put together: listeners in front, workers behind, and an end in good order.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::BuildError;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::time::{interval, timeout};
use tracing::{info, warn};

use crate::admission::{Admission, Bounds};
use crate::batcher::{self, Batcher, Handle, LinkPort, Settings};
use crate::config::Config;
use crate::descriptors;
use crate::doors::{Door, accept_clients, accept_workers};
use crate::http::{Limits, RequestLog, Scope, Service};
use crate::inherited::Inherited;
use crate::lifecycle::{LINGER, Signals};
use crate::link;
use crate::metrics::Metrics;
use crate::socket::WorkerSocket;

/// Workers that may be connected at once, those that are shaking hands included.
const MAX_WORKERS: usize = 256;
/// Admin connections at once: probes and scrapers are few.
const MAX_ADMIN_CONNECTIONS: usize = 64;
/// How long workers may take to hear the proxy's goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// Why the proxy cannot run, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// An address is taken, or not this machine's.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The process was started with more listening sockets than it listens on.
    #[error("{0} inherited listening sockets are not wanted: the first is for --listen, a second for --admin-listen")]
    Inherited(usize),
    /// The workers' socket cannot be bound.
    #[error("cannot bind the workers' socket {}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Signals cannot be heard.
    #[error("cannot take over the signals")]
    Signals(#[source] io::Error),
    /// The metrics cannot be set up; that would be a bug.
    #[error("cannot set up the metrics")]
    Metrics(#[from] BuildError),
    /// The batcher's task has ended by itself; that would be a bug. A proxy without one answers nobody, so it ends too.
    #[error("the batcher has ended")]
    Batcher,
    /// The drain timeout passed, or a second signal came, while requests were unanswered.
    #[error("stopped with {connections} connections unfinished")]
    Unfinished {
        /// Connections that were still busy.
        connections: usize,
    },
}

/// A proxy without its listeners: give it connections of clients and of workers, over whatever carries bytes.
#[derive(Clone, Debug)]
pub struct Proxy {
    service: Arc<Service>,
    handle: Handle,
    port: LinkPort,
    metrics: Arc<Metrics>,
    log: Arc<RequestLog>,
    max_batch_size: usize,
}

impl Proxy {
    /// The proxy, and its batcher's task, which must be run for anything to happen.
    ///
    /// # Errors
    /// The metrics cannot be set up; that would be a bug.
    pub fn new(config: &Config) -> Result<(Self, Batcher), BuildError> {
        let metrics = Arc::new(Metrics::new()?);
        let bounds = Bounds { texts: config.max_queue, bytes: config.max_queue_bytes };
        let settings = Settings {
            max_batch_size: config.max_batch_size,
            batch_timeout: config.batch_timeout,
            worker_wait: config.worker_wait,
            max_attempts: config.max_attempts,
            max_requests: config.max_connections,
        };
        let admission = Admission::new(bounds, metrics.clone());
        let (handle, port, batcher) = batcher::batcher(settings, admission, metrics.clone());
        let limits = Limits {
            body_bytes: config.max_body_bytes,
            texts: config.max_queue,
            connections: config.max_connections,
            request_timeout: config.request_timeout,
        };
        let log = Arc::new(RequestLog::new(config.log_format));
        let service = Arc::new(Service::new(
            handle.clone(),
            metrics.clone(),
            limits,
            config.api_keys.clone(),
            log.clone(),
            config.log_prompts,
        ));
        let max_batch_size = config.max_batch_size;
        Ok((Self { service, handle, port, metrics, log, max_batch_size }, batcher))
    }

    /// Serves a client's connection until it ends, or `shutdown` says so and its request has been answered.
    pub async fn serve_client<I>(self, io: I, scope: Scope, shutdown: watch::Receiver<bool>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.service.serve(io, scope, shutdown).await;
    }

    /// Serves a worker's connection until it ends.
    pub async fn serve_worker<I: AsyncRead + AsyncWrite>(self, io: I) {
        link::serve(io, self.max_batch_size, self.port, self.metrics).await;
    }

    /// From now on the proxy is not ready, and every answer is its connection's last.
    pub fn leave(&self) {
        self.service.leave();
    }

    /// From now on nothing is admitted.
    pub fn drain(&self) {
        self.service.drain();
    }

    /// Ends the batcher and, through it, the workers' connections.
    pub async fn close(&self) {
        self.handle.close().await;
    }

    /// What the proxy counts.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Logs what is queued and in flight, without texts.
    pub fn dump(&self) {
        self.handle.dump();
    }
}

/// Runs the proxy until it is told to stop and has answered what it admitted.
///
/// # Errors
/// It could not start, or ended with requests unanswered.
pub async fn run(config: Config) -> Result<(), AppError> {
    let config = Config { max_connections: room(config.max_connections), ..config };
    let mut signals = Signals::new().map_err(AppError::Signals)?;
    let mut inherited = Inherited::from_env();
    let clients = Door::open(&mut inherited, config.listen).await?;
    let admin = match config.admin_listen {
        Some(address) => Some(Door::open(&mut inherited, address).await?),
        None => None,
    };
    if inherited.left() > 0 {
        return Err(AppError::Inherited(inherited.left()));
    }
    let socket = WorkerSocket::bind(&config.socket, &config.allow_peer)
        .map_err(|source| AppError::Socket { path: config.socket.clone(), source })?;
    let (proxy, batcher) = Proxy::new(&config)?;
    let address = |door: &Door| door.address().map(|address| address.to_string()).unwrap_or_default();
    info!(
        listen = %address(&clients),
        admin_listen = %admin.as_ref().map(address).unwrap_or_default(),
        socket = %config.socket.display(),
        "listening"
    );

    let (shutdown, shutting_down) = watch::channel(false);
    let (stay, staying) = watch::channel(false);
    let client_places = Arc::new(Semaphore::new(config.max_connections));
    let worker_places = Arc::new(Semaphore::new(MAX_WORKERS));
    let batcher = tokio::spawn(batcher.run());
    tokio::spawn(upkeep(proxy.clone()));
    let log = proxy.log.clone();
    tokio::spawn(async move { log.run().await });
    if let Some(keys) = config.api_keys.clone() {
        tokio::spawn(keys.watch());
    }
    let workers = tokio::spawn(accept_workers(socket, proxy.clone(), worker_places.clone()));
    let closed = shutting_down.clone();
    let front = accept_clients(clients, proxy.clone(), Scope::All, client_places.clone(), shutting_down, closed);
    tokio::spawn(front);
    let back = admin.map(|listener| {
        let places = Arc::new(Semaphore::new(MAX_ADMIN_CONNECTIONS));
        tokio::spawn(accept_clients(listener, proxy.clone(), Scope::Admin, places, staying.clone(), staying))
    });

    tokio::select! {
        () = signals.stop(|| proxy.dump()) => {}
        _ = batcher => return Err(AppError::Batcher),
    }
    info!(drain_timeout = %humantime::format_duration(config.drain_timeout), "stopping: answering what was admitted");
    proxy.leave();
    shutdown.send_replace(true);
    let everyone = u32::try_from(config.max_connections).unwrap_or(u32::MAX);
    let all_gone = async {
        if timeout(LINGER, client_places.acquire_many(everyone)).await.is_err() {
            proxy.drain();
            let _ = client_places.acquire_many(everyone).await;
        }
    };
    let drained = tokio::select! {
        gone = timeout(config.drain_timeout, all_gone) => gone.is_ok(),
        () = signals.stop(|| proxy.dump()) => false,
    };
    let unfinished = config.max_connections - client_places.available_permits();

    proxy.log.flush();
    proxy.close().await;
    workers.abort();
    let _ = timeout(GOODBYE, worker_places.acquire_many(u32::try_from(MAX_WORKERS).unwrap_or(u32::MAX))).await;
    drop(stay);
    if let Some(back) = back {
        back.abort();
    }
    if drained {
        info!("stopped: everything admitted was answered");
        Ok(())
    } else {
        Err(AppError::Unfinished { connections: unfinished })
    }
}

/// How many connections of clients there are descriptors for, of the `asked`.
fn room(asked: usize) -> usize {
    let descriptors = match descriptors::raise() {
        Ok(descriptors) => descriptors,
        Err(error) => {
            warn!(%error, "the limit of open files is not known");
            return asked;
        }
    };
    let room = descriptors::connections(asked, descriptors, MAX_WORKERS + MAX_ADMIN_CONNECTIONS);
    if room < asked {
        warn!(
            max_connections = asked,
            connections = room,
            descriptors,
            "fewer connections than asked for: the limit of open files is too low (ulimit -n)"
        );
    }
    room
}

async fn upkeep(proxy: Proxy) {
    let mut tick = interval(Duration::from_secs(5));
    loop {
        tick.tick().await;
        proxy.metrics.upkeep();
    }
}
