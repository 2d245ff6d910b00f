//! What becomes of requests that are not answered when the proxy shuts down. Paused time makes times exact.

use std::time::Duration;

use pillion_protocol::Frame;
use pillion_protocol::connection::FrameWriter;
use pillion_tests::client::Answer;
use pillion_tests::fake_worker::Profile;
use pillion_tests::memory::Memory;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

fn goes_elsewhere(answer: &Answer) {
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(answer.json()["error"]["code"], "draining");
    assert_eq!(answer.header("connection"), Some("close"));
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_body_ends_after_the_drain_began_is_not_admitted() {
    let mut memory = Memory::start(&[]);
    let _worker = memory.worker(Profile::default());
    let mut late = memory.connect();
    late.write_all(b"POST /generate HTTP/1.1\r\nhost: a\r\ncontent-length: 12\r\n\r\n{\"text\":").await.unwrap();
    sleep(SECOND).await;
    memory.proxy().handle.shut_down();
    memory.proxy().service.drain();
    late.write_all(b"\"a\"}").await.unwrap();
    let mut said = String::new();
    late.read_to_string(&mut said).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 503 ") && said.contains(r#""code":"draining""#), "{said}");
    assert_eq!(memory.metrics().with("pillion_rejected_total", &[("reason", "draining")]), 1);
}

#[tokio::test(start_paused = true)]
async fn requests_that_the_shutdown_cuts_are_told_to_go_elsewhere() {
    let mut memory = Memory::start(&["--max-batch-size", "1"]);
    let _worker = memory.worker(Profile { step_cost: SECOND, ..Profile::default() });
    sleep(SECOND).await;
    let asked: Vec<_> = ["at work", "waiting", "waiting too"]
        .map(|text| tokio::spawn(memory.generate(&json!({"text": text, "min_new_tokens": 100, "max_new_tokens": 100}))))
        .into();
    let streamed = tokio::spawn(memory.post("/generate_stream", &json!({"text": "a stream"})));
    sleep(2 * SECOND).await;
    assert_eq!((memory.metrics().sum("pillion_running"), memory.metrics().sum("pillion_queue_depth")), (1, 3));
    memory.proxy().handle.shut_down();
    memory.proxy().handle.close().await;
    for answer in asked.into_iter().chain([streamed]) {
        goes_elsewhere(&answer.await.unwrap());
    }
    assert_eq!((memory.metrics().sum("pillion_running"), memory.metrics().sum("pillion_queue_depth")), (0, 0));
    goes_elsewhere(&memory.generate(&json!({"text": "after the end"})).await);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_does_not_read_keeps_no_client_from_hearing_of_the_shutdown() {
    // Batches that fill the pipe to the worker, and one that fills the link's buffer too.
    for prompt in [10_000, 2_000_000] {
        let mut memory = Memory::start(&["--max-body-bytes", "4MiB"]);
        let mut worker = FrameWriter::new(memory.dial());
        worker.put(&Frame::Hello(Profile::default().hello)).unwrap();
        worker.put(&Frame::Credit { grant: 2 }).unwrap();
        worker.flush().await.unwrap();
        sleep(SECOND).await;
        let asked = tokio::spawn(memory.generate(&json!({"text": "a ".repeat(prompt / 2)})));
        sleep(SECOND).await;
        assert_eq!(memory.metrics().sum("pillion_running"), 1);
        memory.proxy().handle.close().await;
        let begun = Instant::now();
        goes_elsewhere(&asked.await.unwrap());
        assert!(begun.elapsed() < SECOND, "it heard after {:?}", begun.elapsed());
    }
}
