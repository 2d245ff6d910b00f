//! A response body that tracks whether the client reads it. The request is in flight until the body is dropped, and unread
//! while the client does not take a part that is ready.

use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use super::activity::InFlightGuard;

/// Reports to [`Activity`](super::activity::Activity) whether the client reads.
#[derive(Debug)]
pub(super) struct TrackedBody<B> {
    body: B,
    in_flight: InFlightGuard,
    /// The place of a request over HTTP/2. Over HTTP/1.1, the place of the connection is enough.
    _place: Option<OwnedSemaphorePermit>,
}

impl<B> TrackedBody<B> {
    pub(super) fn new(body: B, in_flight: InFlightGuard, place: Option<OwnedSemaphorePermit>) -> Self {
        Self { body, in_flight, _place: place }
    }
}

impl<B: Body + Unpin> Body for TrackedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        // The connection asks for more only after it has written the last part.
        self.in_flight.set_unread(false);
        let frame = Pin::new(&mut self.body).poll_frame(context);
        self.in_flight.set_unread(matches!(frame, Poll::Ready(Some(_))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
