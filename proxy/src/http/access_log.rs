//! The access log: one line for every request that generates.
//!
//! The lines look like those of `tracing`, but are not written by it: its formatting of a dozen fields takes a fifth of the time
//! that a small request takes the proxy in all. `RUST_LOG` switches them on or off with the target `pillion_proxy::request`, at
//! level INFO.

use std::io::{self, Write};
use std::time::SystemTime;

use pillion_process::log::{self, LogFormat};
use pillion_protocol::json::put_string;
use tracing::{Level, enabled};

const TARGET: &str = "pillion_proxy::request";

/// The fields of a line. None holds a text.
#[derive(Debug)]
pub(super) struct Line<'a> {
    pub request_id: &'a str,
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
    /// The field because of which the request was refused.
    pub param: Option<&'a str>,
}

/// Whether lines are written.
pub(super) fn is_on() -> bool {
    enabled!(target: TARGET, Level::INFO)
}

/// Writes a line.
pub(super) fn write(format: LogFormat, line: &Line<'_>, now: SystemTime) {
    // Writing to a vector cannot fail.
    log::collect(|out| drop(append(out, format, line, now)));
}

fn append(out: &mut Vec<u8>, format: LogFormat, line: &Line<'_>, now: SystemTime) -> io::Result<()> {
    let Line { request_id, trace_id, endpoint, status, stream, texts, .. } = line;
    let Line { duration_ms, queue_ms, batch_size, prompt_tokens, completion_tokens, reason, param, .. } = line;
    let timestamp = humantime::format_rfc3339_micros(now);
    match format {
        LogFormat::Text => {
            write!(out, "{timestamp}  INFO {TARGET}: request request_id={request_id}")?;
            trace_id.map_or(Ok(()), |trace_id| write!(out, " trace_id={trace_id}"))?;
            write!(out, " endpoint={endpoint}")?;
            status.map_or(Ok(()), |status| write!(out, " status={status}"))?;
            write!(
                out,
                " stream={stream} texts={texts} duration_ms={duration_ms} queue_ms={queue_ms} batch_size={batch_size} \
                prompt_tokens={prompt_tokens} completion_tokens={completion_tokens} reason={reason}"
            )?;
            param.map_or(Ok(()), |param| write!(out, " param={param}"))?;
            writeln!(out)
        }
        LogFormat::Json => {
            write!(out, r#"{{"timestamp":"{timestamp}","level":"INFO","message":"request","request_id":"#)?;
            put_string(request_id, out);
            trace_id.map_or(Ok(()), |trace_id| write!(out, r#","trace_id":"{trace_id}""#))?;
            write!(out, r#","endpoint":"{endpoint}","status":"#)?;
            match status {
                Some(status) => write!(out, "{status}")?,
                None => out.extend(b"null"),
            }
            write!(out, r#","stream":{stream},"texts":{texts},"duration_ms":{duration_ms},"queue_ms":{queue_ms}"#)?;
            write!(out, r#","batch_size":{batch_size},"prompt_tokens":{prompt_tokens}"#)?;
            write!(out, r#","completion_tokens":{completion_tokens},"reason":"{reason}""#)?;
            param.map_or(Ok(()), |param| write!(out, r#","param":"{param}""#))?;
            writeln!(out, r#","target":"{TARGET}"}}"#)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn written(format: LogFormat, request_id: &str, trace_id: Option<&str>, status: Option<u16>) -> String {
        let param = status.is_none().then_some("top_p");
        let line = Line {
            request_id,
            trace_id,
            endpoint: "/generate",
            status,
            stream: false,
            texts: 2,
            duration_ms: 12.5,
            queue_ms: 0.031,
            batch_size: 7,
            prompt_tokens: 5,
            completion_tokens: 20,
            reason: "length",
            param,
        };
        let mut out = Vec::new();
        append(&mut out, format, &line, SystemTime::UNIX_EPOCH + Duration::from_millis(1500)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_for_people_has_every_field() {
        assert_eq!(
            written(LogFormat::Text, "r1", Some("0af7"), Some(200)),
            "1970-01-01T00:00:01.500000Z  INFO pillion_proxy::request: request request_id=r1 trace_id=0af7 \
            endpoint=/generate status=200 stream=false texts=2 duration_ms=12.5 queue_ms=0.031 batch_size=7 \
            prompt_tokens=5 completion_tokens=20 reason=length\n"
        );
    }

    #[test]
    fn a_line_for_programs_is_an_object() {
        let object = |request_id: &str, trace_id: Option<&str>, status: Option<u16>| {
            serde_json::from_str::<serde_json::Value>(&written(LogFormat::Json, request_id, trace_id, status)).unwrap()
        };
        let mut expected = serde_json::json!({
            "timestamp": "1970-01-01T00:00:01.500000Z", "level": "INFO", "message": "request", "target": TARGET,
            "request_id": "a\"b\\", "trace_id": "0af7", "endpoint": "/generate", "status": 200, "stream": false,
            "texts": 2, "duration_ms": 12.5, "queue_ms": 0.031, "batch_size": 7, "prompt_tokens": 5,
            "completion_tokens": 20, "reason": "length",
        });
        assert_eq!(object("a\"b\\", Some("0af7"), Some(200)), expected);
        expected["status"] = serde_json::Value::Null;
        expected["param"] = "top_p".into();
        expected.as_object_mut().unwrap().remove("trace_id");
        assert_eq!(object("a\"b\\", None, None), expected);
    }
}
