//! `traceparent` (W3C Trace Context, level 1): the trace that a request belongs to, so that the lines of all the programs
//! that it went through can be found together. Nothing is traced here; the name is only passed on.

use hyper::header::HeaderMap;

/// The present version's have 55 bytes; a later one's may have more, but are not passed on without bound.
const LONGEST: usize = 256;

/// A `traceparent` of the right form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TraceParent(String);

impl TraceParent {
    /// The one that a request brings; `None` where it brings none, or one that is wrong, which the standard says to ignore.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all("traceparent").iter();
        let value = values.next()?.to_str().ok().filter(|value| value.len() <= LONGEST)?;
        if values.next().is_some() {
            return None;
        }
        let parts: Vec<&str> = value.split('-').collect();
        let [version, trace, parent, flags, more @ ..] = &parts[..] else { return None };
        let hex = |text: &str, digits: usize| {
            text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let named = |text: &str, digits: usize| hex(text, digits) && text.bytes().any(|byte| byte != b'0');
        // Later versions may say more after the flags; this one may not.
        let form = hex(version, 2) && *version != "ff" && (*version != "00" || more.is_empty());
        (form && named(trace, 32) && named(parent, 16) && hex(flags, 2)).then(|| Self(value.to_owned()))
    }

    /// The trace's name: 32 hexadecimal digits.
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
        TraceParent::of(&headers).map(|trace| trace.trace_id().to_owned())
    }

    #[test]
    fn a_sound_one_is_read_and_any_other_ignored() {
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
    fn two_are_none() {
        let mut headers = HeaderMap::new();
        for _ in 0..2 {
            headers.append("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap());
        }
        assert_eq!(TraceParent::of(&headers), None);
    }
}
