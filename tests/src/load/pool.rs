//! Connections that are kept alive: an idle one, else a new one, else a place in the queue.

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

/// Connections to one server. A request holds one of its places; idle connections are never more than free places.
#[derive(Debug)]
pub struct Pool {
    address: SocketAddr,
    places: Arc<Semaphore>,
    // The one used last is used next: after a rush the others rest until the server closes them.
    idle: Mutex<Vec<Connection>>,
}

impl Pool {
    /// A pool of at most `size` connections, none of them open yet.
    pub fn new(address: SocketAddr, size: u32) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(usize::try_from(size).unwrap_or(usize::MAX)));
        Arc::new(Self { address, places, idle: Mutex::default() })
    }

    /// A place for one request; first come, first served.
    pub async fn place(&self) -> OwnedSemaphorePermit {
        self.places.clone().acquire_owned().await.expect("nobody closes it")
    }

    /// Asks once, over this connection if one is given. The caller has a place, and keeps it until this returns. Where the
    /// server says when to ask again, its connection is given back, for that. Of an answer that is streamed, `pieces` gets
    /// when each piece came.
    pub async fn ask(
        &self,
        kind: &Kind,
        over: Option<Connection>,
        pieces: &mut Vec<Instant>,
    ) -> (Outcome, Option<Connection>) {
        let answer = self.answer(kind, over, pieces);
        let answer = match kind.patience {
            None => answer.await,
            // Dropping the question closes its connection.
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

    /// Takes a connection back that is not needed any more.
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
                // It was closed before the request went out: nobody has seen it, so it may go elsewhere.
                Err(error) if error.message().is_some() => {}
                Err(error) => return Err(io::Error::other(error.into_error())),
            }
        }
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (mut connection, life) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // Ends when the server closes the connection or the sender is dropped; an error shows in the request it hits.
        tokio::spawn(life);
        let response = connection.send_request(kind.request()).await.map_err(io::Error::other)?;
        self.read(connection, response, kind, pieces).await
    }

    /// Reads the answer to its end; then the connection can be used again.
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
            // To the end, so that the connection can be used again and the latency is the whole answer's.
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

    /// Held for a few instructions, never across an await.
    fn lock(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the server asks to be asked again; a date is not understood.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}
