//! The access log: one line for every request that generates.
//!
//! The lines look like those of `tracing`, but are not written by it: its formatting of a dozen fields takes a fifth of the time
//! that a small request takes the proxy in all. The lines are collected, and many leave in one write. `RUST_LOG` switches them
//! on or off with the target `pillion_proxy::request`, at level INFO.

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use pillion_process::log::LogFormat;
use serde::Serialize;
use tokio::time::interval;
use tracing::{Level, enabled};

/// The longest time for which lines are collected.
const INTERVAL: Duration = Duration::from_millis(100);
/// Bytes at which the lines leave at once.
const FULL: usize = 32 * 1024;
const TARGET: &str = "pillion_proxy::request";

/// The fields of a line. None holds a text.
#[derive(Debug, Serialize)]
pub(crate) struct Line<'a> {
    pub request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<&'a str>,
    pub endpoint: &'static str,
    /// None if the client went away before there was an answer.
    pub status: Option<u16>,
    pub stream: bool,
    pub texts: usize,
    /// From the head to the end of the answer.
    pub duration_ms: f64,
    /// Until the last text left the queue.
    pub queue_ms: f64,
    pub batch_size: usize,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub reason: &'static str,
}

/// A line with the fields of all log lines.
#[derive(Serialize)]
struct Dated<'a> {
    timestamp: String,
    level: &'static str,
    message: &'static str,
    #[serde(flatten)]
    line: &'a Line<'a>,
    target: &'static str,
}

/// Collects the requests' lines.
#[derive(Debug)]
pub struct RequestLog {
    format: LogFormat,
    lines: Mutex<Vec<u8>>,
}

impl RequestLog {
    /// Writes to standard error, as long as [`run`](Self::run) does.
    pub fn new(format: LogFormat) -> Self {
        Self { format, lines: Mutex::default() }
    }

    /// Whether lines are written.
    pub(crate) fn is_on() -> bool {
        enabled!(target: TARGET, Level::INFO)
    }

    /// Adds a line.
    pub(crate) fn write(&self, line: &Line<'_>, now: SystemTime) {
        let mut lines = self.lock();
        let timestamp = humantime::format_rfc3339_micros(now);
        // Writing to a vector cannot fail.
        let _ = match self.format {
            LogFormat::Json => {
                let timestamp = timestamp.to_string();
                let dated = Dated { timestamp, level: "INFO", message: "request", line, target: TARGET };
                serde_json::to_writer(&mut *lines, &dated).map_err(io::Error::from)
            }
            LogFormat::Text => text(&mut lines, line, &timestamp),
        };
        lines.push(b'\n');
        if lines.len() >= FULL {
            send(&mut lines);
        }
    }

    /// Sends the lines collected so far.
    pub fn flush(&self) {
        send(&mut self.lock());
    }

    /// Sends the lines again and again, for ever.
    pub async fn run(&self) {
        let mut tick = interval(INTERVAL);
        loop {
            tick.tick().await;
            self.flush();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send(lines: &mut Vec<u8>) {
    if !lines.is_empty() {
        // A failure cannot be reported: it would go the same way.
        let _ = io::stderr().write_all(lines);
        lines.clear();
    }
}

fn text(out: &mut Vec<u8>, line: &Line<'_>, timestamp: &impl std::fmt::Display) -> io::Result<()> {
    let Line { request_id, trace_id, endpoint, status, stream, texts, .. } = line;
    let Line { duration_ms, queue_ms, batch_size, prompt_tokens, completion_tokens, reason, .. } = line;
    write!(out, "{timestamp}  INFO {TARGET}: request request_id={request_id}")?;
    if let Some(trace_id) = trace_id {
        write!(out, " trace_id={trace_id}")?;
    }
    write!(out, " endpoint={endpoint}")?;
    if let Some(status) = status {
        write!(out, " status={status}")?;
    }
    write!(
        out,
        " stream={stream} texts={texts} duration_ms={duration_ms} queue_ms={queue_ms} batch_size={batch_size} \
        prompt_tokens={prompt_tokens} completion_tokens={completion_tokens} reason={reason}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(format: LogFormat) -> String {
        let log = RequestLog::new(format);
        let line = Line {
            request_id: "r1",
            trace_id: Some("0af7"),
            endpoint: "/generate",
            status: Some(200),
            stream: false,
            texts: 2,
            duration_ms: 12.5,
            queue_ms: 0.031,
            batch_size: 7,
            prompt_tokens: 5,
            completion_tokens: 20,
            reason: "length",
        };
        log.write(&line, SystemTime::UNIX_EPOCH + Duration::from_millis(1500));
        String::from_utf8(log.lock().clone()).unwrap()
    }

    #[test]
    fn a_line_for_people_has_every_field() {
        assert_eq!(
            written(LogFormat::Text),
            "1970-01-01T00:00:01.500000Z  INFO pillion_proxy::request: request request_id=r1 trace_id=0af7 \
            endpoint=/generate status=200 stream=false texts=2 duration_ms=12.5 queue_ms=0.031 batch_size=7 \
            prompt_tokens=5 completion_tokens=20 reason=length\n"
        );
    }

    #[test]
    fn a_line_for_programs_is_an_object() {
        let line: serde_json::Value = serde_json::from_str(&written(LogFormat::Json)).unwrap();
        assert_eq!(line["timestamp"], "1970-01-01T00:00:01.500000Z");
        assert_eq!(
            (&line["level"], &line["message"], &line["queue_ms"]),
            (&"INFO".into(), &"request".into(), &0.031.into())
        );
        assert_eq!(line["target"], TARGET);
    }

    #[test]
    fn lines_are_collected_and_do_not_grow_without_bound() {
        let log = RequestLog::new(LogFormat::Text);
        log.lock().extend(vec![b' '; 100]);
        log.flush();
        assert!(log.lock().is_empty());
    }
}
