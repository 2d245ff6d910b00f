//! A small HTTP client, and one for requests that no decent client would send.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::HeaderMap;
use hyper::{Method, Request};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::contract;
use crate::events::Events;

/// The longest wait for an answer: longer than any request of a test may take.
const BOUND: Duration = Duration::from_secs(120);

/// Keeps its connections alive. Clones share them.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    pool: Pool<HttpConnector, Full<Bytes>>,
}

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The header fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Client {
    /// A client of the server at this address.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, pool: Pool::builder(TokioExecutor::new()).build_http() }
    }

    /// A client that speaks HTTP/2, and takes the server to do so too.
    pub fn http2(address: SocketAddr) -> Self {
        Self { address, pool: Pool::builder(TokioExecutor::new()).http2_only(true).build_http() }
    }

    /// Asks `/generate`.
    ///
    /// # Panics
    /// There is no answer.
    pub async fn generate(&self, request: &Value) -> Answer {
        self.post("/generate", request).await
    }

    /// Posts JSON.
    ///
    /// # Panics
    /// There is no answer.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, &[("content-type", "application/json")], body.to_string()).await
    }

    /// Posts JSON and reads the answer's events as they come.
    ///
    /// # Panics
    /// There is no answer, or it is none of events.
    pub async fn events(&self, path: &str, body: &Value) -> Events {
        match self.try_events(path, body).await {
            Ok(events) => events,
            Err(answer) => panic!("no events from {path}: {answer:?}"),
        }
    }

    /// The same.
    ///
    /// # Errors
    /// The answer, where it is none of events.
    ///
    /// # Panics
    /// There is no answer.
    pub async fn try_events(&self, path: &str, body: &Value) -> Result<Events, Answer> {
        let request = Request::post(format!("http://{}{path}", self.address))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.to_string())))
            .expect("a request");
        let answer = timeout(BOUND, self.pool.request(request)).await.expect("an answer in time").expect("an answer");
        let (head, body) = answer.into_parts();
        if head.headers.get("content-type").is_some_and(|value| value == "text/event-stream") {
            return Ok(Events::new(path, head.headers, body));
        }
        let body = body.collect().await.expect("a whole body").to_bytes();
        let answer = Answer { status: head.status.as_u16(), headers: head.headers, body };
        contract::hold_answer(&Method::POST, path, &answer);
        Err(answer)
    }

    /// Gets a path.
    ///
    /// # Panics
    /// There is no answer.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    /// Gets a path; `None` where nobody answers.
    pub async fn try_get(&self, path: &str) -> Option<Answer> {
        self.try_send(Method::GET, path, &[], Bytes::new()).await.ok()
    }

    /// Sends any request.
    ///
    /// # Panics
    /// There is no answer.
    pub async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        match self.try_send(method.clone(), path, headers, body.into()).await {
            Ok(answer) => {
                contract::hold_answer(&method, path, &answer);
                answer
            }
            Err(error) => panic!("no answer from {path}: {error}"),
        }
    }

    /// Sends any request.
    ///
    /// # Errors
    /// There is no answer: why.
    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).map_err(|error| error.to_string())?;
        let answer = async {
            let (head, body) = self.pool.request(request).await.map_err(|error| format!("{error:?}"))?.into_parts();
            let body = body.collect().await.map_err(|error| format!("the body broke off: {error:?}"))?.to_bytes();
            Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
        };
        timeout(BOUND, answer).await.map_err(|_| format!("none within {BOUND:?}"))?
    }
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// It is none, or is not declared as such.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header field, where it is there and plain.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// A connection on which anything can be sent.
#[derive(Debug)]
pub struct Raw(TcpStream);

impl Raw {
    /// Connects.
    ///
    /// # Panics
    /// Nobody listens there.
    pub async fn connect(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.expect("the proxy accepts"))
    }

    /// Sends bytes; false where the other side has closed.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).await.is_ok()
    }

    /// Sends a whole POST to `/generate` with this body and waits for nothing.
    pub async fn post(&mut self, body: &str) {
        let length = body.len();
        let head =
            format!("POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}");
        self.send(format!("{head}\r\n\r\n{body}").as_bytes()).await;
    }

    /// Reads the next line, or what there is of it at the end of the connection.
    ///
    /// # Panics
    /// Nothing comes in time.
    pub async fn line(&mut self) -> String {
        let mut line = Vec::new();
        let read = async {
            while !line.ends_with(b"\n")
                && let Ok(byte) = self.0.read_u8().await
            {
                line.push(byte);
            }
        };
        assert!(timeout(BOUND, read).await.is_ok(), "no line in time");
        String::from_utf8_lossy(&line).into_owned()
    }

    /// Reads to the end of the connection, and says the status (if there was one) and all that came.
    ///
    /// # Panics
    /// The other side does not close in time.
    pub async fn to_end(mut self) -> (Option<u16>, String) {
        let mut all = Vec::new();
        // A reset after the answer is an end too.
        let read = timeout(BOUND, self.0.read_to_end(&mut all)).await;
        let text = String::from_utf8_lossy(&all).into_owned();
        assert!(read.is_ok(), "the connection stays open after {text:?}");
        (text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok()), text)
    }
}
