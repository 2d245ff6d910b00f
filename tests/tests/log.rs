//! What happens if nobody reads what the proxy logs.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use pillion_tests::client::Client;
use pillion_tests::folder::Folder;
use pillion_tests::metrics::Metrics;
use pillion_tests::process::Process;
use pillion_tests::{PATIENCE, eventually};
use serde_json::json;
use tokio::time::timeout;

/// A pipe that nobody reads yet. Its buffer takes some 200 lines.
fn pipe(folder: &Path) -> (PathBuf, File) {
    let path = folder.join("log");
    mkfifo(&path, Mode::S_IRWXU).expect("a pipe");
    // Opening it to read, without waiting for a writer, lets the proxy open it to write.
    let reader = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path).expect("a reader");
    (path, reader)
}

/// Sends so many requests that their log lines are more than the proxy keeps.
async fn many_requests(client: &Client) {
    const CLIENTS: usize = 16;
    const EACH: usize = 400;
    let sent = (0..CLIENTS).map(|_| {
        let client = client.clone();
        tokio::spawn(async move {
            for _ in 0..EACH {
                let answer = client.post("/generate", &json!({"text": "a", "max_new_tokens": 1})).await;
                assert_eq!(answer.status, 200, "{}", answer.text());
            }
        })
    });
    for sent in sent.collect::<Vec<_>>() {
        timeout(PATIENCE, sent).await.expect("the proxy answers").expect("every request is answered");
    }
}

#[tokio::test]
async fn a_proxy_whose_log_nobody_reads_answers_counts_the_lost_lines_and_stops() {
    let folder = Folder::new();
    let (log, reader) = pipe(folder.path());
    let door = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let client = Client::new(door.local_addr().expect("its address"));
    let socket = folder.path().join("worker.sock").display().to_string();
    let mut proxy = Process::start_on(&door, "pillion-proxy", &["--socket", &socket, "--log-format", "json"], log);
    eventually("the proxy listens", async || Path::new(&socket).exists().then_some(())).await;
    let _worker = Process::start("simulated-worker", &["--socket", &socket], folder.path().join("worker.log"));
    eventually("/readyz says 200", async || (client.try_get("/readyz").await?.status == 200).then_some(())).await;

    many_requests(&client).await;
    assert_eq!(client.get("/livez").await.status, 200);
    let lost = Metrics::parse(&client.get("/metrics").await.text()).sum("pillion_log_lines_lost_total");
    assert!(lost > 0, "nobody reads, and what is kept is bounded");

    // Somebody reads again, until all lost lines were told: at once, or in parts if the proxy's thread was late.
    let told = thread::spawn(move || {
        let blocking = nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETFL(OFlag::empty()));
        blocking.expect("reads may wait");
        let mut reader = BufReader::new(reader);
        let (mut line, mut told) = (String::new(), 0);
        while told < lost {
            line.clear();
            assert!(reader.read_line(&mut line).expect("the pipe can be read") > 0, "the warning comes");
            if line.contains("log lines were lost") {
                let line: serde_json::Value = serde_json::from_str(&line).expect("a line of JSON");
                told += line["lost"].as_i64().expect("a number");
            }
        }
        (told, reader)
    });
    let told = timeout(PATIENCE, tokio::task::spawn_blocking(move || told.join().expect("the reader")));
    let (told, _reader) = told.await.expect("the warning comes").expect("the reader ends");
    assert_eq!(told, lost);

    // Nobody reads any more.
    many_requests(&client).await;
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.ended().await, Some(0));
}
