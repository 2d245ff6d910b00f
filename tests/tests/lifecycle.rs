//! Requests while proxies stop and start and clients leave.

mod busy;

use busy::{all_answered, ask, busy};
use nix::sys::signal::Signal;
use pillion_protocol::Frame;
use pillion_protocol::connection::FrameWriter;
use pillion_tests::client::Raw;
use pillion_tests::eventually;
use pillion_tests::fake_worker::Profile;
use pillion_tests::fake_worker::echo::expected;
use pillion_tests::folder::Folder;
use pillion_tests::process::Process;
use pillion_tests::stack::Stack;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

async fn stops_accepting(stack: &Stack) {
    eventually("the proxy stops accepting", async || stack.client().try_get("/livez").await.is_none().then_some(()))
        .await;
}

#[tokio::test]
async fn a_proxy_that_is_told_to_stop_answers_all_admitted_requests() {
    let (mut stack, gate, asked) = busy(&[], 5).await;
    stack.proxy.signal(Signal::SIGTERM);
    stops_accepting(&stack).await;
    gate.open();
    all_answered(asked).await;
    assert_eq!(stack.proxy.ended().await, Some(0));
    assert!(stack.workers[0].runs(), "the worker keeps its model and waits for the next proxy");
}

#[tokio::test]
async fn a_second_signal_ends_the_proxy_at_once() {
    let (mut stack, _gate, asked) = busy(&[], 1).await;
    stack.proxy.signal(Signal::SIGTERM);
    stops_accepting(&stack).await;
    assert!(stack.proxy.runs());
    stack.proxy.signal(Signal::SIGTERM);
    assert_eq!(stack.proxy.ended().await, Some(75), "there was work left");
    for (text, answer) in asked {
        let answer = answer.await.unwrap();
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (503, Some("draining")), "{text}");
    }
    let lines = stack.proxy.log().lines().filter(|line| line.contains("pillion_proxy::request")).count();
    assert_eq!(lines, 2, "the log has the requests that were cut");
}

#[tokio::test]
async fn connections_that_were_not_accepted_when_the_proxy_is_told_to_stop_are_served() {
    let mut stack = Stack::simulated(&[], &[]).await;
    stack.proxy.signal(Signal::SIGSTOP);
    let mut asked = Vec::new();
    for rider in 0..20 {
        let mut client = Raw::connect(stack.address()).await;
        client.post(&format!("{{\"text\": \"{rider} rides\"}}")).await;
        asked.push((rider, client));
    }
    stack.proxy.signal(Signal::SIGTERM);
    stack.proxy.signal(Signal::SIGCONT);
    for (rider, client) in asked {
        let (status, said) = client.to_end().await;
        assert!(status == Some(200) && said.contains(&format!("rides {rider}")), "{rider}: {said:?}");
    }
    assert_eq!(stack.proxy.ended().await, Some(0));
}

#[tokio::test]
async fn two_proxies_on_one_socket_say_so() {
    let mut stack = Stack::simulated(&[], &[]).await;
    let (socket, folder) = (stack.socket(), Folder::new());
    let arguments = ["--listen", "127.0.0.1:0", "--socket", socket.to_str().unwrap()];
    let mut second = Process::start("pillion-proxy", &arguments, folder.path().join("proxy.log"));
    let warns = |what: &'static str| move |line: &str| (line.contains("WARN") && line.contains(what)).then_some(());
    second.logged("the second says so", warns("another proxy")).await;
    stack.proxy.logged("the first says so", warns("another proxy")).await;
}

#[tokio::test]
async fn an_idle_proxy_stops_cleanly_with_idle_clients_connected() {
    let mut stack = Stack::simulated(&[], &[]).await;
    let client = stack.client();
    assert_eq!(client.get("/livez").await.status, 200);
    let idle = Raw::connect(stack.address()).await;
    stack.proxy.signal(Signal::SIGTERM);
    assert_eq!(stack.proxy.ended().await, Some(0));
    drop(idle);
}

#[tokio::test]
async fn a_worker_outlives_its_proxy_and_serves_the_next_one() {
    let mut stack = Stack::simulated(&[], &["--step-cost", "1ms"]).await;
    let clients: Vec<_> = (0..8)
        .map(|rider| {
            let client = stack.client();
            tokio::spawn(async move {
                for turn in 0.. {
                    let text = format!("rider {rider} in turn {turn}");
                    let body = json!({"text": text}).to_string().into();
                    let sent = client.try_send(hyper::Method::POST, "/generate", &[], body).await;
                    match sent {
                        Ok(answer) if answer.status == 200 => {
                            assert_eq!(answer.json()["text"], expected(&text, 128, 0));
                        }
                        Ok(answer) => assert_eq!(answer.status, 503, "{}", answer.text()),
                        Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
                    }
                }
            })
        })
        .collect();
    let answered = |n: i64| move |seen: i64| seen >= n;
    stack.metric("pillion_batches_total", answered(5)).await;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        stack.restart_proxy(signal).await;
        stack.ready().await;
        stack.metric("pillion_batches_total", answered(5)).await;
    }
    assert!(stack.workers[0].runs());
    for client in clients {
        assert!(!client.is_finished(), "a client got a wrong answer");
        client.abort();
    }
}

