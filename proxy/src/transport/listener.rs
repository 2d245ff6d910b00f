//! Accepts clients' connections.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use super::connection::Server;
use super::rate_limited_log::RateLimitedLog;
use crate::admission::LINGER;

/// Pause before accepting again after an error, such as no file descriptor being left.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listening TCP socket.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    /// Whether another process has the socket too, so that connections not yet accepted outlive this process.
    is_inherited: bool,
}

impl Listener {
    /// Uses this inherited socket, or binds a new one to this address if there is none.
    ///
    /// # Errors
    /// The address is in use, or not this machine's.
    pub async fn open(inherited: Option<std::net::TcpListener>, address: SocketAddr) -> io::Result<Self> {
        Ok(match inherited {
            Some(listener) => {
                listener.set_nonblocking(true)?;
                Self { listener: TcpListener::from_std(listener)?, is_inherited: true }
            }
            None => Self { listener: TcpListener::bind(address).await?, is_inherited: false },
        })
    }

    /// The socket's address. Port 0 is replaced by the port that the system chose.
    ///
    /// # Errors
    /// The system does not return the address.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts and serves clients until `closed` resolves, and then those that have connected by then. Each connection holds a
    /// place until it ends; with no place free no connection is accepted.
    pub async fn accept(self, server: Server, closed: impl Future<Output = ()>) {
        let serve = |stream: TcpStream, place: OwnedSemaphorePermit| {
            // Answers are whole when they are written, so Nagle's algorithm would only delay them.
            let _ = stream.set_nodelay(true);
            // Counted here, since the task may begin after it was asked whether connections are open.
            let (server, open) = (server.clone(), server.opened());
            tokio::spawn(async move {
                server.serve(stream).await;
                drop((place, open));
            });
        };
        let mut failures = RateLimitedLog::default();
        let mut closed = pin!(closed);
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut closed => break,
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
        // Closing the socket would reset the connections that the kernel has completed and that were not accepted yet. The
        // system is asked for them, since the runtime may not have heard of them.
        if !self.is_inherited
            && let Ok(listener) = self.listener.into_std()
        {
            // Places become free when idle connections are closed.
            let until = Instant::now() + 2 * LINGER;
            while let Ok(Ok(place)) = timeout_at(until, server.places().clone().acquire_owned()).await {
                match listener.accept() {
                    Ok((stream, _)) => {
                        if stream.set_nonblocking(true).is_ok()
                            && let Ok(stream) = TcpStream::from_std(stream)
                        {
                            serve(stream, place);
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // This connection has failed, or no file descriptor is left.
                    Err(_) => sleep(ACCEPT_PAUSE).await,
                }
            }
        }
    }
}
