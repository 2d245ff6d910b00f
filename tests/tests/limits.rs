//! The limits that `proxy/README.md` and `proxy/API.md` name. Paused time makes times exact.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pillion_protocol::connection::{FrameReader, FrameWriter};
use pillion_protocol::frame::{BatchCost, FinishReason, Frame, MemberFinished, MemberTokens};
use pillion_proxy::http::Scope;
use pillion_tests::fake_worker::{Fault, FaultKind, Profile};
use pillion_tests::memory::Memory;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_millis(1);

/// Reads to the end of the connection.
async fn to_end(mut client: DuplexStream) -> String {
    let mut said = Vec::new();
    let _ = client.read_to_end(&mut said).await;
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test(start_paused = true)]
async fn a_body_has_thirty_seconds_to_come_or_the_requests_timeout_if_that_is_shorter() {
    for (flags, seconds) in [(&[][..], 30), (&["--request-timeout", "7s"], 7)] {
        let mut memory = Memory::start(flags);
        let mut client = memory.connect();
        let begun = Instant::now();
        client.write_all(b"POST /generate HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{").await.unwrap();
        let mut status = [0; 12];
        client.read_exact(&mut status).await.unwrap();
        assert_eq!((&status, begun.elapsed().as_secs()), (b"HTTP/1.1 408", seconds));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_closes_its_sending_side_counts_as_gone() {
    let mut memory = Memory::start(&[]);
    let _worker = memory.worker(Profile { batch_cost: SECOND, ..Profile::default() });
    sleep(SECOND).await;
    let mut client = memory.connect();
    client
        .write_all(b"POST /generate HTTP/1.1\r\nhost: a\r\ncontent-length: 12\r\n\r\n{\"text\":\"a\"}")
        .await
        .unwrap();
    sleep(MOMENT).await;
    assert_eq!(memory.metrics().sum("pillion_running"), 1);
    client.shutdown().await.unwrap();
    sleep(MOMENT).await;
    assert_eq!(memory.metrics().with("pillion_cancelled_total", &[("stage", "running")]), 1);
    assert_eq!((memory.metrics().sum("pillion_running"), to_end(client).await.as_str()), (0, ""));
}

#[tokio::test(start_paused = true)]
async fn a_silent_http2_client_that_answers_no_ping_is_disconnected() {
    let mut memory = Memory::start(&[]);
    let mut client = memory.connect();
    let begun = Instant::now();
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    to_end(client).await;
    assert_eq!(begun.elapsed().as_secs(), 50, "a ping after 30 seconds, and 20 to answer it");
}

#[tokio::test(start_paused = true)]
async fn an_http2_connection_has_at_most_256_requests_at_once() {
    let mut memory = Memory::start(&[]);
    let io = TokioIo::new(memory.connect());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let _connection = tokio::spawn(connection);
    let body = json!({"text": "a"}).to_string();
    let post = || Request::post("http://a/generate").body(Full::new(Bytes::from(body.clone()))).unwrap();
    // The client learns the limit with the server's first frames. No worker is there, so all requests wait.
    sleep(MOMENT).await;
    let waiting: Vec<_> = (0..300)
        .map(|_| {
            let (mut sender, post) = (sender.clone(), post());
            tokio::spawn(async move { sender.send_request(post).await })
        })
        .collect();
    sleep(SECOND).await;
    assert_eq!(memory.metrics().sum("pillion_queue_depth"), 256);
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn the_operators_address_has_probes_and_metrics_alone() {
    let mut memory = Memory::start(&[]);
    let mut client = memory.connect_to(Scope::Admin);
    for (path, status) in [
        ("/livez", "200"),
        ("/healthz", "200"),
        ("/readyz", "503"),
        ("/metrics", "200"),
        ("/v1/models", "404"),
        ("/openapi.json", "404"),
        ("/generate", "404"),
    ] {
        client.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
        let mut said = Vec::new();
        while timeout(MOMENT, client.read_buf(&mut said)).await.is_ok() {}
        assert_eq!(said.get(9..12), Some(status.as_bytes()), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_proxy_ends_a_text_for_a_worker_that_is_late_and_tells_the_worker() {
    let mut memory = Memory::start(&[]);
    let fault = Some(Fault { kind: FaultKind::Stall, batch: 1, step: 2 });
    let _worker = memory.worker(Profile { fault, step_cost: SECOND, eager: true, ..Profile::default() });
    let begun = Instant::now();
    let answer = memory.generate(&json!({"text": "one two three four", "timeout_ms": 7000})).await;
    let after = begun.elapsed();
    assert!((7500 * MOMENT..7700 * MOMENT).contains(&after), "{after:?}");
    let answer = answer.json();
    assert_eq!((answer["text"].as_str(), answer["finish_reason"].as_str()), (Some("four three"), Some("deadline")));
    assert_eq!(answer["usage"], json!({"prompt_tokens": 0, "completion_tokens": 2}));
}

#[tokio::test(start_paused = true)]
async fn a_link_reads_on_while_its_worker_does_not() {
    let mut memory = Memory::start(&["--max-batch-size", "1"]);
    let (reader, writer) = tokio::io::split(memory.dial());
    let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
    writer.put(&Frame::Hello(Profile::default().hello)).unwrap();
    writer.put(&Frame::Credit { grant: 2 }).unwrap();
    writer.flush().await.unwrap();
    let small = tokio::spawn(memory.generate(&json!({"text": "small"})));
    assert!(matches!(reader.next().await, Ok(Some(Frame::Welcome(_)))));
    let Ok(Some(Frame::Batch(batch, _))) = reader.next().await else { panic!("no batch") };
    // This batch fills the pipe to the worker, who does not read it.
    let large = tokio::spawn(memory.generate(&json!({"text": "large ".repeat(10_000)})));
    sleep(SECOND).await;
    assert_eq!(memory.metrics().sum("pillion_running"), 2);
    let tokens = MemberTokens { member: 0, ids: vec![7], text: "answer".to_owned() };
    let finished = MemberFinished { member: 0, reason: FinishReason::Stop, prompt_tokens: 1, completion_tokens: 1 };
    writer.put(&Frame::Tokens(batch, vec![tokens])).unwrap();
    writer.put(&Frame::Finished(batch, vec![finished])).unwrap();
    writer.put(&Frame::Done(batch, BatchCost::default())).unwrap();
    writer.flush().await.unwrap();
    let answer = timeout(SECOND, small).await.expect("the link reads").unwrap();
    assert_eq!(answer.json()["text"], "answer");
    large.abort();
}
