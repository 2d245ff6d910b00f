//! A request's body, of which the rest is read and thrown away if the request is answered before the body has come.
//!
//! If the connection were closed with unread bytes on it, the system would reset it, and the client could lose the answer. So
//! the client may send on for a while. A connection whose client has sent the whole body by then goes on.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::EXPECT;
use hyper::{Request, Version};
use tokio::runtime;
use tokio::time::timeout;

use super::activity::Activity;

/// How long a client may go on sending a body after the answer.
const SENDS_ON: Duration = Duration::from_secs(5);

/// The body of a request. If it is dropped before its end, the rest is read and thrown away.
#[derive(Debug)]
pub(super) struct RequestBody {
    /// `None` from the body's end on.
    body: Option<Incoming>,
    /// Over HTTP/2, the end of one request does not end the connection.
    is_http2: bool,
    /// Set if the client waits to be told before it sends the body (`expect: 100-continue`) and was not told. The first poll
    /// tells it.
    unsent: Option<Arc<AtomicBool>>,
    activity: Arc<Activity>,
}

impl RequestBody {
    /// The same request with such a body, and a flag that says, once the request was answered, whether the client waits in vain
    /// to be told to send its body.
    pub(super) fn of(request: Request<Incoming>, activity: &Arc<Activity>) -> (Request<Self>, Option<Arc<AtomicBool>>) {
        let is_http2 = request.version() == Version::HTTP_2;
        let expects = request.version() == Version::HTTP_11 && request.headers().contains_key(EXPECT);
        let is_over = request.body().is_end_stream();
        let waits = (expects && !is_over).then(|| Arc::new(AtomicBool::new(true)));
        let (unsent, activity) = (waits.clone(), activity.clone());
        let request = request.map(|body| Self { body: (!is_over).then_some(body), is_http2, unsent, activity });
        (request, waits)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(unsent) = self.unsent.take() {
            unsent.store(false, Relaxed);
        }
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = Pin::new(&mut *body).poll_frame(context);
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) || body.is_end_stream() {
            self.body = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let reads_on = !self.is_http2 && self.unsent.is_none();
        let Some(mut body) = self.body.take().filter(|_| reads_on) else { return };
        // While the body is read, the request counts as in flight.
        let in_flight = self.activity.begin_request();
        // There is no runtime when the process ends.
        if let Ok(runtime) = runtime::Handle::try_current() {
            runtime.spawn(async move {
                let rest = async { while let Some(Ok(_)) = body.frame().await {} };
                let _ = timeout(SENDS_ON, rest).await;
                drop(in_flight);
            });
        }
    }
}
