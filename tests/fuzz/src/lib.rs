//! What fuzz targets share: a proxy over pipes in memory, in one thread, with the time paused.

use std::future::Future;
use std::time::Duration;

use bytes::BytesMut;
use pillion_protocol::frame::{Frame, Hello, UnitCost};
use pillion_protocol::{VERSIONS, codec};
use pillion_proxy::app::Proxy;
use pillion_proxy::config::Config;
use pillion_proxy::http::Scope;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

const PIPE: usize = 64 * 1024;

/// Runs in a thread of its own time.
pub fn run(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(future);
}

/// So many milliseconds later.
pub async fn after(milliseconds: u64) {
    sleep(Duration::from_millis(milliseconds)).await;
}

/// A request as it is sent.
pub fn request(path: &str, body: &str, connection: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nhost: a\r\nconnection: {connection}\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// What a worker says that it is.
pub fn hello(positions: u32, vocabulary: u32, slots: u32) -> Hello {
    Hello {
        versions: VERSIONS.to_vec(),
        software: "fuzz".to_owned(),
        pid: 0,
        model: "fuzz".to_owned(),
        fingerprint: "f".to_owned(),
        positions,
        vocabulary,
        max_batch_tokens: 10_000,
        slots,
        chat: true,
        cost: UnitCost::default(),
        age_ms: 0,
    }
}

/// A proxy.
pub struct Proxied {
    proxy: Proxy,
}

impl Proxied {
    /// One that waits a second for workers.
    pub fn new() -> Self {
        let config = Config::read(["pillion-proxy", "--worker-wait", "1s"]).expect("a configuration");
        let (proxy, scheduler) = Proxy::new(&config).expect("a proxy");
        tokio::spawn(scheduler.run());
        Self { proxy }
    }

    /// A client's connection.
    pub fn client(&self) -> DuplexStream {
        let (client, server) = duplex(PIPE);
        tokio::spawn(self.proxy.clone().serve_client(server, Scope::All));
        client
    }

    /// A client that asks once; all that it gets.
    pub fn ask(&self, path: &str, body: &str) -> JoinHandle<Vec<u8>> {
        let (mut client, request) = (self.client(), request(path, body, "close"));
        tokio::spawn(async move {
            let mut answer = Vec::new();
            client.write_all(&request).await.expect("the proxy reads");
            let all = client.read_to_end(&mut answer);
            timeout(Duration::from_secs(60), all).await.expect("an answer in time").expect("a whole answer");
            answer
        })
    }

    /// A worker that has shaken hands and takes two batches.
    pub async fn worker(&self) -> DuplexStream {
        let (mut worker, link) = duplex(PIPE);
        tokio::spawn(self.proxy.clone().serve_worker(link));
        let mut wire = BytesMut::new();
        codec::encode(&Frame::Hello(hello(1000, 257, 2)), &mut wire).expect("a frame");
        codec::encode(&Frame::Credit { grant: 2 }, &mut wire).expect("a frame");
        worker.write_all(&wire).await.expect("the proxy reads");
        worker
    }

    /// Once everybody is gone nothing is queued or running.
    pub async fn is_empty(&self) {
        // A second for what is on its way, in paused time.
        after(1000).await;
        let metrics = self.proxy.metrics.render();
        for gauge in ["pillion_queue_depth", "pillion_running"] {
            let line = metrics.lines().find(|line| line.starts_with(gauge)).unwrap_or_default();
            assert!(line.ends_with(" 0"), "{line}");
        }
    }
}

impl Default for Proxied {
    fn default() -> Self {
        Self::new()
    }
}

/// An answer with a head, and a body that is as long as it says.
pub fn is_whole(answer: &[u8]) {
    let shown = || String::from_utf8_lossy(answer).into_owned();
    assert!(answer.starts_with(b"HTTP/1.1 "), "{}", shown());
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or_else(|| panic!("no head: {}", shown()));
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let body = &answer[end + 4..];
    if let Some(length) = head.lines().find_map(|line| line.strip_prefix("content-length: ")) {
        assert_eq!(length.trim().parse(), Ok(body.len()), "{}", shown());
    } else {
        assert!(is_chunked(body), "{}", shown());
    }
}

/// Whether it is chunks up to the last, which is empty, and nothing after it.
fn is_chunked(mut body: &[u8]) -> bool {
    loop {
        let Some(end) = body.windows(2).position(|two| two == b"\r\n") else { return false };
        let length = std::str::from_utf8(&body[..end]).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok());
        let Some(length) = length else { return false };
        let Some(chunk) = body.get(end + 2..end + 2 + length + 2) else { return false };
        if !chunk.ends_with(b"\r\n") {
            return false;
        }
        body = &body[end + 2 + length + 2..];
        if length == 0 {
            return body.is_empty();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_with_its_last_chunk_and_nothing_else() {
        for (body, whole) in [
            ("2\r\nab\r\n0\r\n\r\n", true),
            ("0\r\n\r\n", true),
            ("2\r\nab\r\n", false),
            ("2\r\nabc\r\n0\r\n\r\n", false),
            ("0\r\n\r\n0\r\n\r\n", false),
            ("", false),
        ] {
            assert_eq!(is_chunked(body.as_bytes()), whole, "{body:?}");
        }
    }
}
