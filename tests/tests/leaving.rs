//! The last worker is told to stop and the proxy is not, as in a pod whose proxy is a sidecar. Paused time makes times
//! exact.

use std::time::Duration;

use pillion_proxy::http::Scope;
use pillion_tests::fake_worker::Profile;
use pillion_tests::fake_worker::echo::expected;
use pillion_tests::memory::{Memory, MemoryClient, MemoryWorker};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);
/// A short time, within which everything that is due happens.
const MOMENT: Duration = Duration::from_millis(1);

/// A proxy with one worker, a client that has an answer and keeps its connection, and a connection without a request.
async fn served(profile: Profile) -> (Memory, MemoryWorker, MemoryClient, DuplexStream) {
    let mut memory = Memory::start(&[]);
    let worker = memory.worker(profile);
    let (mut kept, idle) = (memory.client().await, memory.connect());
    assert!(!is_last(&mut kept, "before").await);
    (memory, worker, kept, idle)
}

/// Sends `text` and returns whether the answer is the last on its connection.
async fn is_last(client: &mut MemoryClient, text: &str) -> bool {
    let answer = client.generate(&json!({"text": text})).await;
    assert_eq!((answer.status, answer.json()["text"].as_str()), (200, Some(expected(text, 128, 0).as_str())));
    match answer.header("connection") {
        None => false,
        close => {
            assert_eq!(close, Some("close"));
            true
        }
    }
}

/// Why the proxy is not ready, if it is not.
async fn unready(memory: &mut Memory) -> Option<String> {
    let answer = memory.get("/readyz").await;
    (answer.status == 503).then(|| answer.text())
}

/// A connection that has had one answer and is idle.
async fn used(memory: &mut Memory) -> DuplexStream {
    let mut client = memory.connect();
    client.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"ok\n") {
        assert_ne!(client.read_buf(&mut said).await.unwrap(), 0, "the connection is closed");
    }
    client
}

async fn is_closed(client: &mut DuplexStream) -> bool {
    let mut all = Vec::new();
    timeout(MOMENT, client.read_to_end(&mut all)).await.is_ok()
}

