//! Request ids: the client's own, or a generated one.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

pub(super) static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Generates ids for requests without one. Ids are unique within a process, and two processes generate different ones.
#[derive(Debug)]
pub(super) struct RequestIds {
    base: u64,
    next: AtomicU64,
}

impl RequestIds {
    pub(super) fn new() -> Self {
        use std::hash::{BuildHasher, RandomState};
        Self { base: RandomState::new().hash_one(std::process::id()), next: AtomicU64::new(0) }
    }

    /// The client's own id if it is valid (1 to 128 visible ASCII characters), else a new one.
    pub(super) fn choose(&self, headers: &HeaderMap) -> HeaderValue {
        let valid = |value: &&HeaderValue| {
            (1..=128).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
        };
        if let Some(value) = headers.get(&X_REQUEST_ID).filter(valid) {
            return value.clone();
        }
        self.base.wrapping_add(self.next.fetch_add(1, Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_valid_request_id_is_kept_and_any_other_is_replaced() {
        let ids = RequestIds::new();
        let choose = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(&X_REQUEST_ID, HeaderValue::from_bytes(value).unwrap());
            ids.choose(&headers)
        };
        assert_eq!(choose(b"abc-1"), "abc-1");
        for invalid in [&b""[..], b"two words", &[b'x'; 129], "\u{e9}".as_bytes()] {
            assert_ne!(choose(invalid).as_bytes(), invalid);
        }
        assert_ne!(ids.choose(&HeaderMap::new()), ids.choose(&HeaderMap::new()));
    }
}
