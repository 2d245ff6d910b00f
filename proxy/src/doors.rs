//! Where clients and workers come in: each holds a place until its connection ends, and with no place free nobody is let in.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, interval, sleep, timeout};
use tracing::{error, warn};

use crate::app::{AppError, Proxy};
use crate::http::Scope;
use crate::inherited::Inherited;
use crate::socket::WorkerSocket;

/// How long to wait before accepting again when the system has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What may happen all the time is spoken of no more often.
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
    let mut failures = Seldom::default();
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
            (Ok((stream, _)), Ok(place)) => serve(stream, place),
            (Err(error), _) => {
                if let Some(times) = failures.happened(Instant::now()) {
                    warn!(%error, times, "cannot accept a client");
                }
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

/// Accepts workers; where the socket's file is gone, though no successor's has taken its place, it is made again.
pub(crate) async fn accept_workers(mut socket: WorkerSocket, proxy: Proxy, places: Arc<Semaphore>) {
    let mut look = interval(Duration::from_secs(1));
    let (mut failures, mut strangers) = (Seldom::default(), Seldom::default());
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
        let connection = match accepted {
            Ok(Ok(stream)) => proxy.clone().serve_worker(stream),
            Ok(Err(user)) => {
                proxy.metrics().workers_refused.increment(1);
                if let Some(times) = strangers.happened(Instant::now()) {
                    let uid = user.as_raw();
                    error!(uid, times, "a process of another user dialled the workers' socket; see --allow-peer");
                }
                continue;
            }
            Err(error) => {
                if let Some(times) = failures.happened(Instant::now()) {
                    warn!(%error, times, "cannot accept a worker");
                }
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

/// Something that may happen all the time, and is spoken of now and then.
#[derive(Debug, Default)]
struct Seldom {
    unsaid: u64,
    said: Option<Instant>,
}

impl Seldom {
    /// It has happened. How often since it was last spoken of, where that is not a moment ago.
    fn happened(&mut self, now: Instant) -> Option<u64> {
        self.unsaid += 1;
        let is_due = self.said.is_none_or(|said| now.saturating_duration_since(said) >= SILENCE);
        is_due.then(|| {
            self.said = Some(now);
            std::mem::take(&mut self.unsaid)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_all_the_time_is_spoken_of_now_and_then_and_counted() {
        let start = Instant::now();
        let mut seldom = Seldom::default();
        let said: Vec<_> = (0..250).map(|tenth| seldom.happened(start + SILENCE / 100 * tenth)).collect();
        assert_eq!(said.iter().flatten().collect::<Vec<_>>(), [&1, &100, &100]);
        assert_eq!((said[0], said[100], said[200]), (Some(1), Some(100), Some(100)));
    }
}
