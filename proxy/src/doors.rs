//! Where clients and workers come in: each holds a place until its connection ends, and with no place free nobody is let in.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Uid;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, interval, sleep, timeout};
use tracing::{error, info, warn};

use crate::app::{AppError, Proxy};
use crate::http::Scope;
use crate::inherited::Inherited;
use crate::socket::WorkerSocket;

/// How long to wait before accepting again when the system has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Strangers at the workers' socket are spoken of no more often.
const SILENCE: Duration = Duration::from_secs(10);

/// Where clients come in.
#[derive(Debug)]
pub(crate) struct Door {
    listener: TcpListener,
    /// Somebody else has the socket too: whoever has not been accepted when this process ends is not refused.
    outlives: bool,
}

impl Door {
    /// On the next socket that the process was started with, or on one of its own at this address.
    pub(crate) async fn open(inherited: &mut Inherited, address: SocketAddr) -> Result<Self, AppError> {
        let failed = |source| AppError::Listen { address, source };
        match inherited.next_tcp().map_err(failed)? {
            Some(listener) => Ok(Self { listener: TcpListener::from_std(listener).map_err(failed)?, outlives: true }),
            None => Ok(Self { listener: TcpListener::bind(address).await.map_err(failed)?, outlives: false }),
        }
    }

    /// Its address.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Accepts clients until `closed`; each holds a place until its connection ends, and with no place free nobody is accepted.
pub(crate) async fn accept_clients(
    door: Door,
    proxy: Proxy,
    scope: Scope,
    places: Arc<Semaphore>,
    shutdown: watch::Receiver<bool>,
    mut closed: watch::Receiver<bool>,
) {
    let serve = |stream: TcpStream, place: OwnedSemaphorePermit| {
        // Answers are whole when they are written: waiting for more to send gains nothing.
        let _ = stream.set_nodelay(true);
        let connection = proxy.clone().serve_client(stream, scope, shutdown.clone());
        tokio::spawn(async move {
            connection.await;
            drop(place);
        });
    };
    let mut fails = false;
    loop {
        let accepted = tokio::select! {
            biased;
            _ = closed.wait_for(|&closed| closed) => break,
            accepted = async {
                let place = places.clone().acquire_owned().await;
                (door.listener.accept().await, place)
            } => accepted,
        };
        match accepted {
            (Ok((stream, _)), Ok(place)) => {
                told("clients", &mut fails, None);
                serve(stream, place);
            }
            (Err(error), _) => {
                told("clients", &mut fails, Some(&error));
                sleep(ACCEPT_PAUSE).await;
            }
            (_, Err(_)) => return,
        }
    }
    // Closing the socket would reset those whom the kernel has let in and nobody has accepted.
    while !door.outlives
        && let Ok(place) = places.clone().try_acquire_owned()
        && let Ok(Ok((stream, _))) = timeout(Duration::ZERO, door.listener.accept()).await
    {
        serve(stream, place);
    }
}

/// Says once that nobody can be accepted, and once that it goes on.
fn told(who: &str, fails: &mut bool, error: Option<&io::Error>) {
    match error {
        Some(error) if !*fails => warn!(%error, "cannot accept {who}: they wait"),
        None if *fails => info!("{who} are accepted again"),
        _ => {}
    }
    *fails = error.is_some();
}

/// Accepts workers; where the socket's file is gone, though no successor's has taken its place, it is made again.
pub(crate) async fn accept_workers(mut socket: WorkerSocket, proxy: Proxy, places: Arc<Semaphore>) {
    let mut look = interval(Duration::from_secs(1));
    let mut fails = false;
    let mut strangers = Strangers::default();
    while let Ok(place) = places.clone().acquire_owned().await {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = look.tick() => {
                if socket.is_gone() {
                    match socket.bind_again() {
                        Ok(()) => warn!("the workers' socket was removed, and is there again"),
                        Err(error) => error!(%error, "the workers' socket was removed and cannot be made again"),
                    }
                }
                continue;
            }
        };
        told("workers", &mut fails, accepted.as_ref().err());
        let connection = match accepted {
            Ok(Ok(stream)) => proxy.clone().serve_worker(stream),
            Ok(Err(user)) => {
                proxy.metrics().workers_refused.increment(1);
                strangers.came(user, Instant::now());
                continue;
            }
            Err(_) => {
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        tokio::spawn(async move {
            connection.await;
            drop(place);
        });
    }
}

/// Processes of other users that dialled the workers' socket.
#[derive(Debug, Default)]
struct Strangers {
    unsaid: u64,
    said: Option<Instant>,
}

impl Strangers {
    /// One has been refused: says so, unless that was done a moment ago, since it may dial all the time.
    fn came(&mut self, user: Uid, now: Instant) {
        self.unsaid += 1;
        if self.said.is_none_or(|said| now.saturating_duration_since(said) >= SILENCE) {
            let (uid, times) = (user.as_raw(), self.unsaid);
            error!(uid, times, "a process of another user dialled the workers' socket; see --allow-peer");
            (self.unsaid, self.said) = (0, Some(now));
        }
    }
}
