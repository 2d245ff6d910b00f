//! A fast writer for JSON strings. A search for characters that must be escaped, byte by byte, is a large part of the cost
//! of a small request. Most texts have no such character, and a check of many bytes at a time finds that out.

use bytes::BufMut;

/// Appends a text as a JSON string (RFC 8259, section 7). The bytes are the same as those that `serde_json` writes.
pub fn put_string(text: &str, out: &mut impl BufMut) {
    if is_plain(text.as_bytes()) {
        out.put_u8(b'"');
        out.put_slice(text.as_bytes());
        out.put_u8(b'"');
    } else {
        // This cannot fail: every string can be written as JSON, and a buffer in memory accepts all bytes.
        let _ = serde_json::to_writer(out.writer(), text);
    }
}

/// Returns whether no byte must be escaped. The loop has no early exit, so that the compiler can check many bytes at once.
#[allow(clippy::needless_bitwise_bool, reason = "without branches it is many times faster")]
fn is_plain(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |plain, &byte| plain & (byte >= 0x20) & (byte != b'"') & (byte != b'\\'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn put(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        put_string(text, &mut out);
        out
    }

    #[test]
    fn every_character_is_written_as_serde_json_writes_it() {
        for character in ('\u{0}'..='\u{ff}').chain(['\u{2028}', '\u{1f600}']) {
            let text = format!("some words before {character} and some after it");
            assert_eq!(put(&text), serde_json::to_vec(&text).unwrap(), "{character:?}");
        }
    }

    proptest! {
        #[test]
        fn texts_are_written_as_serde_json_writes_them(text in any::<String>()) {
            prop_assert_eq!(put(&text), serde_json::to_vec(&text).unwrap());
        }
    }
}
