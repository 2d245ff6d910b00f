//! Streams answers as server-sent events in the body of a response.
//!
//! When the connection can take more, all new events become one piece of the body. So no event waits for others, many small
//! events cost one write, and a client that reads slowly gets fewer and larger events.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::info;

use super::record::Record;
use super::response::{Answer, event_stream};
use crate::api::call::Renderer;
use crate::api::error::ApiError;
use crate::domain::StreamEvent;
use crate::scheduler::Stream;

/// The longest that the head waits for the first event. Until the head is sent, a failure can still become a status.
const HEAD_DELAY: Duration = Duration::from_secs(5);
/// After this time without an event a comment is sent, so that no proxy on the way closes the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Answers with a stream of events, or with an error if all texts fail before any of them produces text.
pub(super) async fn answer(
    mut events: Stream,
    renderer: Box<dyn Renderer>,
    mut record: Record,
    log_texts: bool,
) -> Answer {
    let until = Instant::now() + HEAD_DELAY;
    let mut first = Vec::new();
    // Texts fail one after the other. As long as all events are failures, the request as a whole may still fail.
    while first.len() < record.texts() && first.iter().all(is_failure) {
        match timeout_at(until, events.next()).await {
            Ok(Some(more)) => first.extend(more),
            _ => break,
        }
    }
    if let Some(error) = request_error(&first, record.texts()) {
        first.iter().filter_map(|event| event.outcome.as_ref()).for_each(|outcome| record.ended(outcome));
        return record.refuse(&error);
    }
    let head = record.answered(event_stream());
    let mut writer = Box::new(SseWriter { events, renderer, record, log_texts });
    let mut out = Vec::with_capacity(256);
    writer.renderer.begin(&mut out);
    writer.write(first, &mut out);
    let pieces = stream::unfold((Some(writer), out), |(writer, ready)| async move {
        let (writer, piece) = if ready.is_empty() { writer?.next().await } else { (writer, ready) };
        let is_over = writer.is_none() && piece.is_empty();
        (!is_over).then(|| (Ok(Frame::data(Bytes::from(piece))), (writer, Vec::new())))
    });
    head.map(|_| StreamBody::new(pieces).boxed_unsync())
}

/// Whether an event is a failure without text.
fn is_failure(event: &StreamEvent) -> bool {
    event.piece.is_empty() && matches!(event.outcome, Some(Err(_)))
}

/// The first text's error, if all texts of the request have failed without text.
fn request_error(events: &[StreamEvent], texts: usize) -> Option<ApiError> {
    let failures = events.iter().filter(|event| is_failure(event));
    let first = failures.clone().min_by_key(|event| event.text)?.outcome.as_ref()?.as_ref().err()?;
    (failures.count() == texts).then(|| first.clone().into())
}

/// Writes the events of a request as pieces of the body.
struct SseWriter {
    events: Stream,
    renderer: Box<dyn Renderer>,
    record: Record,
    log_texts: bool,
}

impl SseWriter {
    /// The next piece of the body, and the writer if another piece follows.
    async fn next(mut self: Box<Self>) -> (Option<Box<Self>>, Vec<u8>) {
        let mut out = Vec::with_capacity(256);
        match timeout(KEEP_ALIVE, self.events.next()).await {
            Err(_) => out.extend(b": keep-alive\n\n"),
            Ok(Some(events)) => self.write(events, &mut out),
            Ok(None) => {
                self.renderer.end(&mut out);
                return (None, out);
            }
        }
        (Some(self), out)
    }

    fn write(&mut self, events: Vec<StreamEvent>, out: &mut Vec<u8>) {
        for StreamEvent { text, piece, outcome } in events {
            if self.log_texts {
                info!(request_id = self.record.request_id(), text, piece, "sending a piece of an answer");
            }
            if let Some(outcome) = &outcome {
                self.record.ended(outcome);
            }
            match outcome {
                None => self.renderer.piece(text, &piece, None, out),
                Some(Ok(completion)) => self.renderer.piece(text, &piece, Some(&completion), out),
                Some(Err(failure)) => {
                    if !piece.is_empty() {
                        self.renderer.piece(text, &piece, None, out);
                    }
                    self.renderer.failed(text, failure.into(), self.record.request_id(), out);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Failure;

    fn event(text: usize, piece: &str, failure: Option<Failure>) -> StreamEvent {
        StreamEvent { text, piece: piece.into(), outcome: failure.map(Err) }
    }

    #[test]
    fn a_request_fails_if_all_its_texts_fail_without_text() {
        let deadline = || Some(Failure::Deadline);
        let error = |events: &[StreamEvent], texts| request_error(events, texts).map(|error| error.code());
        assert_eq!(error(&[event(1, "", deadline()), event(0, "", Some(Failure::NoWorker))], 2), Some("no_worker"));
        assert_eq!(error(&[event(0, "", deadline())], 2), None);
        assert_eq!(error(&[event(0, "a", deadline())], 1), None);
        assert_eq!(error(&[event(0, "a", None)], 1), None);
        assert_eq!(error(&[], 1), None);
    }
}
