//! Server-sent events (WHATWG HTML, section 9.2), read as they come.

use std::collections::VecDeque;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use serde_json::Value;
use tokio::time::timeout;

use crate::contract;

/// The longest wait for an event.
const BOUND: Duration = Duration::from_secs(120);

/// An answer of events. Dropping it gives the request up.
#[derive(Debug)]
pub struct Events {
    path: String,
    /// The head's fields.
    pub headers: HeaderMap,
    body: Incoming,
    parser: Parser,
    ready: VecDeque<Event>,
}

/// An event, or a comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its name; empty where it has none.
    pub name: String,
    /// Its data; of a comment what it says.
    pub data: String,
    /// Whether it is a comment.
    pub is_comment: bool,
}

impl Event {
    /// Its data as JSON.
    ///
    /// # Panics
    /// It is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Events {
    pub(crate) fn new(path: &str, headers: HeaderMap, body: Incoming) -> Self {
        Self { path: path.to_owned(), headers, body, parser: Parser::default(), ready: VecDeque::new() }
    }

    /// The next event or comment; `None` at the answer's end.
    ///
    /// # Panics
    /// The answer breaks off, or nothing comes.
    pub async fn next(&mut self) -> Option<Event> {
        while self.ready.is_empty() {
            let frame = timeout(BOUND, self.body.frame()).await.expect("an event in time")?;
            let data = frame.expect("the body does not break off").into_data().unwrap_or_default();
            self.parser.push(&data, &mut self.ready);
        }
        let event = self.ready.pop_front()?;
        contract::hold_event(&self.path, &event);
        Some(event)
    }

    /// All events that are left, comments excepted.
    ///
    /// # Panics
    /// The answer breaks off, or nothing comes.
    pub async fn rest(mut self) -> Vec<Event> {
        let mut all = Vec::new();
        while let Some(event) = self.next().await {
            if !event.is_comment {
                all.push(event);
            }
        }
        assert!(self.parser.is_between(), "half an event at the end");
        all
    }
}

/// Bytes into events. Takes line feeds alone for ends of lines, since nothing else is sent here.
#[derive(Debug, Default)]
pub struct Parser {
    unread: Vec<u8>,
}

impl Parser {
    /// Takes bytes, and appends the events that they complete.
    ///
    /// # Panics
    /// A line is none that an event may have.
    pub fn push(&mut self, bytes: &[u8], events: &mut VecDeque<Event>) {
        self.unread.extend(bytes);
        while let Some(end) = self.unread.windows(2).position(|two| two == b"\n\n") {
            let block: Vec<u8> = self.unread.drain(..end + 2).collect();
            events.push_back(event(&String::from_utf8(block).expect("UTF-8")));
        }
    }

    /// Whether no event is begun.
    pub fn is_between(&self) -> bool {
        self.unread.is_empty()
    }
}

fn event(block: &str) -> Event {
    let mut event = Event { name: String::new(), data: String::new(), is_comment: false };
    for line in block.lines().filter(|line| !line.is_empty()) {
        match line.split_once(": ") {
            Some(("", comment)) => (event.is_comment, event.data) = (true, comment.to_owned()),
            Some(("event", name)) => name.clone_into(&mut event.name),
            Some(("data", data)) => event.data.push_str(data),
            _ => panic!("no line of an event: {line:?}"),
        }
    }
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_however_they_are_cut() {
        let text = "data: {\"text\":\"\u{e9}\"}\n\n: keep-alive\n\nevent: error\ndata: 1\n\n";
        for size in 1..text.len() {
            let (mut parser, mut events) = (Parser::default(), VecDeque::new());
            text.as_bytes().chunks(size).for_each(|bytes| parser.push(bytes, &mut events));
            assert!(parser.is_between());
            let said: Vec<_> = events.iter().map(|event| (&*event.name, &*event.data, event.is_comment)).collect();
            let expected = [("", "{\"text\":\"\u{e9}\"}", false), ("", "keep-alive", true), ("error", "1", false)];
            assert_eq!(said, expected);
        }
    }
}
