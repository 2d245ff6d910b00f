//! `check`, with which each program tells how another of its like is.

use std::process::{Command, Output};

use nix::sys::signal::Signal;
use pillion_tests::process::binary;
use pillion_tests::reference::{builtin, skipped, worker};
use pillion_tests::stack::Stack;

fn check(program: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } =
        Command::new(binary(program).unwrap()).arg("check").args(arguments).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[tokio::test]
async fn a_proxy_is_live_and_with_a_worker_ready() {
    let mut stack = Stack::proxy(&[]).await;
    let address = stack.address().to_string();
    let ask = |probe| check("pillion-proxy", &[probe, "--listen", &address]);
    assert_eq!(ask("live"), (Some(0), String::new()));
    let (code, told) = ask("ready");
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("503") && told.contains("no worker is connected"), "{told}");

    stack.simulated_worker(&[]);
    stack.ready().await;
    assert_eq!(ask("ready"), (Some(0), String::new()));
    // Nothing serves there, and the admin's address is the one that counts.
    let (code, told) = check("pillion-proxy", &["live", "--listen", &address, "--admin-listen", "127.0.0.1:1"]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("127.0.0.1:1 does not answer"), "{told}");
}

#[tokio::test]
async fn a_worker_is_loaded_and_with_a_proxy_ready() {
    let model = builtin();
    if skipped("a_worker_is_loaded_and_with_a_proxy_ready", &[worker(), model.clone()]) {
        return;
    }
    let mut stack = Stack::proxy(&[]).await;
    let flags = ["--model", model.as_ref().unwrap().to_str().unwrap(), "--device", "cpu", "--threads", "1"];
    stack.worker("pillion-worker", &flags, &stack.socket());
    stack.ready().await;
    let pid = stack.workers[0].pid().unwrap().to_string();
    let ask = |probe| check("pillion-worker", &[probe, "--pid", &pid]);
    for probe in ["live", "loaded", "ready"] {
        assert_eq!(ask(probe), (Some(0), String::new()), "{probe}");
    }

    stack.proxy.signal(Signal::SIGKILL);
    stack.proxy.ended().await;
    stack.workers[0].logged("that the proxy is away", |log| log.contains("waiting for the proxy").then_some(())).await;
    assert_eq!(ask("loaded"), (Some(0), String::new()));
    assert_eq!(ask("ready"), (Some(1), format!("worker {pid}: waiting for a proxy\n")));

    stack.workers[0].signal(Signal::SIGTERM);
    stack.workers[0].ended().await;
    let (code, told) = ask("live");
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("does not answer"), "{told}");
}
