//! The server that is loaded, the requests that it gets, and what must be in the answers.

use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Uri};
use serde_json::Value;

/// Why no request can be sent to a URL.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The text is not a URL.
    #[error("no URL")]
    Url(#[from] hyper::http::Error),
    /// The URL has another scheme than `http`, or names no host.
    #[error("not of the form http://HOST:PORT/PATH")]
    Form,
    /// The URL's host has no address.
    #[error("the host has no address")]
    Host,
}

/// A server's address, and the kinds of requests that are sent to it. [`Target::or`] adds a kind.
#[derive(Clone, Debug)]
pub struct Target {
    address: SocketAddr,
    /// The part that all requests share: everything except the body.
    head: Request<()>,
    kinds: Vec<Kind>,
}

/// A kind of request.
#[derive(Clone, Debug)]
pub struct Kind {
    /// The kind's name. Requests of kinds with the same name are counted together.
    pub name: String,
    /// The kind's share of all requests is its weight divided by the sum of all weights.
    pub weight: f64,
    /// How long a client waits for the answer before it goes away. `None` means until the answer comes.
    pub patience: Option<Duration>,
    request: Request<Full<Bytes>>,
    expected: Option<Expected>,
}

/// A field that the answer must have, with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    pointer: String,
    value: Value,
}

/// A field was not given as `PATH=VALUE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not of the form PATH=VALUE")]
pub struct ExpectedError;

impl Target {
    /// A target at this URL, still without any kind of request. The host's address is looked up here, once.
    ///
    /// # Errors
    /// No request can be sent to the URL.
    pub fn new(url: &str) -> Result<Self, TargetError> {
        let url: Uri = url.parse().map_err(hyper::http::Error::from)?;
        let host = url.host().filter(|_| url.scheme_str() == Some("http")).ok_or(TargetError::Form)?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let mut addresses = (bare, url.port_u16().unwrap_or(80)).to_socket_addrs().map_err(|_| TargetError::Host)?;
        let address = addresses.next().ok_or(TargetError::Host)?;
        let authority = url.authority().map_or("", |authority| authority.as_str());
        let head = Request::builder()
            .method(Method::POST)
            .uri(url.path_and_query().map_or("/", |path| path.as_str()))
            .header(HOST, authority)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(())?;
        Ok(Self { address, head, kinds: Vec::new() })
    }

    /// Adds a kind of request, which posts the JSON `body`. The answer must have the field `expected`, if one is given.
    #[must_use]
    pub fn or(mut self, name: &str, weight: f64, body: String, expected: Option<Expected>) -> Self {
        let request = self.head.clone().map(|()| Full::new(Bytes::from(body)));
        self.kinds.push(Kind { name: name.to_owned(), weight, patience: None, request, expected });
        self
    }

    /// Sets how long clients wait for the answers to the kind that was added last.
    #[must_use]
    pub fn with_patience(mut self, patience: Option<Duration>) -> Self {
        if let Some(kind) = self.kinds.last_mut() {
            kind.patience = patience;
        }
        self
    }

    /// The server's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The kinds of requests.
    pub fn kinds(&self) -> &[Kind] {
        &self.kinds
    }
}

impl Kind {
    /// A new request of this kind. It shares the bytes of its body with the others.
    pub(super) fn request(&self) -> Request<Full<Bytes>> {
        self.request.clone()
    }

    /// Whether a field of the answer is checked, so that its body must be kept.
    pub(super) fn expects(&self) -> bool {
        self.expected.is_some()
    }

    /// Whether the answer has the expected field.
    pub(super) fn is_met(&self, body: &[u8]) -> bool {
        self.expected.as_ref().is_none_or(|expected| expected.is_in(body))
    }
}

impl Expected {
    fn is_in(&self, body: &[u8]) -> bool {
        serde_json::from_slice::<Value>(body).is_ok_and(|answer| answer.pointer(&self.pointer) == Some(&self.value))
    }
}

/// Reads a path of names and positions, and a value, such as `usage.completion_tokens=10` or `texts.0=yes`. A value
/// that is not JSON is taken as a string.
impl FromStr for Expected {
    type Err = ExpectedError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, value) = text.split_once('=').filter(|(path, _)| !path.is_empty()).ok_or(ExpectedError)?;
        // The dotted path is a short form of a JSON Pointer (RFC 6901).
        let pointer = format!("/{}", path.replace('~', "~0").replace('/', "~1").replace('.', "/"));
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        Ok(Self { pointer, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_path_and_compared_as_json() {
        let is_in = |expected: &str, body: &str| expected.parse::<Expected>().unwrap().is_in(body.as_bytes());
        let body = r#"{"usage":{"completion_tokens":10},"texts":["yes","10"],"a/b":null}"#;
        for expected in ["usage.completion_tokens=10", "texts.0=yes", "texts.0=\"yes\"", "texts.1=\"10\"", "a/b=null"] {
            assert!(is_in(expected, body), "{expected}");
        }
        for expected in ["usage.completion_tokens=11", "usage=10", "texts.1=10", "texts.2=yes", "none=null"] {
            assert!(!is_in(expected, body), "{expected}");
        }
        assert!(!is_in("text=ok", "no JSON"));
    }

    #[test]
    fn a_field_without_a_value_is_refused() {
        assert_eq!("usage".parse::<Expected>(), Err(ExpectedError));
        assert_eq!("=10".parse::<Expected>(), Err(ExpectedError));
    }

    #[test]
    fn the_request_has_the_path_the_host_and_the_body_of_the_flags() {
        let target = Target::new("http://127.0.0.1:8080/generate?a=b").unwrap().or("", 1.0, "{}".into(), None);
        assert_eq!(target.address(), "127.0.0.1:8080".parse().unwrap());
        let request = target.kinds()[0].request();
        assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::POST, "/generate?a=b"));
        assert_eq!(request.headers()[HOST], "127.0.0.1:8080");
        let target = Target::new("http://[::1]").unwrap().or("", 1.0, String::new(), None);
        assert_eq!((target.address(), target.kinds()[0].request().uri().path()), ("[::1]:80".parse().unwrap(), "/"));
    }

    #[test]
    fn other_urls_are_refused() {
        for url in ["", "/generate", "https://127.0.0.1/", "127.0.0.1:8080", "http://", "http://a b/"] {
            assert!(Target::new(url).is_err(), "{url}");
        }
    }
}
