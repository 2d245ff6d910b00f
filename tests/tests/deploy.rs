//! The commands in `deploy/`, as a user runs them.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use pillion_tests::client::Client;
use pillion_tests::folder::Folder;
use pillion_tests::process::{Process, binary};
use pillion_tests::reference::{builtin, skipped, worker};
use serde_json::json;

fn deploy(command: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy").join(command)
}

#[tokio::test]
async fn a_running_stack_gets_another_model_and_no_request_notices() {
    const NAME: &str = "a_running_stack_gets_another_model_and_no_request_notices";
    if skipped(NAME, &[worker(), builtin()]) {
        return;
    }
    let folder = Folder::new();
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let programs = binary("pillion-proxy").unwrap();
    let programs = programs.parent().unwrap();
    let start = |command: &str, flags: &[&str]| {
        let address = listen.to_string();
        let flags = [&["--listen", &address], flags].concat();
        let variables = [("XDG_RUNTIME_DIR", folder.path())];
        Process::script(&deploy(command), &flags, &variables, folder.path().join(format!("{command}.log")))
    };
    let mut local = start("local", &["--device", "cpu", "--binaries", programs.to_str().unwrap()]);
    local.logged("it serves", |line| line.contains("try:").then_some(())).await;

    let client = Client::new(listen);
    let asking = tokio::spawn(async move {
        for k in 1.. {
            let sum = k % 40 + 2;
            let answer = client.generate(&json!({"text": format!("What is {} + 2?", sum - 2)})).await;
            assert_eq!(answer.json()["text"].as_str().map(str::trim), Some(&*sum.to_string()), "{}", answer.text());
        }
    });
    let mut reload = start("reload", &[]);
    assert_eq!(reload.ended().await, Some(0), "{}", reload.log());
    let mut reload = start("reload", &["--model", "/no/such/model"]);
    assert_eq!(reload.ended().await, Some(1), "{}", reload.log());
    assert!(reload.log().contains("the model before goes on"), "{}", reload.log());
    let mut reload = start("reload", &["--model", builtin().unwrap().to_str().unwrap()]);
    assert_eq!(reload.ended().await, Some(0), "{}", reload.log());
    let served = local.log().lines().filter(|line| line.contains("a worker has connected")).count();
    assert_eq!(served, 3, "{}", local.log());
    assert!(!asking.is_finished(), "a request failed");
    asking.abort();

    // Not SIGINT, which a shell cannot hear that was started in the background.
    local.signal(Signal::SIGTERM);
    assert_eq!(local.ended().await, Some(0), "{}", local.log());
    let mut reload = start("reload", &[]);
    assert_eq!(reload.ended().await, Some(69), "{}", reload.log());
}