/// Clients that send one request after another over connections that stay open, and panic at the first failure.
fn closed_loops(stack: &Stack, clients: usize) -> (watch::Sender<bool>, Vec<JoinHandle<usize>>) {
    let (stop, stopped) = watch::channel(false);
    let ask = |rider: usize| {
        let (client, stopped) = (stack.client(), stopped.clone());
        tokio::spawn(async move {
            for turn in 0.. {
                if *stopped.borrow() {
                    return turn;
                }
                let text = format!("rider {rider} in turn {turn}");
                let answer = client.generate(&json!({"text": text})).await;
                assert_eq!(answer.json()["text"], expected(&text, 128, 0));
            }
            unreachable!("the clients are told to stop")
        })
    };
    (stop, (0..clients).map(ask).collect())
}

#[tokio::test]
async fn a_new_proxy_takes_over_the_listening_socket_and_no_request_fails() {
    let mut stack = Stack::proxy_with_door(&[]).await;
    stack.simulated_worker(&["--step-cost", "1ms"]);
    stack.ready().await;
    let (stop, clients) = closed_loops(&stack, 8);
    for _ in 0..3 {
        stack.metric("pillion_batches_total", |seen| seen > 5).await;
        assert_eq!(stack.succeed_proxy().await, Some(0));
    }
    stack.metric("pillion_batches_total", |seen| seen > 5).await;
    stop.send_replace(true);
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }
    assert!(stack.workers[0].runs());
}

#[tokio::test]
async fn a_request_sent_when_the_proxy_is_told_to_stop_is_answered_with_connection_close() {
    let mut stack = Stack::simulated(&[], &[]).await;
    let client = stack.client();
    assert_eq!(client.get("/livez").await.header("connection"), None);
    stack.proxy.signal(Signal::SIGTERM);
    stack.proxy.logged("the proxy stops", |line| line.contains("stopping").then_some(())).await;
    let answer = client.generate(&json!({"text": "just in time"})).await;
    assert_eq!((answer.json()["text"].as_str(), answer.header("connection")), (Some("time in just"), Some("close")));
    assert_eq!(stack.proxy.ended().await, Some(0));
}

#[tokio::test]
async fn the_workers_socket_is_created_again_if_its_folder_is_removed() {
    let folder = Folder::new();
    let socket = folder.path().join("run/worker.sock");
    let path = socket.to_str().unwrap();
    std::fs::create_dir(folder.path().join("run")).unwrap();
    let arguments = ["--listen", "127.0.0.1:0", "--socket", path];
    let mut proxy = Process::start("pillion-proxy", &arguments, folder.path().join("proxy.log"));
    proxy.logged("the proxy listens", |line| line.contains("listening").then_some(())).await;
    std::fs::remove_dir_all(folder.path().join("run")).unwrap();
    eventually("the socket is there again", async || socket.exists().then_some(())).await;
    let mut worker = Process::start("simulated-worker", &["--socket", path], folder.path().join("worker.log"));
    worker.logged("the worker is connected", |line| line.contains("connected").then_some(())).await;
    assert!(proxy.runs());
}

#[tokio::test]
async fn the_workers_socket_is_created_again_while_all_places_for_workers_are_taken() {
    let stack = Stack::proxy(&[]).await;
    let mut workers = Vec::new();
    for _ in 0..256 {
        let mut writer = FrameWriter::new(UnixStream::connect(stack.socket()).await.unwrap());
        writer.put(&Frame::Hello(Profile::default().hello)).unwrap();
        writer.flush().await.unwrap();
        workers.push(writer);
    }
    stack.metric("pillion_workers_connected", |workers| workers == 256).await;
    std::fs::remove_file(stack.socket()).unwrap();
    eventually("the socket is there again", async || stack.socket().exists().then_some(())).await;
}

#[tokio::test]
async fn a_queued_request_whose_client_leaves_frees_its_queue_slot() {
    let stack = Stack::simulated(&[], &["--no-credit"]).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = Raw::connect(stack.address()).await;
        client.post("{\"text\": \"never mind\"}").await;
        clients.push(client);
    }
    stack.metric("pillion_queue_depth", |depth| depth == 3).await;
    drop(clients);
    stack.metric("pillion_queue_depth", |depth| depth == 0).await;
    let cancelled = stack.metrics().await.with("pillion_cancelled_total", &[("stage", "queued")]);
    assert_eq!(cancelled, 3, "{cancelled}");
}

#[tokio::test]
async fn a_running_request_whose_client_leaves_is_removed_from_its_batch() {
    let stack = Stack::simulated(&[], &["--step-cost", "20ms"]).await;
    let mut client = Raw::connect(stack.address()).await;
    client.post("{\"text\": \"a b c\", \"min_new_tokens\": 4000, \"max_new_tokens\": 4000}").await;
    stack.metric("pillion_running", |running| running == 1).await;
    drop(client);
    stack.metric("pillion_running", |running| running == 0).await;
    // The one slot is free again long before 4,000 steps are over.
    all_answered(vec![("is it free".to_owned(), ask(&stack.client(), "is it free"))]).await;
    let cancelled = stack.metrics().await.with("pillion_cancelled_total", &[("stage", "running")]);
    assert_eq!(cancelled, 1, "{cancelled}");
}

#[tokio::test]
async fn a_dump_is_logged_without_texts() {
    let (mut stack, gate, asked) = busy(&[], 2).await;
    stack.proxy.signal(Signal::SIGUSR1);
    stack.proxy.logged("a dump", |line| line.contains("dump").then_some(())).await;
    gate.open();
    all_answered(asked).await;
    assert!(!stack.proxy.log().contains("waiting 0") && !stack.proxy.log().contains("at work"));
}
