//! The proxy put together: listeners in front, workers behind, and an end in good order.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use listenfd::ListenFd;
use metrics_exporter_prometheus::BuildError;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::{interval, timeout};
use tracing::{error, info, warn};

use crate::admission::{Admission, Bounds, LINGER};
use crate::config::Config;
use crate::descriptors;
use crate::http::{Scope, Service};
use crate::link::{self, Links};
use crate::metrics::Metrics;
use crate::numbers::as_u32;
use crate::scheduler::{self, Handle, Scheduler, Settings};
use crate::signals::Signals;
use crate::socket::WorkerSocket;
use crate::transport::connection::Server;
use crate::transport::listener::Listener;
use crate::transport::worker_listener::accept_workers;

/// Workers that may be connected at once, those that are shaking hands included.
const MAX_WORKERS: usize = 256;
/// Admin connections at once: probes and scrapers are few.
const MAX_ADMIN_CONNECTIONS: usize = 64;
/// How long workers may take to hear the proxy's goodbye, and clients to hear that their requests were cut.
const GOODBYE: Duration = Duration::from_secs(1);

/// Why the proxy cannot run, or did not end well. The message names the cause.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// An address or a socket is not to be had.
    #[error("{0}")]
    Unavailable(String),
    /// Something that should never happen.
    #[error("{0}")]
    Internal(String),
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
    /// What clients and operators are served with.
    pub service: Service,
    /// The scheduler.
    pub handle: Handle,
    /// What the proxy counts.
    pub metrics: Arc<Metrics>,
    clients: Server,
    operators: Server,
    links: Links,
}

impl Proxy {
    /// The proxy, and its scheduler's task, which must be run for anything to happen.
    ///
    /// # Errors
    /// The metrics cannot be set up; that would be a bug.
    pub fn new(config: &Config) -> Result<(Self, Scheduler), BuildError> {
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
        let (handle, scheduler) = scheduler::scheduler(settings, admission, metrics.clone());
        let service = Service::new(handle.clone(), metrics.clone(), config);
        let clients = Server::new(service.clone(), metrics.clone(), config.max_connections);
        let operators = Server::new(service.for_operators(), metrics.clone(), MAX_ADMIN_CONNECTIONS);
        let links = Links { max_batch_size: config.max_batch_size, handle: handle.clone(), metrics: metrics.clone() };
        Ok((Self { service, handle, metrics, clients, operators, links }, scheduler))
    }

    /// Serves a client's connection to its end. Waits for a place first.
    pub async fn serve_client<I>(self, io: I, scope: Scope)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let server = if scope == Scope::All { &self.clients } else { &self.operators };
        let _place = server.places().acquire().await;
        let _open = server.opened();
        server.serve(io).await;
    }

    /// Serves a worker's connection until it ends.
    pub async fn serve_worker<I: AsyncRead + AsyncWrite>(self, io: I) {
        link::serve(io, self.links).await;
    }
}

/// Runs the proxy until it is told to stop and has answered what it admitted.
///
/// # Errors
/// It could not start, or ended with requests unanswered.
pub async fn run(config: Config) -> Result<(), AppError> {
    let config = Config { max_connections: room(config.max_connections), ..config };
    let mut signals = Signals::new().map_err(|error| AppError::Internal(format!("cannot handle signals: {error}")))?;
    let (clients, operators) = listen(&config).await?;
    let path = config.socket.display();
    let socket = WorkerSocket::bind(&config.socket, &config.allow_peer)
        .map_err(|error| AppError::Unavailable(format!("cannot bind the workers' socket {path}: {error}")))?;
    let (proxy, scheduler) =
        Proxy::new(&config).map_err(|error| AppError::Internal(format!("the metrics: {error}")))?;
    let address = |listener: &Listener| listener.address().map(|address| address.to_string()).unwrap_or_default();
    info!(
        listen = %address(&clients),
        admin_listen = %operators.as_ref().map(address).unwrap_or_default(),
        socket = %path,
        "listening"
    );

    let worker_places = Arc::new(Semaphore::new(MAX_WORKERS));
    // Without any of these tasks the proxy would only seem to live.
    let mut tasks = JoinSet::new();
    tasks.spawn(scheduler.run());
    tasks.spawn(upkeep(proxy.clone()));
    if let Some(keys) = config.api_keys.clone() {
        tasks.spawn(keys.watch());
    }
    let accept = accept_workers(socket, proxy.links.clone(), proxy.metrics.clone(), worker_places.clone());
    let workers = tasks.spawn(accept);
    let handle = proxy.handle.clone();
    let accept = clients.accept(proxy.clients.clone(), async move { handle.shutting_down().await });
    let mut accepting = tokio::spawn(accept);
    if let Some(listener) = operators {
        tasks.spawn(listener.accept(proxy.operators.clone(), std::future::pending()));
    }

    let mut broken = tokio::select! {
        () = signals.stop(|| proxy.handle.dump()) => None,
        broken = first_end(&mut tasks, &mut accepting) => Some(broken),
    };
    if let Some(broken) = &broken {
        error!("{broken}; the proxy stops");
    }
    info!(drain_timeout = %humantime::format_duration(config.drain_timeout), "stopping: answering what was admitted");
    proxy.handle.shut_down();
    let all_gone = async {
        let accepted = async {
            if !accepting.is_finished() {
                let _ = (&mut accepting).await;
            }
            proxy.clients.all_closed().await;
        };
        let mut accepted = pin!(accepted);
        if timeout(LINGER, accepted.as_mut()).await.is_err() {
            proxy.service.drain();
            accepted.await;
        }
    };
    let mut all_gone = pin!(timeout(config.drain_timeout, all_gone));
    // If no signal has begun the drain, the first one is the operator's request for it, and the second one cuts it.
    let mut signals_left = if broken.is_some() { 2 } else { 1 };
    let drained = loop {
        tokio::select! {
            gone = all_gone.as_mut() => break gone.is_ok(),
            () = signals.stop(|| proxy.handle.dump()) => {
                signals_left -= 1;
                if signals_left == 0 {
                    break false;
                }
            }
            Some(ended) = tasks.join_next() => broken = Some(has_ended("a task of the proxy", ended)),
        }
    };
    let connections = proxy.clients.open();

    proxy.handle.close().await;
    workers.abort();
    let heard = async {
        let _ = worker_places.acquire_many(as_u32(MAX_WORKERS)).await;
        proxy.clients.all_closed().await;
    };
    let _ = timeout(GOODBYE, heard).await;
    if let Some(broken) = broken {
        return Err(broken);
    }
    if !drained {
        return Err(AppError::Unfinished { connections });
    }
    info!("stopped: everything admitted was answered");
    Ok(())
}

