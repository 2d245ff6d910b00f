//! JSON bodies and server-sent events (WHATWG HTML, section 9.2) as bytes.

use serde::Serialize;

/// A value as a JSON body.
pub(super) fn json(value: &impl Serialize) -> Vec<u8> {
    // The types that are written here have no maps with other keys than strings, so writing them cannot fail.
    serde_json::to_vec(value).unwrap_or_default()
}

/// Appends one event: its data is JSON, which holds no line breaks.
pub(super) fn event(out: &mut Vec<u8>, name: Option<&str>, data: &impl Serialize) {
    if let Some(name) = name {
        out.extend(b"event: ");
        out.extend(name.as_bytes());
        out.push(b'\n');
    }
    out.extend(b"data: ");
    // As above.
    let _ = serde_json::to_writer(&mut *out, data);
    out.extend(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_a_name_where_it_needs_one() {
        let mut out = Vec::new();
        event(&mut out, None, &"a\nb");
        event(&mut out, Some("error"), &1);
        assert_eq!(String::from_utf8(out).unwrap(), "data: \"a\\nb\"\n\nevent: error\ndata: 1\n\n");
    }
}
