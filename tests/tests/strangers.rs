//! Only permitted users may connect to the workers' socket.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::unistd::{Uid, chown};
use pillion_tests::folder::Folder;
use pillion_tests::process::{Process, binary};
use pillion_tests::say;
use pillion_tests::stack::Stack;
use serde_json::json;

/// The user id of `nobody`, who has no rights.
const NOBODY: &str = "65534";

/// Starts a simulated worker as another user, from a copy of the program that this user can reach.
fn nobodys_worker(stack: &Stack) -> Process {
    let program = stack.folder().join("nobodys-worker");
    std::fs::copy(binary("simulated-worker").unwrap(), &program).unwrap();
    let (user, group) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
    let socket = stack.socket();
    let command = [&user, &group, "--clear-groups", program.to_str().unwrap(), "--socket", socket.to_str().unwrap()];
    Process::script(Path::new("/usr/bin/setpriv"), &command, &[], stack.folder().join("nobody.log"))
}

/// Whether the test is skipped, since it cannot run a process as another user.
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
    // The other user is refused even if the mode of the socket lets them connect.
    set_permissions(stack.socket(), Permissions::from_mode(0o666)).unwrap();
    let _stranger = nobodys_worker(&stack);
    stack.metric("pillion_workers_refused_total", |refused| refused > 2).await;
    assert_eq!(stack.metrics().await.sum("pillion_workers_connected"), 1);
    stack
        .proxy
        .logged("the refusal", |line| (line.contains("another user") && line.contains(NOBODY)).then_some(()))
        .await;
    assert_eq!(stack.proxy.log().matches("another user").count(), 1, "the refusal was logged more than once");
    assert_eq!(stack.client().generate(&json!({"text": "a b"})).await.status, 200);
}

#[tokio::test]
async fn a_worker_of_an_allowed_user_is_served() {
    if skipped("a_worker_of_an_allowed_user_is_served") {
        return;
    }
    let stack = Stack::proxy(&["--allow-peer", NOBODY]).await;
    set_permissions(stack.socket(), Permissions::from_mode(0o666)).unwrap();
    let _worker = nobodys_worker(&stack);
    stack.ready().await;
    assert_eq!(stack.client().generate(&json!({"text": "a b"})).await.status, 200);
    assert_eq!(stack.metrics().await.sum("pillion_workers_refused_total"), 0);
}

#[tokio::test]
async fn a_default_folder_of_another_user_is_not_used() {
    const NAME: &str = "a_default_folder_of_another_user_is_not_used";
    if skipped(NAME) {
        return;
    }
    if Path::new("/run/pillion").is_dir() {
        return say(&format!("SKIPPED: {NAME} needs a machine without /run/pillion, which is the first default"));
    }
    let temporary = Folder::new();
    let squatted = temporary.path().join("pillion-0");
    std::fs::create_dir(&squatted).unwrap();
    chown(&squatted, Some(Uid::from_raw(NOBODY.parse().unwrap())), None).unwrap();
    let tmpdir = format!("TMPDIR={}", temporary.path().display());
    let wrapper = ["env", "-u", "XDG_RUNTIME_DIR", "-u", "PILLION_SOCKET", &tmpdir].map(str::to_owned);
    let log = temporary.path().join("proxy.log");
    let mut proxy = Process::start_by(&wrapper, "pillion-proxy", &["--listen", "127.0.0.1:0"], log);
    assert_eq!(proxy.ended().await, Some(69), "{}", proxy.log());
    assert!(proxy.log().contains("another user may have made"), "{}", proxy.log());
}
