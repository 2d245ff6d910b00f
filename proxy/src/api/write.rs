//! Writes JSON bodies and server-sent events (WHATWG HTML, section 9.2).

use pillion_protocol::json::put_string;
use serde::Serialize;

/// A value as a JSON body.
pub(super) fn json(value: &impl Serialize) -> Vec<u8> {
    // Serialising fails only for maps whose keys are not strings, and none of these types has one.
    let mut body = Vec::with_capacity(512);
    let _ = serde_json::to_writer(&mut body, value);
    body
}

/// A JSON body whose first field is `text`, and then the fields of the object `after`, which has at least one.
///
/// A text is long and seldom has a character to escape. [`put_string`] checks that for many bytes at a time, which saves a tenth of
/// the instructions that a request takes with an answer of 500 bytes (`tests/bench/README.md`).
pub(super) fn json_with_text(text: &str, after: &impl Serialize) -> Vec<u8> {
    let mut body = Vec::with_capacity(text.len() + 256);
    body.extend(b"{\"text\":");
    put_string(text, &mut body);
    let brace = body.len();
    // Serialising cannot fail, as in `json`.
    let _ = serde_json::to_writer(&mut body, after);
    body[brace] = b',';
    body
}

/// Appends one event. Its data is JSON without line breaks, so it fits on one line.
pub(super) fn event(out: &mut Vec<u8>, name: Option<&str>, data: &impl Serialize) {
    if let Some(name) = name {
        out.extend(b"event: ");
        out.extend(name.as_bytes());
        out.push(b'\n');
    }
    out.extend(b"data: ");
    // Serialising cannot fail, as in `json`.
    let _ = serde_json::to_writer(&mut *out, data);
    out.extend(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_a_name_only_if_one_is_given() {
        let mut out = Vec::new();
        event(&mut out, None, &"a\nb");
        event(&mut out, Some("error"), &1);
        assert_eq!(String::from_utf8(out).unwrap(), "data: \"a\\nb\"\n\nevent: error\ndata: 1\n\n");
    }
}
