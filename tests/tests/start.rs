//! How the programs start, and how they do not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

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

/// The rows of a table of `deploy/README.md`: the names in the first column, without labels, and the row.
fn rows_until(heading: &str, end: &str) -> Vec<(Vec<String>, String)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy/README.md");
    let text = fs::read_to_string(page).unwrap();
    let section = text.split(heading).nth(1).unwrap().split(end).next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `").map(|rest| (rest, line)));
    rows.map(|(rest, line)| {
        let cell = format!("`{}", rest.split(" | ").next().unwrap_or_default());
        let names =
            cell.split('`').skip(1).step_by(2).map(|name| name.split('{').next().unwrap_or_default().to_owned());
        (names.collect(), line.to_owned())
    })
    .collect()
}

#[tokio::test]
async fn the_page_of_metrics_has_each_series_and_each_series_is_there_from_the_start() {
    let stack = Stack::simulated(&[], &[]).await;
    // A histogram is there once it has a sample.
    stack.client().generate(&json!({"text": "a b"})).await;
    let served = stack.client().get("/metrics").await.text();
    let types = served.lines().filter_map(|line| line.strip_prefix("# TYPE pillion_")?.split(' ').next());
    let served_names: BTreeSet<&str> = types.collect();
    let rows = rows_until("\n## Metrics\n", "\n## ");
    let named: BTreeSet<&str> = rows.iter().flat_map(|(names, _)| names).map(String::as_str).collect();
    assert_eq!(named, served_names);
    // Counters begin at 0, and the page explains each reason.
    for (label, values) in [
        ("rejected_total", ["queue_full", "queue_bytes", "deadline", "draining"].as_slice()),
        ("cancelled_total", &["queued", "running"]),
        ("resumed_total", &["worker_lost", "yielded", "preempted"]),
        ("workers_lost_total", &["closed", "stuck", "protocol", "internal"]),
        ("connections_closed_total", &["idle", "head", "unread"]),
    ] {
        let series = served.lines().filter(|line| line.starts_with(&format!("pillion_{label}{{")));
        let served: BTreeSet<&str> = series.filter_map(|line| line.split('"').nth(1)).collect();
        assert_eq!(served, values.iter().copied().collect(), "{label}");
        let (_, row) = rows.iter().find(|(names, _)| names.iter().any(|name| name == label)).unwrap();
        values.iter().for_each(|value| assert!(row.contains(&format!("`{value}`")), "{label}: {value}"));
    }
}

/// The flags that `--help` names, each with its default or nothing. Each must have its environment variable.
async fn flags(program: &str) -> BTreeMap<String, String> {
    let folder = Folder::new();
    let mut process = Process::start(program, &["--help"], folder.path().join("help"));
    assert_eq!(process.ended().await, Some(0));
    let help = process.log();
    let mut flags = BTreeMap::new();
    for part in help.split("\n      --").skip(1) {
        let name = part.split_whitespace().next().unwrap();
        let variable = format!("[env: PILLION_{}=]", name.to_uppercase().replace('-', "_"));
        assert!(part.contains(&variable), "--{name} has no {variable}");
        let default = part.split("[default: ").nth(1).and_then(|rest| rest.split(']').next()).unwrap_or_default();
        flags.insert(format!("--{name}"), default.to_owned());
    }
    flags
}

#[tokio::test]
async fn the_page_of_flags_has_each_flag_with_its_default() {
    for program in ["pillion-proxy", "pillion-worker"] {
        let flags = flags(program).await;
        let heading = format!("\n| `{program}` | default | meaning |\n");
        let section = rows_until(&heading, "\n\n");
        let named: BTreeSet<&String> = section.iter().flat_map(|(names, _)| names).collect();
        assert_eq!(named, flags.keys().collect(), "{program}");
        for (names, row) in &section {
            let stated = row.split(" | ").nth(1).unwrap().trim_matches('`');
            let (default, is_word) = (&flags[&names[0]], stated.contains(' ') || names.len() > 1);
            // Where the default is none of the flag's values, the page has words.
            if !default.is_empty() && !is_word && names[0] != "--socket" {
                assert_eq!(stated, default, "{program} {}", names[0]);
            }
        }
    }
}
