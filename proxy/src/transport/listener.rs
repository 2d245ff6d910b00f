//! Where clients connect.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use super::connection::Server;
use super::rate_limited_log::RateLimitedLog;
use crate::inherited::Inherited;

/// How long to wait before accepting again when the system has no descriptor left.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listening TCP socket.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    /// Another process has the socket too: clients that this process has not accepted when it ends are not refused.
    outlives: bool,
}

impl Listener {
    /// The next socket that the process was started with, or one of its own at this address.
    ///
    /// # Errors
    /// The address is taken, or not this machine's.
    pub async fn open(inherited: &mut Inherited, address: SocketAddr) -> io::Result<Self> {
        Ok(match inherited.next_tcp()? {
            Some(listener) => Self { listener: TcpListener::from_std(listener)?, outlives: true },
            None => Self { listener: TcpListener::bind(address).await?, outlives: false },
        })
    }

    /// Its address; with port 0 the one that the system chose.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts clients until `closed`, and serves them until `shutdown`. Each holds a place until its connection ends; with
    /// no place free no client is accepted.
    pub async fn accept(self, server: Server, shutdown: watch::Receiver<bool>, mut closed: watch::Receiver<bool>) {
        let serve = |stream: TcpStream, place: OwnedSemaphorePermit| {
            // Answers are whole when they are written: waiting for more to send gains nothing.
            let _ = stream.set_nodelay(true);
            let (server, shutdown) = (server.clone(), shutdown.clone());
            tokio::spawn(async move {
                server.serve(stream, shutdown).await;
                drop(place);
            });
        };
        let mut failures = RateLimitedLog::default();
        loop {
            let accepted = tokio::select! {
                biased;
                _ = closed.wait_for(|&closed| closed) => break,
                accepted = async {
                    let place = server.places().clone().acquire_owned().await;
                    (self.listener.accept().await, place)
                } => accepted,
            };
            match accepted {
                (Ok((stream, _)), Ok(place)) => serve(stream, place),
                (Err(error), _) => {
                    if let Some(times) = failures.count(Instant::now()) {
                        warn!(%error, times, "cannot accept a client's connection; trying again");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
                (_, Err(_)) => return,
            }
        }
        // Closing the socket would reset the connections that the kernel has taken and nobody has accepted.
        while !self.outlives
            && let Ok(place) = server.places().clone().try_acquire_owned()
            && let Ok(Ok((stream, _))) = timeout(Duration::ZERO, self.listener.accept()).await
        {
            serve(stream, place);
        }
    }
}
