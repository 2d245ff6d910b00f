//! How the programs start, and how they do not.

use std::net::TcpListener;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use pillion_tests::client::Client;
use pillion_tests::eventually;
use pillion_tests::folder::Folder;
use pillion_tests::process::Process;
use pillion_tests::reference::{builtin, skipped, worker};
use pillion_tests::stack::Stack;
use serde_json::json;

async fn refused(program: &str, flags: &[&str]) -> (Option<i32>, String) {
    let folder = Folder::new();
    let socket = folder.path().join("worker.sock");
    let flags = [&["--socket", socket.to_str().unwrap()], flags].concat();
    let mut process = Process::start(program, &flags, folder.path().join("log"));
    let code = process.ended().await;
    (code, process.log())
}

#[tokio::test]
async fn a_bad_flag_is_told_with_its_name_and_value_and_exit_code_64() {
    for (flag, value) in [
        ("--max-batch-size", "0"),
        ("--max-batch-size", "many"),
        ("--max-queue", "0"),
        ("--max-queue", "-1"),
        ("--max-body-bytes", "2 parsecs"),
        ("--batch-timeout", "soon"),
        ("--request-timeout", "0s"),
        ("--drain-timeout", "1s"),
        ("--log-format", "xml"),
        ("--listen", "nowhere"),
        ("--allow-peer", "nobody-at-all"),
    ] {
        let (code, log) = refused("pillion-proxy", &[&format!("{flag}={value}")]).await;
        assert_eq!(code, Some(64), "{flag} {value}: {log}");
        assert!(log.contains(flag.trim_start_matches('-')), "{flag} {value}: {log}");
    }
    let (code, log) = refused("pillion-proxy", &["--no-such-flag"]).await;
    assert_eq!(code, Some(64), "{log}");
    assert!(log.contains("--no-such-flag"), "{log}");
}

#[tokio::test]
async fn an_address_that_is_taken_is_exit_code_69() {
    let stack = Stack::proxy(&[]).await;
    let listen = stack.address().to_string();
    let (code, log) = refused("pillion-proxy", &["--listen", &listen]).await;
    assert_eq!(code, Some(69), "{log}");
    assert!(log.contains(&listen), "{log}");
}

#[tokio::test]
async fn a_log_that_cannot_be_written_stops_nobody() {
    const NAME: &str = "a_log_that_cannot_be_written_stops_nobody";
    if skipped(NAME, &[worker(), builtin()]) {
        return;
    }
    let folder = Folder::new();
    let full = || PathBuf::from("/dev/full");
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (address, socket, model) = (listen.to_string(), folder.path().join("worker.sock"), builtin().unwrap());
    let (socket, model) = (socket.to_str().unwrap(), model.to_str().unwrap());
    let mut proxy = Process::start("pillion-proxy", &["--listen", &address, "--socket", socket], full());
    let flags = ["--model", model, "--device", "cpu", "--threads", "1", "--socket", socket];
    let mut worker = Process::start("pillion-worker", &flags, full());
    let client = Client::new(listen);
    eventually("/readyz says 200", async || (client.try_get("/readyz").await?.status == 200).then_some(())).await;
    let answer = client.generate(&json!({"text": "What is 17 + 25?"})).await;
    assert_eq!(answer.json()["text"], "42");
    for process in [&mut worker, &mut proxy] {
        process.signal(Signal::SIGTERM);
        assert_eq!(process.ended().await, Some(0));
    }
}

#[tokio::test]
async fn a_socket_left_behind_is_taken_over() {
    let mut stack = Stack::simulated(&[], &[]).await;
    stack.restart_proxy(Signal::SIGKILL).await;
    stack.ready().await;
}

#[tokio::test]
async fn every_counter_stands_at_zero_from_the_start() {
    let stack = Stack::proxy(&[]).await;
    let metrics = stack.metrics().await;
    for name in [
        "requests_total",
        "batches_total",
        "forced_steps_total",
        "prompt_tokens_total",
        "generated_tokens_total",
        "rejected_total",
        "cancelled_total",
        "resumed_total",
        "worker_reconnects_total",
        "protocol_errors_total",
        "log_lines_lost_total",
        "workers_refused_total",
        "connections_closed_total",
        "queue_depth",
        "running",
        "build_info",
    ] {
        assert!(metrics.has(&format!("pillion_{name}")), "pillion_{name} is missing");
    }
}
