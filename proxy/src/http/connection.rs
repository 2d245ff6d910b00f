//! A client's connection, from its first byte to its end: which version is spoken on it, and why and how it is ended.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

use super::activity::{Activity, Overstayed, Watched};
use super::caller::Caller;
use super::preface::{self, Version};
use super::{Scope, Service};
use crate::lifecycle::LINGER;

/// Bytes of a request's head, and of what is read at once.
const MAX_HEAD: usize = 16 * 1024;

/// Requests at once on one connection of HTTP/2.
const MAX_STREAMS: u32 = 256;
/// Bytes of bodies that a client of HTTP/2 may send before they are asked for: on a connection, and of a request.
const WINDOW: u32 = 64 * 1024;
/// How often a silent connection of HTTP/2 is asked whether it is there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(20);

impl Service {
    /// Serves one connection until the client closes it or does nothing with it, or until `shutdown` says so and the
    /// requests in progress have been answered.
    pub async fn serve<I>(self: Arc<Self>, io: I, scope: Scope, mut shutdown: watch::Receiver<bool>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let activity = Arc::new(Activity::new(Instant::now()));
        let _counted = (scope == Scope::All).then(|| Counted::one_more(&self, |service| &service.connections));
        let opened = tokio::select! {
            biased;
            opened = preface::open(io, &activity) => opened,
            why = self.overstays(&activity) => return self.closes(why),
            () = told_and_waited(&mut shutdown) => return,
            () = self.workers_have_left(scope) => return,
        };
        match opened {
            Ok((Version::Http1, io)) => self.serve_http1(io, scope, activity, shutdown).await,
            Ok((Version::Http2, io)) => self.serve_http2(io, scope, activity, shutdown).await,
            Err(error) => debug!(%error, "a connection ended before its first request"),
        }
    }

    async fn serve_http1<I>(
        self: Arc<Self>,
        io: I,
        scope: Scope,
        activity: Arc<Activity>,
        mut shutdown: watch::Receiver<bool>,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let caller = Arc::new(Caller::new(Instant::now()));
        let service = service_fn(|request| {
            let (service, caller, attended) = (self.clone(), caller.clone(), activity.request());
            async move {
                let mut answer = service.answer(request, scope, &caller).await;
                if service.is_leaving() {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer.map(|body| Watched::new(body, attended, None)))
            }
        });
        let connection = http1::Builder::new()
            // Who is slow is told by what goes on on the connection, which knows a head that was begun from none.
            .header_read_timeout(None)
            .max_buf_size(MAX_HEAD)
            // Answers are small and written at once: one plain write costs the kernel less than a gathered one.
            .writev(false)
            .serve_connection(TokioIo::new(io), service);
        let finish = async {
            tokio::select! {
                () = told_and_waited(&mut shutdown) => {}
                () = self.workers_have_left(scope) => {}
            }
        };
        tokio::select! {
            () = to_end(connection, http1::Connection::graceful_shutdown, finish) => {}
            why = self.overstays(&activity) => self.closes(why),
        }
        if let Some(answered) = caller.answered() {
            self.handle.left(answered);
        }
    }

    async fn serve_http2<I>(
        self: Arc<Self>,
        io: I,
        scope: Scope,
        activity: Arc<Activity>,
        mut shutdown: watch::Receiver<bool>,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request| {
            let service = self.clone();
            let counted = Counted::within(&self, self.limits.connections, |service| &service.streams);
            let attended = activity.request();
            async move {
                // The client may try again: nothing has been done for it.
                let counted = counted.ok_or(h2::Error::from(h2::Reason::REFUSED_STREAM))?;
                // Many requests go on at once on such a connection: what came before says nothing of the next.
                let caller = Arc::new(Caller::new(Instant::now()));
                let answer = service.answer(request, scope, &caller).await;
                Ok::<_, h2::Error>(answer.map(|body| Watched::new(body, attended, Some(counted))))
            }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .max_concurrent_streams(MAX_STREAMS)
            .max_send_buf_size(MAX_HEAD)
            .initial_connection_window_size(WINDOW)
            .initial_stream_window_size(WINDOW)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .serve_connection(TokioIo::new(io), service);
        // It can tell the client which requests it has not seen.
        let finish = async {
            tokio::select! {
                () = told(&mut shutdown) => {}
                () = self.workers_have_left(scope) => {}
                why = self.overstays(&activity) => self.closes(why),
            }
        };
        tokio::select! {
            () = to_end(connection, http2::Connection::graceful_shutdown, finish) => {}
            () = activity.is_left_unread() => self.closes(Overstayed::Unread),
        }
    }

    /// Resolves when no worker has been there for a while that stays, since whoever was last there was told to stop: as a
    /// sidecar, the proxy is told only after it. Clients that come are admitted all the same, since another may come. Who
    /// looks at the proxy itself has nowhere else to go.
    async fn workers_have_left(&self, scope: Scope) {
        if scope == Scope::Admin {
            return std::future::pending().await;
        }
        loop {
            let since = self.handle.workers_leave().await;
            tokio::time::sleep(LINGER).await;
            if self.handle.workers_leaving() == Some(since) {
                return;
            }
        }
    }

    async fn overstays(&self, activity: &Activity) -> Overstayed {
        let few = self.limits.connections / 4;
        let crowded = || self.connections.load(Relaxed) > self.limits.connections - few;
        activity.overstayed(crowded).await
    }

    fn closes(&self, why: Overstayed) {
        let counter = match why {
            Overstayed::Idle => &self.metrics.connections_closed_idle,
            Overstayed::Head => &self.metrics.connections_closed_head,
            Overstayed::Unread => &self.metrics.connections_closed_unread,
        };
        counter.increment(1);
        debug!(%why, "a connection is closed");
    }
}

/// One of something that a service counts, until it is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    service: Arc<Service>,
    counter: fn(&Service) -> &AtomicUsize,
}

impl Counted {
    fn one_more(service: &Arc<Service>, counter: fn(&Service) -> &AtomicUsize) -> Self {
        counter(service).fetch_add(1, Relaxed);
        Self { service: service.clone(), counter }
    }

    /// The same, unless there are so many.
    fn within(service: &Arc<Service>, most: usize, counter: fn(&Service) -> &AtomicUsize) -> Option<Self> {
        let one = Self::one_more(service, counter);
        (counter(service).load(Relaxed) <= most).then_some(one)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.counter)(&self.service).fetch_sub(1, Relaxed);
    }
}

/// Serves a connection until its client closes it, or until it is told to `finish` and has answered what is in progress.
async fn to_end<C>(connection: C, finish: impl FnOnce(Pin<&mut C>), shutdown: impl Future<Output = ()>)
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        // What has come is read first: a connection with a request is not idle.
        biased;
        ended = connection.as_mut() => ended,
        () = shutdown => {
            finish(connection.as_mut());
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended early");
    }
}

/// The same, and then leaves a request that is on its way the time to come: a client that has no answer yet cannot tell a
/// connection that was closed from a request that was lost.
async fn told_and_waited(shutdown: &mut watch::Receiver<bool>) {
    told(shutdown).await;
    tokio::time::sleep(LINGER).await;
}

/// Resolves when the value is true, or its sender is gone.
async fn told(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|&told| told).await;
}
