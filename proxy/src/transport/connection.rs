//! A client's connection, from its first byte to its end, and why and how it is ended.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::Version;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep};
use tokio_util::io::{InspectReader, InspectWriter};
use tracing::debug;

use super::activity::{Activity, CloseReason};
use super::tracked_body::TrackedBody;
use crate::admission::LINGER;
use crate::http::{ClientHistory, Service};
use crate::metrics::Metrics;

/// Bytes of a request's head, and of what is read at once.
const MAX_HEAD: usize = 16 * 1024;
/// Requests at once on one connection of HTTP/2.
const MAX_STREAMS: u32 = 256;
/// Bytes of bodies that a client of HTTP/2 may send before they are asked for: on a connection, and of a request.
const WINDOW: u32 = 64 * 1024;
/// How often a silent connection of HTTP/2 is asked whether it is there, and how long it may take to answer.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(20);
/// How long a client that was idle may take to hear that its connection ends.
const GOODBYE: Duration = Duration::from_secs(1);

/// Serves clients' connections, of which there are at most so many at once. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Server {
    service: Service,
    metrics: Arc<Metrics>,
    most: usize,
    connections: Arc<Semaphore>,
    /// Requests over HTTP/2: as many at once as there may be connections.
    streams: Arc<Semaphore>,
}

impl Server {
    /// Serves `service` on at most `most` connections at once.
    pub fn new(service: Service, metrics: Arc<Metrics>, most: usize) -> Self {
        let places = || Arc::new(Semaphore::new(most));
        Self { service, metrics, most, connections: places(), streams: places() }
    }

    /// Places for connections: each connection holds one until it ends.
    pub fn places(&self) -> &Arc<Semaphore> {
        &self.connections
    }

    /// Resolves when no connection is left, and none can come.
    pub async fn all_closed(&self) {
        let all = u32::try_from(self.most).unwrap_or(u32::MAX);
        // An error means that the semaphore is closed, which nobody does.
        let _ = self.connections.acquire_many(all).await;
    }

    /// Connections now.
    pub fn open(&self) -> usize {
        self.most - self.connections.available_permits()
    }

    /// Whether more than three quarters of the places are taken.
    fn is_crowded(&self) -> bool {
        self.connections.available_permits() < self.most / 4
    }

    /// Serves one connection until the client closes it or it is [useless for too long](Activity), or until `shutdown` says
    /// so and the requests in flight have been answered. The caller holds its [place](Self::places).
    pub async fn serve<I>(&self, io: I, mut shutdown: watch::Receiver<bool>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let activity = Arc::new(Activity::new(Instant::now()));
        let client = Arc::new(ClientHistory::new(Instant::now()));
        let service = service_fn(|request| {
            let (service, streams, in_flight) = (self.service.clone(), self.streams.clone(), activity.request());
            let is_http2 = request.version() == Version::HTTP_2;
            // An HTTP/2 connection has many requests at once: the one before says nothing of the next.
            let client = if is_http2 { Arc::new(ClientHistory::new(Instant::now())) } else { client.clone() };
            async move {
                // A client that is refused may try again: nothing has been done for the request.
                let refused = |_| h2::Error::from(h2::Reason::REFUSED_STREAM);
                let place = is_http2.then(|| streams.try_acquire_owned().map_err(refused)).transpose()?;
                let mut answer = service.answer(request, &client).await;
                if !is_http2 && service.is_leaving() {
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
                () = told_and_waited(&mut shutdown) => None,
                () = self.service.workers_have_left() => None,
                reason = overdue() => Some(reason),
            }
        };
        let ended = tokio::select! {
            // What has come is read first: a connection with a request is not idle.
            biased;
            ended = connection.as_mut() => ended,
            reason = finish => {
                if let Some(reason) = reason {
                    self.closed(reason);
                }
                match reason {
                    // Neither would hear of it.
                    Some(CloseReason::Head | CloseReason::Unread) => Ok(()),
                    Some(CloseReason::Idle) | None => {
                        connection.as_mut().graceful_shutdown();
                        let cut = async {
                            match reason {
                                Some(_) => sleep(GOODBYE).await,
                                None => self.closed(overdue().await),
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
            debug!(%error, "a connection ended early");
        }
        self.service.client_left(&client);
    }

    fn closed(&self, reason: CloseReason) {
        let counter = match reason {
            CloseReason::Idle => &self.metrics.connections_closed_idle,
            CloseReason::Head => &self.metrics.connections_closed_head,
            CloseReason::Unread => &self.metrics.connections_closed_unread,
        };
        counter.increment(1);
        debug!(%reason, "closing a connection");
    }
}

/// HTTP/1.1, and HTTP/2 with prior knowledge.
fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        // `Activity` has its own timer, which tells a head that was begun from none.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD)
        // Answers are small and written at once: one plain write costs the kernel less than a gathered one.
        .writev(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buf_size(MAX_HEAD)
        .initial_connection_window_size(WINDOW)
        .initial_stream_window_size(WINDOW)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG);
    builder
}

/// Resolves a while after the value is true, or its sender is gone. A request that is on its way has the time to come: a
/// client that has no answer yet cannot tell a connection that was closed from a request that was lost.
async fn told_and_waited(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|&told| told).await;
    sleep(LINGER).await;
}
