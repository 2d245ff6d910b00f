//! The Python worker in `protocol/README.md` runs as it stands there, with a real proxy.

use std::path::{Path, PathBuf};
use std::process::Command;

use pillion_tests::events::Event;
use pillion_tests::folder::Folder;
use pillion_tests::process::Process;
use pillion_tests::reference::skipped;
use pillion_tests::stack::Stack;
use pillion_tests::{PATIENCE, eventually};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

const HELLO: u8 = 0x01;
const WELCOME: u8 = 0x02;
const CREDIT: u8 = 0x10;
const HEARTBEAT: u8 = 0x40;

fn readme() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/README.md");
    std::fs::read_to_string(path).expect("protocol/README.md can be read")
}

/// The README's one block of Python.
fn program() -> String {
    let readme = readme();
    let blocks: Vec<_> = readme.split("```python\n").skip(1).collect();
    assert_eq!(blocks.len(), 1, "blocks of Python in protocol/README.md");
    blocks[0].split("```").next().expect("the block ends").to_owned()
}

fn python() -> Result<PathBuf, String> {
    let found = Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success());
    if found { Ok("python3".into()) } else { Err("there is no python3".into()) }
}

/// Starts the README's worker, which dials `socket`.
fn worker(python: &Path, folder: &Path, socket: &Path) -> Process {
    let script = folder.join("capitals.py");
    std::fs::write(&script, program()).expect("the folder can be written");
    let arguments = [script.to_str().expect("a plain path"), socket.to_str().expect("a plain path")];
    Process::script(python, &arguments, &[], folder.join("capitals.log"))
}

/// A proxy with the README's worker; `None` where there is no Python.
async fn serving(test: &str) -> Option<(Stack, Process)> {
    let python = python();
    if skipped(test, std::slice::from_ref(&python)) {
        return None;
    }
    let stack = Stack::proxy(&[]).await;
    let mut worker = worker(&python.ok()?, stack.folder(), &stack.socket());
    let client = stack.client();
    eventually("the proxy is ready", async || {
        assert!(worker.runs(), "the worker ended:\n{}", worker.log());
        (client.try_get("/readyz").await?.status == 200).then_some(())
    })
    .await;
    Some((stack, worker))
}

/// The worker still serves, and the proxy has found no fault with it.
async fn holds(stack: &Stack, worker: &mut Process) {
    assert!(worker.runs(), "the worker ended:\n{}", worker.log());
    let metrics = stack.metrics().await;
    for fault in ["pillion_protocol_errors_total", "pillion_workers_lost_total", "pillion_worker_reconnects_total"] {
        assert_eq!(metrics.sum(fault), 0, "{fault}");
    }
}

#[tokio::test]
async fn the_readmes_worker_gives_the_answer_that_the_readme_shows() {
    let test = "the_readmes_worker_gives_the_answer_that_the_readme_shows";
    let Some((stack, mut worker)) = serving(test).await else { return };
    let answer = stack.client().generate(&json!({"text": "one two three"})).await;
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 3});
    assert_eq!(answer.json(), json!({"text": "ONE TWO THREE", "finish_reason": "stop", "usage": usage}));
    assert!(readme().contains(&format!("\n{}\n", answer.text())), "the README shows {}", answer.text());
    holds(&stack, &mut worker).await;
}

#[tokio::test]
async fn the_readmes_worker_serves_lists_limits_and_one_batch_after_another() {
    let test = "the_readmes_worker_serves_lists_limits_and_one_batch_after_another";
    let Some((stack, mut worker)) = serving(test).await else { return };
    let client = stack.client();
    for k in 0..5 {
        let asked = json!({"text": [format!("a{k}"), "\u{fc}ber drei worte", " "], "max_new_tokens": 2});
        let answer = client.generate(&asked).await.json();
        assert_eq!(answer["text"], json!([format!("A{k}"), "\u{dc}BER DREI", null]));
        assert_eq!(answer["finish_reason"], json!(["stop", "length", "error"]));
    }
    holds(&stack, &mut worker).await;
}

#[tokio::test]
async fn the_readmes_worker_streams() {
    let Some((stack, mut worker)) = serving("the_readmes_worker_streams").await else { return };
    let events = stack.client().events("/generate_stream", &json!({"text": "a few words"})).await.rest().await;
    let events: Vec<_> = events.iter().map(Event::json).collect();
    let text: String = events.iter().filter_map(|event| event["text"].as_str()).collect();
    assert_eq!(text, "A FEW WORDS");
    assert_eq!(events.last().expect("an event")["finish_reason"], "stop");
    holds(&stack, &mut worker).await;
}

/// The type and payload of the next frame.
async fn frame(worker: &mut UnixStream) -> (u8, Value) {
    let reading = async {
        let mut header = [0; 16];
        worker.read_exact(&mut header).await.expect("a header");
        let [.., a, b, c, d] = header;
        let mut payload = vec![0; usize::try_from(u32::from_be_bytes([a, b, c, d])).expect("a length")];
        worker.read_exact(&mut payload).await.expect("a payload");
        (header[3], serde_json::from_slice(&payload).expect("JSON"))
    };
    timeout(PATIENCE, reading).await.expect("a frame in time")
}

#[tokio::test]
async fn the_readmes_worker_sends_heartbeats_while_nothing_is_asked() {
    let python = python();
    if skipped("the_readmes_worker_sends_heartbeats_while_nothing_is_asked", std::slice::from_ref(&python)) {
        return;
    }
    let folder = Folder::new();
    let socket = folder.path().join("worker.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let _worker = worker(&python.expect("it is there"), folder.path(), &socket);
    let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.expect("it dials in time").expect("it dials");
    assert_eq!(frame(&mut stream).await.0, HELLO);
    let welcome = br#"{"version": 1, "max_batch_size": 50}"#;
    let length = u8::try_from(welcome.len()).expect("a short frame");
    let header = [b'P', b'L', 1, WELCOME, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, length];
    stream.write_all(&[&header[..], welcome].concat()).await.expect("it reads");
    assert_eq!(frame(&mut stream).await, (CREDIT, json!({"grant": 1})));
    for _ in 0..3 {
        assert_eq!(frame(&mut stream).await, (HEARTBEAT, json!({"steps": 0, "silence_ms": 5000})));
    }
}