async fn gone(worker: &MemoryWorker) -> Duration {
    let begun = Instant::now();
    while !worker.is_gone() {
        sleep(MOMENT).await;
        assert!(begun.elapsed() < 60 * SECOND, "the worker does not leave");
    }
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn clients_that_never_pause_go_elsewhere_and_the_worker_leaves_with_all_answered() {
    const CLIENTS: u32 = 50;
    let mut memory = Memory::start(&["--max-batch-size", "10"]);
    let worker = memory.worker(Profile { batch_cost: 20 * MOMENT, step_cost: 10 * MOMENT, ..Profile::default() });
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let mut client = memory.client().await;
        clients.spawn(async move {
            for turn in 0_u32.. {
                if is_last(&mut client, &format!("client {number} in turn {turn}")).await {
                    return turn;
                }
            }
            unreachable!("the client is told to go elsewhere")
        });
    }
    sleep(10 * SECOND).await;
    assert_eq!((clients.len(), unready(&mut memory).await), (CLIENTS as usize, None));
    assert!(clients.try_join_next().is_none(), "a client was told to go elsewhere too early");
    worker.drain();
    let turns = timeout(5 * SECOND, clients.join_all()).await.expect("all clients are told to go elsewhere");
    assert!(turns.iter().all(|&turns| turns > 5), "{turns:?}");
    assert!(!worker.is_gone(), "the worker stays as long as requests may come");
    assert!(gone(&worker).await < 5 * SECOND);
    let metrics = memory.metrics();
    assert_eq!((metrics.sum("pillion_queue_depth"), metrics.sum("pillion_resumed_total")), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_request_on_its_way_when_the_last_worker_is_told_to_stop_is_answered() {
    let profile = Profile { batch_cost: 3 * SECOND, ..Profile::default() };
    let (mut memory, worker, mut late, mut idle) = served(profile).await;
    let mut used = used(&mut memory).await;
    worker.drain();
    sleep(MOMENT).await;
    assert_eq!(unready(&mut memory).await.as_deref(), Some("draining: the last worker was told to stop\n"));
    sleep(9 * SECOND / 10).await;
    assert!(!is_closed(&mut idle).await && !is_closed(&mut used).await);
    let asked = tokio::spawn(async move { is_last(&mut late, "just in time").await });
    sleep(SECOND / 5).await;
    assert!(is_closed(&mut idle).await && is_closed(&mut used).await && !asked.is_finished());
    assert!(asked.await.unwrap(), "the client is told to go elsewhere");
    assert!(gone(&worker).await < SECOND, "the batch took longer than the worker has to stay");
    assert_eq!(unready(&mut memory).await.as_deref(), Some("draining: the last worker was told to stop\n"));
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_stays_as_long_as_requests_may_come() {
    let mut memory = Memory::start(&[]);
    let worker = memory.worker(Profile::default());
    sleep(MOMENT).await;
    worker.drain();
    // A client that comes now is answered, and told to go elsewhere.
    sleep(MOMENT).await;
    assert!(is_last(&mut memory.client().await, "a newcomer").await);
    let lingered = gone(&worker).await;
    assert!((1990 * MOMENT..=2 * SECOND + 10 * MOMENT).contains(&lingered), "{lingered:?}");
}

#[tokio::test(start_paused = true)]
async fn no_client_goes_elsewhere_if_another_worker_connects_in_time() {
    let (mut memory, first, mut kept, mut idle) = served(Profile::default()).await;
    first.drain();
    sleep(SECOND / 2).await;
    let _second = memory.worker(Profile::default());
    assert!(gone(&first).await < SECOND, "the worker leaves soon, since an equal one stays");
    for turn in ["soon", "later"] {
        sleep(2 * SECOND).await;
        assert!(!is_last(&mut kept, turn).await);
    }
    assert!(!is_closed(&mut idle).await);
    assert_eq!(unready(&mut memory).await, None);
}

#[tokio::test(start_paused = true)]
async fn idle_connections_stay_for_another_second_if_a_second_worker_leaves() {
    let mut memory = Memory::start(&[]);
    let first = memory.worker(Profile::default());
    let mut idle = memory.connect();
    sleep(MOMENT).await;
    first.drain();
    sleep(SECOND / 2).await;
    let second = memory.worker(Profile::default());
    sleep(SECOND / 4).await;
    second.drain();
    sleep(SECOND / 2).await;
    assert!(!is_closed(&mut idle).await);
    sleep(SECOND).await;
    assert!(is_closed(&mut idle).await);
}

#[tokio::test(start_paused = true)]
async fn connections_for_probes_and_metrics_stay_open() {
    let mut memory = Memory::start(&[]);
    let worker = memory.worker(Profile::default());
    let (mut admin, mut client) = (memory.connect_to(Scope::Admin), memory.connect());
    sleep(MOMENT).await;
    worker.drain();
    gone(&worker).await;
    assert!(is_closed(&mut client).await && !is_closed(&mut admin).await);
}

#[tokio::test(start_paused = true)]
async fn clients_wait_for_a_worker_that_died() {
    let (mut memory, first, mut kept, mut idle) = served(Profile::default()).await;
    first.kill();
    sleep(5 * SECOND).await;
    assert_eq!(unready(&mut memory).await.as_deref(), Some("no worker is connected\n"));
    assert!(!is_closed(&mut idle).await);
    let asked = tokio::spawn(async move { is_last(&mut kept, "meanwhile").await });
    sleep(5 * SECOND).await;
    let _second = memory.worker(Profile::default());
    assert!(!asked.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_comes_after_the_last_worker_left_waits_and_later_clients_stay() {
    let mut memory = Memory::start(&[]);
    let first = memory.worker(Profile::default());
    sleep(MOMENT).await;
    first.drain();
    gone(&first).await;
    let mut idle = memory.connect();
    let mut newcomer = memory.client().await;
    let asked = tokio::spawn(async move { is_last(&mut newcomer, "is anybody there").await });
    sleep(10 * SECOND).await;
    assert!(is_closed(&mut idle).await && !asked.is_finished());
    let _second = memory.worker(Profile::default());
    assert!(asked.await.unwrap(), "the answer is the last, since no worker stayed when the client came");
    let (mut kept, mut idle) = (memory.client().await, memory.connect());
    for turn in ["soon", "later"] {
        assert!(!is_last(&mut kept, turn).await);
        sleep(5 * SECOND).await;
    }
    assert!(!is_closed(&mut idle).await);
}

#[tokio::test(start_paused = true)]
async fn the_last_worker_waits_for_a_slow_body_but_not_forever() {
    let mut memory = Memory::start(&[]);
    let worker = memory.worker(Profile::default());
    let mut slow = memory.connect();
    slow.write_all(b"POST /generate HTTP/1.1\r\nhost: a\r\ncontent-length: 14\r\n\r\n").await.unwrap();
    sleep(MOMENT).await;
    worker.drain();
    sleep(20 * SECOND).await;
    slow.write_all(b"{\"text\": \"a\"}\n").await.unwrap();
    let mut all = Vec::new();
    slow.read_to_end(&mut all).await.unwrap();
    assert!(all.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&all));
    assert!(gone(&worker).await <= SECOND);

    let worker = memory.worker(Profile::default());
    sleep(MOMENT).await;
    worker.drain();
    let mut hostile = JoinSet::new();
    for _ in 0..8 {
        sleep(10 * SECOND).await;
        let mut client = memory.connect();
        client.write_all(b"POST /generate HTTP/1.1\r\nhost: a\r\ncontent-length: 14\r\n\r\n").await.unwrap();
        hostile.spawn(async move {
            let _ = client.read_to_end(&mut Vec::new()).await;
        });
    }
    assert!(worker.is_gone(), "clients that came later do not keep the worker");
}

#[tokio::test(start_paused = true)]
async fn workers_of_two_models_both_serve_requests_on_their_way_when_told_to_stop() {
    let mut memory = Memory::start(&[]);
    let other = Profile::default();
    let mut hello = other.hello.clone();
    hello.model = "other".to_owned();
    let workers = [memory.worker(Profile::default()), memory.worker(Profile { hello, ..other })];
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(memory.client().await);
    }
    sleep(MOMENT).await;
    for worker in &workers {
        worker.drain();
        sleep(SECOND / 10).await;
    }
    sleep(SECOND / 2).await;
    for (client, model) in clients.iter_mut().zip(["simulated", "other"]) {
        let request = json!({"model": model, "prompt": "on its way"});
        let answer = client.post("/v1/completions", &request).await;
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{}", answer.text());
    }
    for worker in &workers {
        gone(worker).await;
    }
}

#[tokio::test(start_paused = true)]
async fn http2_connections_are_closed_after_their_requests_are_answered() {
    let mut memory = Memory::start(&[]);
    let worker = memory.worker(Profile { batch_cost: 3 * SECOND, ..Profile::default() });
    let mut tasks = JoinSet::new();
    let mut client = memory.http2(&mut tasks).await;
    assert_eq!(client.ask().await.unwrap(), 200);
    worker.drain();
    let mut same = client.clone();
    let asked = tokio::spawn(async move { same.ask().await });
    sleep(SECOND / 2).await;
    let mut newcomer = memory.http2(&mut tasks).await;
    let (asked, also) = tokio::join!(asked, newcomer.ask());
    assert_eq!((asked.unwrap().unwrap(), also.unwrap()), (200, 200));
    timeout(SECOND, async { while tasks.join_next().await.is_some() {} }).await.expect("both connections are closed");
    assert!(client.ask().await.is_err());
    assert!(gone(&worker).await < SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_stream_completes_and_is_the_last_answer_on_its_connection() {
    let mut memory = Memory::start(&[]);
    let worker = memory.worker(Profile { step_cost: SECOND, ..Profile::default() });
    let mut client = memory.connect();
    let body = json!({"text": "a b c d e f g h"}).to_string();
    let head = format!("POST /generate_stream HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
    client.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await.unwrap();
    sleep(3 * SECOND).await;
    worker.drain();
    let mut all = Vec::new();
    timeout(60 * SECOND, client.read_to_end(&mut all)).await.expect("the connection is closed").unwrap();
    let all = String::from_utf8(all).unwrap();
    assert!(all.contains("finish_reason") && all.ends_with("0\r\n\r\n"), "{all}");
    assert!(gone(&worker).await < SECOND);
}