/// The sockets for clients, and for operators if they have one of their own.
///
/// The process may inherit them by systemd's convention (`sd_listen_fds(3)`): descriptors from 3 on. `LISTEN_FDS` is the
/// number of these descriptors, and `LISTEN_PID` is the process that they are for. Such a socket outlives the process. If a
/// connection comes after one proxy has ended and before the next one begins, it is not refused but waits in the kernel.
async fn listen(config: &Config) -> Result<(Listener, Option<Listener>), AppError> {
    let mut inherited = ListenFd::from_env();
    let addresses = [Some(config.listen), config.admin_listen];
    let mut listeners = [None, None];
    for (at, address) in addresses.into_iter().flatten().enumerate() {
        let opened = async { Listener::open(inherited.take_tcp_listener(at)?, address).await };
        let failed = |error| AppError::Unavailable(format!("cannot listen on {address}: {error}"));
        listeners[at] = Some(opened.await.map_err(failed)?);
    }
    let left = inherited.len().saturating_sub(addresses.into_iter().flatten().count());
    match listeners {
        [Some(clients), operators] if left == 0 => Ok((clients, operators)),
        _ => Err(AppError::Unavailable(format!(
            "{left} inherited listening sockets are not wanted: the first is for --listen, a second for --admin-listen"
        ))),
    }
}

/// How many of the `asked` connections of clients can have a file descriptor.
fn room(asked: usize) -> usize {
    let raised = descriptors::raise().inspect_err(|error| warn!(%error, "the limit of open files is not known"));
    let Ok(descriptors) = raised else { return asked };
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

/// Resolves when one of the tasks ends that should run as long as the proxy. Their panics are logged where they happen.
async fn first_end(tasks: &mut JoinSet<()>, accepting: &mut JoinHandle<()>) -> AppError {
    tokio::select! {
        ended = accepting => has_ended("the task that accepts clients", ended),
        Some(ended) = tasks.join_next() => has_ended("a task of the proxy", ended),
    }
}

fn has_ended(task: &str, ended: Result<(), JoinError>) -> AppError {
    let how = if ended.is_err_and(|error| error.is_panic()) { "has panicked" } else { "has ended" };
    AppError::Internal(format!("{task} {how}, which is a bug"))
}

async fn upkeep(proxy: Proxy) {
    let mut tick = interval(Duration::from_secs(5));
    loop {
        tick.tick().await;
        proxy.metrics.upkeep();
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_or_panics_is_noticed_whichever_it_is() {
        let first_end = async |accept: bool, task: bool| {
            let mut tasks = JoinSet::new();
            tasks.spawn(pending());
            tasks.spawn(async move {
                if !task {
                    pending::<()>().await;
                }
                panic!("on purpose");
            });
            let mut accepting = tokio::spawn(async move {
                if !accept {
                    pending::<()>().await;
                }
            });
            first_end(&mut tasks, &mut accepting).await.to_string()
        };
        assert_eq!(first_end(true, false).await, "the task that accepts clients has ended, which is a bug");
        assert_eq!(first_end(false, true).await, "a task of the proxy has panicked, which is a bug");
    }
}
