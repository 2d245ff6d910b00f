//! Serves a client's connection from its first byte until it is closed.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep};
use tokio_util::io::{InspectReader, InspectWriter};
use tracing::debug;

use super::activity::{Activity, CloseReason};
use super::request_body::RequestBody;
use super::tracked_body::TrackedBody;
use crate::http::{ClientHistory, Service};
use crate::metrics::Metrics;

/// The size of a connection's buffers in bytes, and so the largest head of a request.
const MAX_HEAD: usize = 16 * 1024;
/// The most requests at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;
/// Bytes of bodies that an HTTP/2 client may send before the proxy reads them, for a connection and for a request.
const WINDOW: u32 = 64 * 1024;
/// The interval of pings on a silent HTTP/2 connection, and the longest time to answer one.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest that the graceful shutdown of an idle connection may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves clients' connections, up to a maximum number at once. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Server {
    service: Service,
    metrics: Arc<Metrics>,
    most: usize,
    connections: Arc<Semaphore>,
    /// The number of connections that are served.
    open: watch::Sender<usize>,
    /// Places for requests over HTTP/2, as many as for connections.
    streams: Arc<Semaphore>,
}

impl Server {
    /// Creates a server that serves `service` on at most `most` connections at once.
    pub fn new(service: Service, metrics: Arc<Metrics>, most: usize) -> Self {
        let places = || Arc::new(Semaphore::new(most));
        Self { service, metrics, most, connections: places(), open: watch::Sender::new(0), streams: places() }
    }

    /// The places for connections. Each connection holds one until it ends.
    pub fn places(&self) -> &Arc<Semaphore> {
        &self.connections
    }

    /// Resolves when no connection is open.
    pub async fn all_closed(&self) {
        // An error means that all senders are dropped, and this server has one.
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    /// Counts a connection as open until the value is dropped.
    pub fn opened(&self) -> Open {
        self.open.send_modify(|open| *open += 1);
        Open(self.open.clone())
    }

    /// Number of open connections.
    pub fn open(&self) -> usize {
        *self.open.borrow()
    }

    /// Whether more than three quarters of the places are taken.
    fn is_crowded(&self) -> bool {
        self.connections.available_permits() < self.most / 4
    }

    /// Serves one connection until the client closes it, until the connection is idle or too slow, or until clients are to go
    /// elsewhere and the requests in flight have been answered. The caller holds the connection's [place](Self::places), and counts it as [open](Self::opened).
    pub async fn serve<I>(&self, io: I)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let activity = Arc::new(Activity::new(Instant::now()));
        let client = Arc::new(ClientHistory::default());
        let service = service_fn(|request: Request<Incoming>| {
            let (service, streams, in_flight) = (self.service.clone(), self.streams.clone(), activity.begin_request());
            let is_http2 = request.version() == Version::HTTP_2;
            // An HTTP/2 connection has many requests at once, so the last answer does not predict the next request.
            let (request, waits) = RequestBody::of(request, &activity);
            let client = if is_http2 { Arc::new(ClientHistory::default()) } else { client.clone() };
            async move {
                // REFUSED_STREAM means that nothing was done for the request, so the client may send it again.
                let refused = |_| h2::Error::from(h2::Reason::REFUSED_STREAM);
                let place = is_http2.then(|| streams.try_acquire_owned().map_err(refused)).transpose()?;
                let mut answer = service.answer(request, &client).await;
                // If the client has not sent the body, nothing can follow on the connection.
                let has_no_body = waits.is_some_and(|waits| waits.load(Relaxed));
                if !is_http2 && (has_no_body || service.is_leaving()) {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, h2::Error>(answer.map(|body| TrackedBody::new(body, in_flight, place)))
            }
        });
        let builder = builder();
        let (reads, writes) = (activity.clone(), activity.clone());
        let io = InspectReader::new(io, move |bytes| reads.on_read(bytes));
        let io = TokioIo::new(InspectWriter::new(io, move |_| writes.on_write()));
        let mut connection = pin!(builder.serve_connection(io, service));
        let overdue = || activity.overdue(|| self.is_crowded());
        let finish = async {
            tokio::select! {
                biased;
                () = self.service.clients_have_to_leave() => None,
                reason = overdue() => Some(reason),
            }
        };
        let ended = tokio::select! {
            // The connection is polled first: if a request has arrived, the connection is not idle.
            biased;
            ended = connection.as_mut() => ended,
            reason = finish => {
                if let Some(reason) = reason {
                    self.count_closed(reason);
                }
                match reason {
                    // A graceful shutdown would wait for this client, so the connection is dropped.
                    Some(CloseReason::Head | CloseReason::Unread) => Ok(()),
                    Some(CloseReason::Idle) | None => {
                        connection.as_mut().graceful_shutdown();
                        let cut = async {
                            match reason {
                                Some(_) => sleep(CLOSE_TIMEOUT).await,
                                None => self.count_closed(overdue().await),
                            }
                        };
                        tokio::select! {
                            ended = connection => ended,
                            () = cut => Ok(()),
                        }
                    }
                }
            }
        };
        if let Err(error) = ended {
            debug!(%error, "a client's connection failed");
        }
        self.service.client_left(&client);
    }

    fn count_closed(&self, reason: CloseReason) {
        let counter = match reason {
            CloseReason::Idle => &self.metrics.connections_closed_idle,
            CloseReason::Head => &self.metrics.connections_closed_head,
            CloseReason::Unread => &self.metrics.connections_closed_unread,
        };
        counter.increment(1);
        debug!(%reason, "closing a client's connection");
    }
}

/// Counts an open connection until it is dropped.
#[derive(Debug)]
pub struct Open(watch::Sender<usize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

/// The settings of HTTP/1.1, and of HTTP/2 with prior knowledge.
fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        // `Activity` has its own timer for heads, which starts at a head's first byte.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD)
        // Answers are small and written at once, for which a plain write costs less than a vectored one.
        .writev(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buf_size(MAX_HEAD)
        .initial_connection_window_size(WINDOW)
        .initial_stream_window_size(WINDOW)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}
