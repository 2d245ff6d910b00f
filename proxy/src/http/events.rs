//! Answers as they are made: server-sent events (WHATWG HTML, section 9.2) in the body of a response.
//!
//! Whatever is new when the connection can take more goes into one piece of the body. So nothing that is ready waits, many
//! small events cost one write, and a client that reads slowly gets fewer and larger ones.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::info;

use super::Answer;
use super::call::{Shape, Streaming};
use super::record::Record;
use super::response::{Api, ApiError, event_stream};
use crate::job::News;

/// The head waits so long for the first event, because an error can still be told by a status until it is sent.
const HEAD: Duration = Duration::from_secs(5);
/// Without news for so long, a comment is sent: whatever stands between would take the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The answer: an error where nothing of the request went well, else events.
pub(super) async fn answer(
    mut stream: Streaming,
    shape: Box<dyn Shape>,
    mut record: Record,
    api: Api,
    log_answers: bool,
) -> Answer {
    let until = Instant::now() + HEAD;
    let mut first = Vec::new();
    // Texts fail one after the other: as long as nothing went well, the status may still be that of all.
    while first.len() < record.texts() && first.iter().all(is_failure) {
        match timeout_at(until, stream.news()).await {
            Ok(Some(news)) => first.extend(news),
            _ => break,
        }
    }
    if let Some(error) = failed(&first, record.texts()) {
        first.iter().filter_map(|news| news.end.as_ref()).for_each(|end| record.heard(end));
        return record.refuse(error, api);
    }
    let mut answer = event_stream();
    answer = record.answered(answer);
    let mut pen = Box::new(Pen { stream, shape, record, api, log_answers, is_over: false });
    let mut out = Vec::with_capacity(256);
    pen.shape.begin(&mut out);
    pen.write(first, &mut out);
    *answer.body_mut() = AnswerBody::Events(Events { state: State::begin(pen, out) });
    answer
}

/// Whether the text failed, and had said nothing.
fn is_failure(news: &News) -> bool {
    news.piece.is_empty() && matches!(news.end, Some(Err(_)))
}

/// Why the request failed, if all its texts did and none has said anything.
fn failed(news: &[News], texts: usize) -> Option<ApiError> {
    let failures: Vec<_> = news
        .iter()
        .filter(|news| news.piece.is_empty())
        .filter_map(|news| Some((news.text, news.end.as_ref()?.as_ref().err()?)))
        .collect();
    let (_, first) = failures.iter().min_by_key(|(text, _)| *text)?;
    (failures.len() == texts).then(|| ApiError::from((*first).clone()))
}

/// A body: whole, or events.
#[derive(Debug)]
pub enum AnswerBody {
    /// All there.
    Whole(http_body_util::Full<Bytes>),
    /// Coming.
    Events(Events),
}

/// The events of an answer. Dropping it cancels what has not ended.
#[derive(Debug)]
pub struct Events {
    state: State,
}

type Next = Pin<Box<dyn Future<Output = (Option<Box<Pen>>, Bytes)> + Send>>;

enum State {
    /// Ready to be sent.
    Ready(Bytes, Option<Box<Pen>>),
    Waiting(Next),
    Over,
}

impl State {
    fn begin(pen: Box<Pen>, out: Vec<u8>) -> Self {
        if out.is_empty() { Self::next(Some(pen)) } else { Self::Ready(out.into(), Some(pen)) }
    }

    fn next(pen: Option<Box<Pen>>) -> Self {
        pen.map_or(Self::Over, |pen| Self::Waiting(Box::pin(pen.next())))
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ready(..) => "Ready",
            Self::Waiting(_) => "Waiting",
            Self::Over => "Over",
        })
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(whole) => Pin::new(whole).poll_frame(context),
            Self::Events(events) => {
                let bytes = ready!(events.poll(context));
                Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_end_stream(),
            Self::Events(events) => matches!(events.state, State::Over),
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Events(_) => hyper::body::SizeHint::default(),
        }
    }
}

impl Events {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let (pen, bytes) = match &mut self.state {
            State::Over => return Poll::Ready(None),
            State::Ready(bytes, pen) => (pen.take(), std::mem::take(bytes)),
            State::Waiting(next) => ready!(next.as_mut().poll(context)),
        };
        self.state = State::next(pen);
        // The last of it may be empty.
        if bytes.is_empty() && matches!(self.state, State::Over) {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(bytes))
    }
}

/// Writes what is new as events.
struct Pen {
    stream: Streaming,
    shape: Box<dyn Shape>,
    record: Record,
    api: Api,
    log_answers: bool,
    is_over: bool,
}

impl Pen {
    /// The next piece of the body, and the pen where there will be another.
    async fn next(mut self: Box<Self>) -> (Option<Box<Self>>, Bytes) {
        let mut out = Vec::with_capacity(256);
        match timeout(KEEP_ALIVE, self.stream.news()).await {
            Err(_) => out.extend(b": keep-alive\n\n"),
            Ok(Some(news)) => self.write(news, &mut out),
            Ok(None) => {
                self.shape.end(&mut out);
                self.is_over = true;
            }
        }
        let out = out.into();
        if self.is_over { (None, out) } else { (Some(self), out) }
    }

    fn write(&mut self, news: Vec<News>, out: &mut Vec<u8>) {
        for News { text, piece, end } in news {
            if self.log_answers {
                info!(request_id = self.record.request_id(), text, piece, "answering");
            }
            if let Some(end) = &end {
                self.record.heard(end);
            }
            match end {
                None => self.shape.news(text, &piece, None, out),
                Some(Ok(completion)) => self.shape.news(text, &piece, Some(&completion), out),
                Some(Err(failure)) => {
                    if !piece.is_empty() {
                        self.shape.news(text, &piece, None, out);
                    }
                    let error = ApiError::from(failure);
                    self.shape.failed(text, error, self.api, self.record.request_id(), out);
                }
            }
        }
    }
}

/// Writes one event: its data is JSON, which holds no line breaks.
pub(super) fn write(out: &mut Vec<u8>, name: Option<&str>, data: &impl serde::Serialize) {
    if let Some(name) = name {
        out.extend(b"event: ");
        out.extend(name.as_bytes());
        out.push(b'\n');
    }
    out.extend(b"data: ");
    // The types that are written here have no maps with other keys than strings, so writing them cannot fail.
    let _ = serde_json::to_writer(&mut *out, data);
    out.extend(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Failure;

    fn news(text: usize, piece: &str, end: Option<Failure>) -> News {
        News { text, piece: piece.into(), end: end.map(Err) }
    }

    #[test]
    fn a_request_has_failed_where_all_its_texts_have_and_none_has_said_anything() {
        let deadline = || Some(Failure::Deadline);
        let error = |news: &[News], texts| failed(news, texts).map(|error| error.code());
        assert_eq!(error(&[news(1, "", deadline()), news(0, "", Some(Failure::NoWorker))], 2), Some("no_worker"));
        assert_eq!(error(&[news(0, "", deadline())], 2), None);
        assert_eq!(error(&[news(0, "a", deadline())], 1), None);
        assert_eq!(error(&[news(0, "a", None)], 1), None);
        assert_eq!(error(&[], 1), None);
    }

    #[test]
    fn an_event_has_a_name_where_it_needs_one() {
        let mut out = Vec::new();
        write(&mut out, None, &"a\nb");
        write(&mut out, Some("error"), &1);
        assert_eq!(String::from_utf8(out).unwrap(), "data: \"a\\nb\"\n\nevent: error\ndata: 1\n\n");
    }
}
