//! A client that speaks HTTP/2 with a proxy in memory.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Memory;
use crate::client::Answer;

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

impl Memory {
    /// Posts JSON to a path over HTTP/2, over a connection of its own, and reads the whole answer, of which the proxy may send
    /// only `window` bytes before they are read. Dropping the future closes the connection.
    ///
    /// # Panics
    /// There is no answer.
    pub fn post_http2(
        &mut self,
        path: &'static str,
        request: &Value,
        window: u32,
    ) -> impl Future<Output = Answer> + Send + use<> {
        let near = self.connect();
        let body = Full::new(Bytes::from(request.to_string()));
        async move {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.initial_stream_window_size(window);
            let (mut sender, connection) = builder.handshake(TokioIo::new(near)).await.expect("a pipe");
            let ask = async {
                let request = Request::post(format!("http://memory{path}")).header("x-request-id", "memory").body(body);
                let answer = sender.send_request(request.expect("a request")).await.expect("an answer");
                let (head, body) = answer.into_parts();
                let body = body.collect().await.expect("a whole answer").to_bytes();
                Answer { status: head.status.as_u16(), headers: head.headers, body }
            };
            tokio::select! {
                biased;
                answer = ask => answer,
                _ = connection => panic!("the connection ended before the answer"),
            }
        }
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
