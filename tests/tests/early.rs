//! Requests that are answered before their body has come. Paused time makes times exact.

use std::time::Duration;

use pillion_tests::memory::Memory;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, sleep, timeout};

/// The bytes of a body: more than the buffers of the connection hold.
const BODY: usize = 200_000;

/// Reads an answer with a `content-length`, and returns its head and its body.
async fn answer(client: &mut DuplexStream) -> String {
    let mut said = String::new();
    loop {
        let mut some = [0; 1024];
        let read = client.read(&mut some).await.unwrap();
        assert_ne!(read, 0, "closed after {said:?}");
        said.push_str(std::str::from_utf8(&some[..read]).unwrap());
        let length = |head: &str| head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse().ok();
        let whole = said.split_once("\r\n\r\n").filter(|(head, body)| length(head) == Some(body.len()));
        if whole.is_some() {
            return said;
        }
    }
}

/// Sends a head that announces a body and its first bytes, and returns the status of the answer that comes before the rest.
async fn early(client: &mut DuplexStream, head: &str) -> u16 {
    let head = format!("{head}\r\nhost: a\r\ncontent-length: {BODY}\r\n\r\n0123456789");
    client.write_all(head.as_bytes()).await.unwrap();
    answer(client).await[9..12].parse().unwrap()
}

/// Sends the rest of the body, and another request.
async fn goes_on(client: &mut DuplexStream) {
    client.write_all(&vec![b'x'; BODY - 10]).await.unwrap();
    client.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(answer(client).await.ends_with("ok\n"));
}

#[tokio::test(start_paused = true)]
async fn the_body_of_a_request_that_was_refused_is_read_and_the_connection_goes_on() {
    let keys = std::env::temp_dir().join(format!("pillion-early-{}", std::process::id()));
    std::fs::write(&keys, "key\n").unwrap();
    let key = "authorization: Bearer key";
    let mut memory = Memory::start(&[
        "--api-key-file",
        keys.to_str().unwrap(),
        "--max-body-bytes",
        "250000",
        "--max-queue-bytes",
        "250000",
    ]);
    std::fs::remove_file(&keys).unwrap();
    for (head, status) in [
        ("POST /nowhere HTTP/1.1".to_owned(), 404),
        ("POST /livez HTTP/1.1".to_owned(), 405),
        (format!("PUT /generate HTTP/1.1\r\n{key}"), 405),
        ("POST /generate HTTP/1.1".to_owned(), 401),
        ("POST /v1/models HTTP/1.1".to_owned(), 401),
        (format!("POST /generate HTTP/1.1\r\n{key}\r\ncontent-type: text/csv"), 415),
    ] {
        let mut client = memory.connect();
        assert_eq!(early(&mut client, &head).await, status, "{head}");
        sleep(Duration::from_millis(500)).await;
        goes_on(&mut client).await;
    }
    // Too many bytes wait already.
    let mut first = memory.connect();
    let head = format!("POST /generate HTTP/1.1\r\nhost: a\r\n{key}\r\ncontent-length: {BODY}\r\n\r\n");
    first.write_all(head.as_bytes()).await.unwrap();
    first.write_all(&vec![b'x'; BODY - 10]).await.unwrap();
    sleep(Duration::from_millis(1)).await;
    let mut second = memory.connect();
    assert_eq!(early(&mut second, &format!("POST /generate HTTP/1.1\r\n{key}")).await, 429);
    goes_on(&mut second).await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_too_large_is_read_for_a_few_seconds() {
    let mut memory = Memory::start(&["--max-body-bytes", "1000"]);
    let mut short = memory.connect();
    assert_eq!(early(&mut short, "POST /generate HTTP/1.1").await, 413);
    goes_on(&mut short).await;
    let mut endless = memory.connect();
    endless
        .write_all(b"POST /generate HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n")
        .await
        .unwrap();
    endless.write_all(&[b' '; 1001]).await.unwrap();
    assert!(answer(&mut endless).await.starts_with("HTTP/1.1 413 "));
    let begun = Instant::now();
    while endless.write_all(b"\r\n1\r\n ").await.is_ok() {
        sleep(Duration::from_millis(100)).await;
        assert!(begun.elapsed() < Duration::from_secs(20), "the connection stays open");
    }
    let seconds = begun.elapsed().as_secs_f64();
    assert!((4.9..5.3).contains(&seconds), "closed after {seconds} s");
}

#[tokio::test(start_paused = true)]
async fn who_asks_before_sending_a_body_is_not_told_to_send_one_that_is_refused() {
    let mut memory = Memory::start(&["--max-body-bytes", "1000"]);
    let mut client = memory.connect();
    let head = format!("POST /generate HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: {BODY}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let mut said = String::new();
    timeout(Duration::from_secs(1), client.read_to_string(&mut said)).await.expect("the connection closes").unwrap();
    assert!(said.starts_with("HTTP/1.1 413 ") && said.contains("connection: close"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn who_asks_before_sending_a_body_and_is_told_to_send_it_loses_no_answer_either() {
    let mut memory = Memory::start(&["--max-body-bytes", "1000"]);
    let mut client = memory.connect();
    let head = b"POST /generate HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n";
    client.write_all(head).await.unwrap();
    let mut told = [0; 25];
    client.read_exact(&mut told).await.unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    // A chunk of 2000 bytes, of which the first 1001 are too many already.
    client.write_all(b"7d0\r\n").await.unwrap();
    client.write_all(&[b' '; 1001]).await.unwrap();
    let refused = answer(&mut client).await;
    assert!(refused.starts_with("HTTP/1.1 413 ") && !refused.contains("connection: close"), "{refused}");
    client.write_all(&[b' '; 999]).await.unwrap();
    client.write_all(b"\r\n0\r\n\r\nGET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(answer(&mut client).await.ends_with("ok\n"));
}
