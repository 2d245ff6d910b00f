//! Limits on connections without requests, slow heads, unread answers and incomplete bodies. Paused time makes times exact.

use std::time::Duration;

use bytes::Bytes;
use hyper::Request;
use pillion_tests::fake_worker::Profile;
use pillion_tests::memory::Memory;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);

/// How many connections were closed for this reason.
fn closed_for(reason: &str, memory: &Memory) -> i64 {
    memory.metrics().with("pillion_connections_closed_total", &[("reason", reason)])
}

/// Sends `trickle`, one byte a second, and reads everything. Returns the whole seconds until the proxy closes the
/// connection.
async fn closed(mut client: DuplexStream, trickle: &[u8]) -> u64 {
    let begun = Instant::now();
    for byte in trickle {
        sleep(SECOND).await;
        if client.write_all(&[*byte]).await.is_err() {
            return begun.elapsed().as_secs();
        }
    }
    let mut all = Vec::new();
    // The connection may end with an error if a part of its last answer was not read.
    let _ = timeout(1000 * SECOND, client.read_to_end(&mut all)).await.expect("the connection is closed");
    begun.elapsed().as_secs()
}

fn post(path: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Reads up to the end of one answer to `/livez`.
async fn alive(client: &mut DuplexStream) {
    let mut said = Vec::new();
    while !said.ends_with(b"ok\n") {
        assert_ne!(client.read_buf(&mut said).await.unwrap(), 0, "{}", String::from_utf8_lossy(&said));
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_sends_no_request_is_closed() {
    let mut memory = Memory::start(&[]);
    assert_eq!(closed(memory.connect(), b"").await, 75);
    let mut again = memory.connect();
    for pause in [70, 70, 70] {
        sleep(pause * SECOND).await;
        again.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        alive(&mut again).await;
    }
    assert_eq!(closed(again, b"").await, 75);
    assert_eq!(closed_for("idle", &memory), 2);
    // A proxy with one of its three places taken is not crowded.
    let mut small = Memory::start(&["--max-connections", "3"]);
    assert_eq!(closed(small.connect(), b"").await, 75);
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_head_comes_byte_by_byte_is_closed() {
    let mut memory = Memory::start(&[]);
    let head = [b"GET /livez HTTP/1.1\r\n".as_slice(), &[b'a'; 100]].concat();
    let mut second = memory.connect();
    second.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    alive(&mut second).await;
    let preface = [b"PRI * HTTP/2.0\r\n".as_slice(), &[b'\r'; 100]].concat();
    // The first head of a connection, a later head, and a preface of HTTP/2 that does not end.
    for (client, bytes) in [(memory.connect(), &head), (second, &head), (memory.connect(), &preface)] {
        let seconds = closed(client, bytes).await;
        assert!((11..=12).contains(&seconds), "ten seconds from the first byte, noticed with the next one: {seconds}");
    }
    assert_eq!(closed_for("head", &memory), 3);
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_closed_sooner_if_few_places_are_left() {
    let mut memory = Memory::start(&["--max-connections", "8"]);
    let mut idle = JoinSet::new();
    for pause in [0, 0, 0, 0, 0, 0, 20, 0] {
        sleep(pause * SECOND).await;
        idle.spawn(closed(memory.connect(), b""));
    }
    let mut seen = idle.join_all().await;
    seen.sort_unstable();
    // More than six connections are too many: two are closed after ten seconds, or at the next check after that.
    assert!(seen[..2].iter().all(|&seconds| seconds <= 30), "{seen:?}");
    assert_eq!(seen[2..], [75; 6]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_disconnected_and_one_that_reads_slowly_is_not() {
    let mut memory = Memory::start(&[]);
    let _worker = memory.worker(Profile::default());
    // The answer is larger than the buffers of a connection.
    let text: Vec<_> = (0..2000).map(|n| format!("w{n:030}")).collect();
    let request = json!({"text": text.join(" "), "max_new_tokens": 2000});
    // A whole answer ends when the connection has taken it into its buffers. Then the connection counts as idle.
    for (path, reason) in [("/generate", "idle"), ("/generate_stream", "unread")] {
        let mut unread = memory.connect();
        unread.write_all(&post(path, &request)).await.unwrap();
        // The connection is closed although the client has read nothing.
        sleep(60 * SECOND).await;
        assert_eq!(closed_for(reason, &memory), 0, "{path}");
        sleep(30 * SECOND).await;
        assert_eq!(closed_for(reason, &memory), 1, "{path}");
        let mut all = Vec::new();
        let _ = unread.read_to_end(&mut all).await;
        assert!(all.len() <= 4096, "{} bytes were read, more than the pipe holds", all.len());
    }
    assert_eq!(memory.metrics().sum("pillion_running"), 0);

    let mut slow = memory.connect();
    slow.write_all(&post("/generate_stream", &request)).await.unwrap();
    let mut all = Vec::new();
    while !String::from_utf8_lossy(&all).contains("finish_reason") {
        sleep(20 * SECOND).await;
        let mut some = [0; 2048];
        let read = slow.read(&mut some).await.unwrap();
        assert_ne!(read, 0, "closed after {} bytes", all.len());
        all.extend_from_slice(&some[..read]);
    }
    assert!(all.len() > 10_000, "{} bytes", all.len());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_counted_once_also_while_the_proxy_stops() {
    const CLIENTS: i64 = 20;
    for stops in [false, true] {
        let mut memory = Memory::start(&[]);
        let _worker = memory.worker(Profile::default());
        let text: Vec<_> = (0..2000).map(|n| format!("w{n:030}")).collect();
        let request = post("/generate_stream", &json!({"text": text.join(" "), "max_new_tokens": 2000}));
        let mut unread = Vec::new();
        for _ in 0..CLIENTS {
            let mut client = memory.connect();
            client.write_all(&request).await.unwrap();
            unread.push(client);
        }
        sleep(30 * SECOND).await;
        if stops {
            memory.proxy().handle.shut_down();
        }
        sleep(90 * SECOND).await;
        assert_eq!(closed_for("unread", &memory), CLIENTS);
        assert_eq!(memory.metrics().sum("pillion_connections_closed_total"), CLIENTS);
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_http2_connection_is_closed_although_it_answers_pings() {
    let mut memory = Memory::start(&[]);
    let _worker = memory.worker(Profile::default());
    let mut tasks = JoinSet::new();
    let mut sender = memory.http2(&mut tasks).await;
    assert_eq!(sender.ask().await.unwrap(), 200);
    sleep(70 * SECOND).await;
    assert_eq!(sender.ask().await.unwrap(), 200);
    let begun = Instant::now();
    timeout(1000 * SECOND, tasks.join_next()).await.expect("the connection is closed");
    assert_eq!(begun.elapsed().as_secs(), 75);
}

#[tokio::test(start_paused = true)]
async fn an_http2_client_that_takes_one_byte_of_each_answer_is_disconnected() {
    let mut memory = Memory::start(&[]);
    let io = memory.connect();
    let (mut client, connection) =
        h2::client::Builder::new().initial_window_size(1).handshake::<_, Bytes>(io).await.unwrap();
    let mut tasks = JoinSet::new();
    // It answers the proxy's pings.
    tasks.spawn(async move { drop(connection.await) });
    let begun = Instant::now();
    let mut unread = Vec::new();
    for _ in 0..8 {
        client = client.ready().await.unwrap();
        let request = Request::get("http://a/metrics").body(()).unwrap();
        unread.push(client.send_request(request, true).unwrap().0.await.unwrap().into_body());
    }
    timeout(1000 * SECOND, tasks.join_next()).await.expect("the connection is closed");
    // The answers are in the connection's buffers, so that the connection is idle; then it has a second to end.
    assert_eq!(begun.elapsed().as_secs(), 76);
    assert_eq!(closed_for("idle", &memory), 1);
}

#[tokio::test(start_paused = true)]
async fn as_many_http2_requests_run_at_once_as_there_may_be_connections() {
    let mut memory = Memory::start(&["--max-connections", "3"]);
    let _worker = memory.worker(Profile { batch_cost: SECOND, ..Profile::default() });
    let mut tasks = JoinSet::new();
    let mut asked = JoinSet::new();
    for _ in 0..2 {
        let sender = memory.http2(&mut tasks).await;
        for _ in 0..3 {
            let mut sender = sender.clone();
            asked.spawn(async move { sender.ask().await });
        }
    }
    let answers = asked.join_all().await;
    let (served, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!((served.len(), refused.len()), (3, 3), "{refused:?}");
    for refused in refused {
        let reason = std::error::Error::source(&refused.unwrap_err()).expect("a reason").to_string();
        assert!(reason.contains("refused stream"), "{reason}");
    }
    let mut sender = memory.http2(&mut tasks).await;
    assert_eq!(sender.ask().await.unwrap(), 200, "requests that have ended give their places back");
}

#[tokio::test(start_paused = true)]
async fn incomplete_bodies_leave_memory_for_complete_ones() {
    let mut memory = Memory::start(&["--max-queue-bytes", "256KiB", "--max-body-bytes", "64KiB"]);
    let _worker = memory.worker(Profile::default());
    let mut hostile = Vec::new();
    // Half of the clients announce the largest body and send none or most of it. The others omit a smaller body's last byte.
    let [none, most] = [(65_536, 0), (65_536, 60_000)];
    let beside = [vec![(5001, 5000); 50], vec![(1901, 1900); 50]].concat();
    for (announced, part) in [[none, most].repeat(25), beside].concat() {
        let mut client = memory.connect();
        let head = format!("POST /generate HTTP/1.1\r\nhost: a\r\ncontent-length: {announced}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        let sent = vec![b' '; part];
        let _ = timeout(SECOND, client.write_all(&sent)).await;
        hostile.push(client);
    }
    for text in ["a b".to_owned(), "word ".repeat(300)] {
        let answer = memory.generate(&json!({"text": text, "max_new_tokens": 4})).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let refused = memory.metrics().with("pillion_rejected_total", &[("reason", "queue_bytes")]);
    assert!(refused > 40, "only {refused} large bodies were refused");
}
