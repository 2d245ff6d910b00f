//! A client that speaks HTTP/2 with a proxy in memory.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::task::JoinSet;

use super::Memory;

/// A client with one connection. Clones share it.
#[derive(Clone, Debug)]
pub struct Http2Client(SendRequest<Full<Bytes>>);

impl Memory {
    /// A client of HTTP/2. Its connection is one of the `tasks`, which ends when the connection does.
    ///
    /// # Panics
    /// There is no connection.
    pub async fn http2(&mut self, tasks: &mut JoinSet<()>) -> Http2Client {
        let io = TokioIo::new(self.connect());
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.expect("a pipe");
        tasks.spawn(async move {
            let _ = connection.await;
        });
        Http2Client(sender)
    }
}

impl Http2Client {
    /// Asks `/generate` for something short, reads the whole answer and returns its status.
    ///
    /// # Errors
    /// There is no answer, or no more of it.
    ///
    /// # Panics
    /// The request is none.
    pub async fn ask(&mut self) -> Result<u16, hyper::Error> {
        let body = Full::new(Bytes::from(json!({"text": "a b"}).to_string()));
        let request = Request::post("http://a/generate").body(body).expect("a request");
        let answer = self.0.send_request(request).await?;
        let status = answer.status().as_u16();
        answer.into_body().collect().await?;
        Ok(status)
    }
}
