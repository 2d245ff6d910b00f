//! The proxy with simulated workers in one runtime. Paused time makes times exact.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use pillion_protocol::connection::{FrameReader, FrameWriter};
use pillion_protocol::frame::{Frame, Hello, UnitCost};
use pillion_tests::client::Answer;
use pillion_tests::fake_worker::{Ending, FakeWorker, Fault, FaultKind, Profile};
use pillion_tests::memory::{Memory, MemoryWorker};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[tokio::test(start_paused = true)]
async fn without_a_worker_a_request_fails_after_worker_wait() {
    let mut memory = Memory::start(&["--worker-wait", "30s"]);
    let begun = Instant::now();
    assert_eq!(memory.generate(&json!({"text": "a"})).await.status, 503);
    assert_eq!(begun.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_queued_request_ends_at_its_deadline() {
    let mut memory = Memory::start(&[]);
    let _worker = memory.worker(Profile { grants: false, ..Profile::default() });
    let begun = Instant::now();
    assert_eq!(memory.generate(&json!({"text": "a", "timeout_ms": 7000})).await.status, 504);
    assert_eq!(begun.elapsed().as_secs(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_running_request_whose_worker_is_stuck_ends_soon_after_its_deadline() {
    let mut memory = Memory::start(&[]);
    let fault = Some(Fault { kind: FaultKind::Stall, batch: 1, step: 0 });
    let _worker = memory.worker(Profile { fault, ..Profile::default() });
    let begun = Instant::now();
    assert_eq!(memory.generate(&json!({"text": "a", "timeout_ms": 7000})).await.status, 504);
    assert!((seconds(7)..seconds(8)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_lone_request_is_not_held() {
    let mut memory = Memory::start(&["--batch-timeout", "10s"]);
    let _worker = memory.worker(Profile { batch_cost: millis(40), step_cost: millis(5), ..Profile::default() });
    tokio::time::sleep(seconds(1)).await;
    let begun = Instant::now();
    assert_eq!(memory.generate(&json!({"text": "three words long"})).await.status, 200);
    assert!((millis(50)..millis(53)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_long_request_gives_way_to_short_ones_and_its_answer_does_not_change() {
    let mut memory = Memory::start(&[]);
    let cost = UnitCost { step_ns: 10_000_000, ..UnitCost::default() };
    let hello = Hello { cost, ..Profile::default().hello };
    let _worker = memory.worker(Profile { hello, step_cost: millis(10), ..Profile::default() });
    let text = (0..200).map(|n| format!("w{n}")).collect::<Vec<_>>().join(" ");
    let long = json!({"text": text, "max_new_tokens": 200});
    // Giving way may cost only a share of the engine's time so far, so the engine works first.
    let alone = memory.generate(&long).await.json();
    let begun = Instant::now();
    let riding = tokio::spawn(memory.generate(&long));
    tokio::time::sleep(millis(500)).await;
    let short: Vec<_> = (0..20)
        .map(|_| tokio::spawn(memory.generate(&json!({"text": "three short words", "max_new_tokens": 10}))))
        .collect();
    for answer in short {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    assert!(begun.elapsed() < millis(700), "{:?}", begun.elapsed());
    assert_eq!(riding.await.unwrap().json(), alone);
    assert!((seconds(2)..millis(2300)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let preempted = memory.metrics().with("pillion_resumed_total", &[("reason", "preempted")]);
    assert_eq!(preempted, 1);
}

/// A proxy with ten texts waiting. Its worker takes half a second for a batch of at most two texts, as the proxy knows.
async fn five_batches_behind(flags: &[&str]) -> (Memory, MemoryWorker, JoinSet<Answer>) {
    let mut memory = Memory::start(&[&["--max-batch-size", "2"], flags].concat());
    let cost = UnitCost { step_ns: 250_000_000, ..UnitCost::default() };
    let hello = Hello { cost, ..Profile::default().hello };
    let worker = memory.worker(Profile { hello, step_cost: millis(250), ..Profile::default() });
    let three_words = json!({"text": "three words long", "max_new_tokens": 3});
    assert_eq!(memory.generate(&three_words).await.status, 200);
    let mut waiting = JoinSet::new();
    // One text is with the worker, so that the other ten wait even if the queue is small.
    for texts in [1, 10] {
        (0..texts).for_each(|_| drop(waiting.spawn(memory.generate(&three_words))));
        tokio::time::sleep(millis(1)).await;
    }
    (memory, worker, waiting)
}

#[tokio::test(start_paused = true)]
async fn a_request_that_cannot_start_before_its_deadline_is_refused_at_once_and_whole() {
    let (mut memory, _worker, mut waiting) = five_batches_behind(&[]).await;
    let begun = Instant::now();
    for text in [json!("three words long"), json!(["three words long", "and three more"])] {
        let request = json!({"text": text, "max_new_tokens": 3, "timeout_ms": 1500});
        let refused = memory.generate(&request).await;
        assert_eq!((refused.status, begun.elapsed()), (429, Duration::ZERO), "{}", refused.text());
        assert_eq!(refused.json()["error"]["code"], "deadline_out_of_reach");
        let told = refused.header("retry-after");
        assert!(matches!(told, Some("2" | "3" | "4")), "half of the three seconds of texts ahead, or more: {told:?}");
    }
    assert_eq!(memory.metrics().with("pillion_rejected_total", &[("reason", "deadline")]), 2);
    let in_time = memory.generate(&json!({"text": "three words long", "max_new_tokens": 3, "timeout_ms": 5000})).await;
    assert_eq!(in_time.status, 200);
    while let Some(answer) = waiting.join_next().await {
        assert_eq!(answer.unwrap().status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn retry_after_spreads_refused_clients_over_the_time_in_which_the_queue_drains() {
    let (mut memory, _worker, mut waiting) = five_batches_behind(&["--max-queue", "10"]).await;
    let request = json!({"text": "three words long", "max_new_tokens": 3});
    let mut returning = JoinSet::new();
    for _ in 0..20 {
        let mut client = memory.client().await;
        let request = request.clone();
        returning.spawn(async move {
            let refused = client.generate(&request).await;
            assert_eq!(refused.status, 429, "{}", refused.text());
            let told: u64 = refused.header("retry-after").unwrap().parse().unwrap();
            tokio::time::sleep(seconds(told)).await;
            (told, client.generate(&request).await.status)
        });
    }
    let (told, statuses): (Vec<_>, Vec<_>) = returning.join_all().await.into_iter().unzip();
    let (first, last) = (told.iter().min().unwrap(), told.iter().max().unwrap());
    assert!(*first >= 2 && *last >= 2 * first - 1, "all clients come back at once: {told:?}");
    assert!(told.iter().all(|seconds| told.iter().filter(|other| *other == seconds).count() <= 8), "{told:?}");
    let served = statuses.iter().filter(|status| **status == 200).count();
    assert!(served >= 16, "only {served} of 20 were served when they came back: {told:?}");
    while let Some(answer) = waiting.join_next().await {
        assert_eq!(answer.unwrap().status, 200, "a text that waits keeps its place");
    }
}

/// A proxy that knows that any batch costs a second (two steps of 500 ms), and a request of which only the head has arrived.
async fn with_a_companion_arriving(flags: &[&str]) -> (Memory, MemoryWorker, DuplexStream) {
    let mut memory = Memory::start(flags);
    let plain = Profile::default();
    let cost = UnitCost { step_ns: 500_000_000, ..UnitCost::default() };
    let worker = memory.worker(Profile { batch_cost: seconds(1), hello: Hello { cost, ..plain.hello }, ..plain });
    assert_eq!(memory.generate(&json!({"text": "the first"})).await.status, 200);
    let mut companion = memory.connect();
    companion.write_all(b"POST /generate HTTP/1.1\r\nhost: memory\r\ncontent-length: 15\r\n\r\n").await.unwrap();
    tokio::time::sleep(millis(1)).await;
    (memory, worker, companion)
}

#[tokio::test(start_paused = true)]
async fn a_request_that_arrives_during_a_hold_joins_the_batch() {
    let (mut memory, _worker, mut companion) = with_a_companion_arriving(&["--batch-timeout", "10s"]).await;
    let begun = Instant::now();
    let held = tokio::spawn(memory.generate(&json!({"text": "the second"})));
    tokio::time::sleep(millis(60)).await;
    companion.write_all(br#"{"text":"last"}"#).await.unwrap();
    assert_eq!(held.await.unwrap().status, 200);
    assert!((millis(1060)..millis(1070)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(memory.metrics().with("pillion_batches_total", &[("trigger", "hold")]), 1);
    assert_eq!(memory.metrics().sum("pillion_batches_total"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_hold_ends_if_the_expected_request_does_not_arrive() {
    // A hold lasts a tenth of a batch's fixed cost, or --batch-timeout if that is shorter.
    for (flags, held) in [(&["--batch-timeout", "10s"], millis(100)), (&["--batch-timeout", "30ms"], millis(30))] {
        let (mut memory, _worker, _companion) = with_a_companion_arriving(flags).await;
        let begun = Instant::now();
        assert_eq!(memory.generate(&json!({"text": "the second"})).await.status, 200);
        let expected = seconds(1) + held;
        assert!((expected..expected + millis(10)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        assert_eq!(memory.metrics().with("pillion_batches_total", &[("trigger", "hold")]), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_connection_without_hello_is_closed() {
    let mut memory = Memory::start(&[]);
    let silent = memory.dial();
    let begun = Instant::now();
    let mut reader = FrameReader::new(silent);
    assert!(matches!(reader.next().await, Ok(Some(Frame::Goodbye(_)))));
    assert!(matches!(reader.next().await, Ok(None)));
    assert_eq!(begun.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_grants_no_or_too_much_credit_is_disconnected() {
    for grant in [0, u32::MAX] {
        let mut memory = Memory::start(&[]);
        let (reader, writer) = tokio::io::split(memory.dial());
        let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
        writer.put(&Frame::Hello(Profile::default().hello)).unwrap();
        writer.put(&Frame::Credit { grant }).unwrap();
        writer.flush().await.unwrap();
        assert!(matches!(reader.next().await, Ok(Some(Frame::Welcome(_)))));
        assert!(matches!(reader.next().await, Ok(Some(Frame::Goodbye(_)))), "a grant of {grant}");
        assert_eq!(memory.metrics().sum("pillion_protocol_errors_total"), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_events_sends_its_head_after_five_seconds_and_then_comments() {
    let mut memory = Memory::start(&[]);
    let _worker = memory.worker(Profile { batch_cost: seconds(30), ..Profile::default() });
    let mut client = memory.connect();
    let body = json!({"text": "a"}).to_string();
    let head = format!("POST /generate_stream HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    let begun = Instant::now();
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(body.as_bytes()).await.unwrap();
    let mut said = String::new();
    let mut when = Vec::new();
    for awaited in ["HTTP/1.1 200 OK\r\n", ": keep-alive\n\n", "\"finish_reason\":\"stop\""] {
        while !said.contains(awaited) {
            let mut bytes = [0; 1024];
            let read = client.read(&mut bytes).await.unwrap();
            said.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        }
        when.push(begun.elapsed().as_secs());
    }
    assert_eq!(when, [5, 20, 30]);
}

/// A worker's end of a connection that panics when the proxy reads from it, once `broken` is set.
struct Panics {
    io: DuplexStream,
    broken: Arc<AtomicBool>,
}

impl AsyncRead for Panics {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        assert!(!self.broken.load(Relaxed), "the link's task is to panic here");
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Panics {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_that_panics_is_a_lost_worker() {
    let mut memory = Memory::start(&["--max-batch-size", "2"]);
    let (near, io) = duplex(4096);
    let broken = Arc::new(AtomicBool::new(false));
    let link = tokio::spawn(memory.proxy().clone().serve_worker(Panics { io, broken: broken.clone() }));
    let slow = Profile { step_cost: seconds(1), ..Profile::default() };
    let (_drain, told) = watch::channel(false);
    let worker = tokio::spawn(async move { FakeWorker::new(slow).serve(near, told).await });
    tokio::time::sleep(millis(1)).await;
    let asked: Vec<_> = ["one", "two", "three"]
        .map(|text| tokio::spawn(memory.generate(&json!({"text": text, "min_new_tokens": 3}))))
        .into();
    tokio::time::sleep(millis(1)).await;
    assert_eq!(memory.metrics().sum("pillion_running"), 2);
    broken.store(true, Relaxed);
    let _other = memory.worker(Profile::default());
    for answer in asked {
        let answer = answer.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert!(link.await.is_ok() && !matches!(worker.await, Ok(Ok(Ending::Drained))));
    let metrics = memory.metrics();
    assert_eq!(metrics.with("pillion_workers_lost_total", &[("reason", "internal")]), 1);
    assert_eq!((metrics.sum("pillion_workers_connected"), metrics.sum("pillion_running")), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_a_worker_must_not_send_is_refused_as_soon_as_its_header_has_come() {
    let hello = || Frame::Hello(Profile::default().hello);
    // A second HELLO, a second DRAINING, and the header of a BATCH of 64 MiB.
    let batch = [b"PL\x01\x11".as_slice(), &[0; 8], &(64_u32 << 20).to_be_bytes()].concat();
    for (frames, bytes, said) in [
        (vec![hello(), hello()], vec![], "a second HELLO"),
        (vec![hello(), Frame::Draining, Frame::Draining], vec![], "a second DRAINING"),
        (vec![hello()], batch, "a BATCH, which only a proxy sends"),
    ] {
        let mut memory = Memory::start(&[]);
        let (reader, writer) = tokio::io::split(memory.dial());
        let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
        frames.iter().for_each(|frame| writer.put(frame).unwrap());
        writer.flush().await.unwrap();
        writer.into_inner().write_all(&bytes).await.unwrap();
        assert!(matches!(reader.next().await, Ok(Some(Frame::Welcome(_)))));
        let goodbye = tokio::time::timeout(seconds(5), reader.next()).await.expect("a refusal");
        let Ok(Some(Frame::Goodbye(goodbye))) = goodbye else { panic!("{goodbye:?}") };
        assert!(goodbye.message.contains(said), "{}", goodbye.message);
        assert_eq!(memory.metrics().sum("pillion_protocol_errors_total"), 1);
    }
}
