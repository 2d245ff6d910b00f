//! A pool of connections that are kept alive. A request gets an idle connection, or a new one, or waits for a place.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::tally::Outcome;
use super::target::Kind;

/// A connection that is kept alive.
pub type Connection = SendRequest<Full<Bytes>>;

/// Connections to one server. Each request holds a place of the pool. There are never more idle connections than free
/// places.
#[derive(Debug)]
pub struct Pool {
    address: SocketAddr,
    places: Arc<Semaphore>,
    // The connection that was used last is used next. So after a rush the others stay idle until the server closes
    // them.
    idle: Mutex<Vec<Connection>>,
}

impl Pool {
    /// A pool of at most `size` connections. None of them is open yet.
    pub fn new(address: SocketAddr, size: u32) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(usize::try_from(size).unwrap_or(usize::MAX)));
        Arc::new(Self { address, places, idle: Mutex::default() })
    }

    /// Waits for a place for one request. Requests get places in the order in which they ask.
    pub async fn place(&self) -> OwnedSemaphorePermit {
        self.places.clone().acquire_owned().await.expect("nobody closes it")
    }

    /// Sends one request, over the given connection if there is one. The caller must hold a place until this returns.
    /// If the server says when to ask again, the connection is returned, so that it can be used then. If the answer is
    /// streamed, `pieces` gets the times at which its pieces came.
    pub async fn ask(
        &self,
        kind: &Kind,
        over: Option<Connection>,
        pieces: &mut Vec<Instant>,
    ) -> (Outcome, Option<Connection>) {
        let answer = self.answer(kind, over, pieces);
        let answer = match kind.patience {
            None => answer.await,
            // If the time is over, the request is dropped, which closes its connection.
            Some(patience) => match tokio::time::timeout(patience, answer).await {
                Ok(answer) => answer,
                Err(_) => return (Outcome::Abandoned, None),
            },
        };
        match answer {
            Ok((outcome @ Outcome::Refused { again_in: Some(_) }, connection)) => (outcome, Some(connection)),
            Ok((outcome, connection)) => {
                self.put(connection);
                (outcome, None)
            }
            Err(_) => (Outcome::NoAnswer, None),
        }
    }

    /// Takes back a connection that its user does not need any more.
    pub fn put(&self, connection: Connection) {
        self.lock().push(connection);
    }

    async fn answer(
        &self,
        kind: &Kind,
        over: Option<Connection>,
        pieces: &mut Vec<Instant>,
    ) -> io::Result<(Outcome, Connection)> {
        let mut over = over;
        while let Some(mut connection) = over.take().or_else(|| self.take()) {
            if connection.ready().await.is_err() {
                continue;
            }
            match connection.try_send_request(kind.request()).await {
                Ok(response) => return self.read(connection, response, kind, pieces).await,
                // The connection was closed before the request was sent. The server has not seen the request, so it may
                // be sent over another connection.
                Err(error) if error.message().is_some() => {}
                Err(error) => return Err(io::Error::other(error.into_error())),
            }
        }
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (mut connection, life) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // The task ends when the server closes the connection or the sender is dropped. The request in flight reports
        // an error.
        tokio::spawn(life);
        let response = connection.send_request(kind.request()).await.map_err(io::Error::other)?;
        self.read(connection, response, kind, pieces).await
    }

    /// Reads the answer to its end, after which the connection can be used again.
    async fn read(
        &self,
        connection: Connection,
        response: Response<Incoming>,
        kind: &Kind,
        pieces: &mut Vec<Instant>,
    ) -> io::Result<(Outcome, Connection)> {
        let (head, mut body) = response.into_parts();
        let good = head.status == StatusCode::OK;
        let streams = head.headers.get(CONTENT_TYPE).is_some_and(|value| value == "text/event-stream");
        let outcome = if good && streams {
            while let Some(frame) = body.frame().await {
                frame.map_err(io::Error::other)?;
                pieces.push(Instant::now());
            }
            Outcome::Right
        } else if !good || !kind.expects() {
            // The body is read to its end, so that the connection can be used again and the latency covers the whole
            // answer.
            while let Some(frame) = body.frame().await {
                frame.map_err(io::Error::other)?;
            }
            if good { Outcome::Right } else { Outcome::Refused { again_in: retry_after(&head.headers) } }
        } else if kind.is_met(&body.collect().await.map_err(io::Error::other)?.to_bytes()) {
            Outcome::Right
        } else {
            Outcome::Wrong
        };
        Ok((outcome, connection))
    }

    fn take(&self) -> Option<Connection> {
        self.lock().pop()
    }

    /// Locks the idle connections. The lock is held for a few instructions and never across an await.
    fn lock(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The seconds of `Retry-After`. A date is not understood.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}
