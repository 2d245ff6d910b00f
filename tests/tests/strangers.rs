//! Who may dial the workers' socket.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::unistd::Uid;
use pillion_tests::process::{Process, binary};
use pillion_tests::say;
use pillion_tests::stack::Stack;
use serde_json::json;

/// Of the user that everywhere has nothing.
const NOBODY: &str = "65534";

/// A simulated worker that runs as another user, its program where that user can reach it.
fn nobodys_worker(stack: &Stack) -> Process {
    let program = stack.folder().join("nobodys-worker");
    std::fs::copy(binary("simulated-worker").unwrap(), &program).unwrap();
    let (user, group) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
    let socket = stack.socket();
    let command = [&user, &group, "--clear-groups", program.to_str().unwrap(), "--socket", socket.to_str().unwrap()];
    Process::script(Path::new("/usr/bin/setpriv"), &command, &[], stack.folder().join("nobody.log"))
}

/// Whether this test can run as somebody else.
fn skipped(name: &str) -> bool {
    let is_root = Uid::effective().is_root();
    if !is_root {
        say(&format!("SKIPPED: {name} needs root, to run a worker as another user"));
    }
    !is_root
}

#[tokio::test]
async fn a_worker_of_another_user_is_refused_and_counted() {
    if skipped("a_worker_of_another_user_is_refused_and_counted") {
        return;
    }
    let mut stack = Stack::simulated(&[], &[]).await;
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&stack.socket()), 0o660);
    // Even where the socket's mode would let it in.
    set_permissions(stack.socket(), Permissions::from_mode(0o666)).unwrap();
    let _stranger = nobodys_worker(&stack);
    stack.metric("pillion_workers_refused_total", |refused| refused > 2).await;
    assert_eq!(stack.metrics().await.sum("pillion_workers_connected"), 1);
    stack
        .proxy
        .logged("it says so", |line| (line.contains("another user") && line.contains(NOBODY)).then_some(()))
        .await;
    assert_eq!(stack.proxy.log().matches("another user").count(), 1, "though it dials all the time");
    assert_eq!(stack.client().generate(&json!({"text": "a b"})).await.status, 200);
}

#[tokio::test]
async fn a_worker_of_a_user_who_may_is_served() {
    if skipped("a_worker_of_a_user_who_may_is_served") {
        return;
    }
    let stack = Stack::proxy(&["--allow-peer", NOBODY]).await;
    set_permissions(stack.socket(), Permissions::from_mode(0o666)).unwrap();
    let _worker = nobodys_worker(&stack);
    stack.ready().await;
    assert_eq!(stack.client().generate(&json!({"text": "a b"})).await.status, 200);
    assert_eq!(stack.metrics().await.sum("pillion_workers_refused_total"), 0);
}
