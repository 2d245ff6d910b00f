//! `traceparent` (W3C Trace Context, level 1) names the trace that a request belongs to. The proxy records no spans. It logs
//! the trace's id and passes the value to the worker, so that the log lines of all programs can be found together.

use hyper::header::{HeaderMap, HeaderName};

/// The longest value that is accepted, in bytes. Version 00 has 55 bytes; later versions may have more.
const MAX_LEN: usize = 256;

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A valid `traceparent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TraceParent(String);

impl TraceParent {
    /// The `traceparent` of a request; `None` if it has none, or an invalid one, which the standard says to ignore.
    pub(super) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(&TRACEPARENT).iter();
        let value = values.next()?.to_str().ok().filter(|value| value.len() <= MAX_LEN)?;
        if values.next().is_some() {
            return None;
        }
        let parts: Vec<&str> = value.split('-').collect();
        let [version, trace, parent, flags, more @ ..] = &parts[..] else { return None };
        let hex = |text: &str, digits: usize| {
            text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let nonzero = |text: &str, digits: usize| hex(text, digits) && text.bytes().any(|byte| byte != b'0');
        // Later versions may have more fields after the flags; version 00 may not.
        let valid_version = hex(version, 2) && *version != "ff" && (*version != "00" || more.is_empty());
        (valid_version && nonzero(trace, 32) && nonzero(parent, 16) && hex(flags, 2)).then(|| Self(value.to_owned()))
    }

    /// The trace's id: 32 hexadecimal digits.
    pub(super) fn trace_id(&self) -> &str {
        &self.0[3..35]
    }
}

impl std::fmt::Display for TraceParent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", value.parse().unwrap());
        TraceParent::from_headers(&headers).map(|trace| trace.trace_id().to_owned())
    }

    #[test]
    fn a_valid_traceparent_is_read_and_any_other_is_ignored() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(of(&format!("00-{trace}-b7ad6b7169203331-01")).as_deref(), Some(trace));
        assert_eq!(of(&format!("cc-{trace}-b7ad6b7169203331-01-more")).as_deref(), Some(trace));
        for wrong in [
            "",
            "00",
            &format!("00-{trace}-b7ad6b7169203331"),
            &format!("00-{trace}-b7ad6b7169203331-01-more"),
            &format!("ff-{trace}-b7ad6b7169203331-01"),
            &format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)),
            &format!("00-{trace}-{}-01", "0".repeat(16)),
            &format!("00-{}-b7ad6b7169203331-01", trace.to_uppercase()),
            &format!("00-{}-b7ad6b7169203331-01", &trace[1..]),
            &format!("cc-{trace}-b7ad6b7169203331-01-{}", "x".repeat(256)),
        ] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn two_traceparents_are_ignored() {
        let mut headers = HeaderMap::new();
        for _ in 0..2 {
            headers.append("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap());
        }
        assert_eq!(TraceParent::from_headers(&headers), None);
    }
}
