//! Clients that exist already, against a real proxy and a real worker: they work by a changed base URL.

use std::path::{Path, PathBuf};
use std::process::Output;

use pillion_tests::PATIENCE;
use pillion_tests::reference::{builtin, skipped, worker};
use pillion_tests::stack::Stack;
use tokio::process::Command;
use tokio::time::timeout;

/// The Python that has `tests/clients/requirements.txt` installed.
const PYTHON: &str = "PILLION_TEST_CLIENTS_PYTHON";
/// The folder in whose `node_modules` is what `tests/clients/package.json` names.
const NODE: &str = "PILLION_TEST_NODE";

fn named(variable: &str) -> Result<PathBuf, String> {
    std::env::var_os(variable).map(PathBuf::from).ok_or(format!("{variable} is not set"))
}

/// A proxy and a real worker with the built-in model; `None` where something that the test needs is missing.
async fn serving(test: &str, needs: Result<PathBuf, String>) -> Option<(Stack, PathBuf)> {
    let model = builtin();
    if skipped(test, &[worker(), model.clone(), needs.clone()]) {
        return None;
    }
    let (model, tool) = (model.ok()?, needs.ok()?);
    let mut stack = Stack::proxy(&[]).await;
    let socket = stack.socket();
    let flags = ["--model", model.to_str()?, "--model-name", "builtin", "--device", "cpu"];
    stack.worker("pillion-worker", &flags, &socket);
    stack.ready().await;
    Some((stack, tool))
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

/// What a program says; it must end well.
async fn run(command: &mut Command) -> Output {
    let output = timeout(5 * PATIENCE, command.kill_on_drop(true).output()).await;
    let output = output.expect("it ends in time").expect("it starts");
    let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{said}\n{told}", output.status);
    output
}

#[tokio::test]
async fn openais_python_package_and_httpx_work() {
    let Some((stack, python)) = serving("openais_python_package_and_httpx_work", named(PYTHON)).await else { return };
    let url = format!("http://{}", stack.address());
    let output = run(Command::new(python).arg(script("python_client.py")).args([&*url, "builtin"])).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "all well\n");
}

#[tokio::test]
async fn openais_npm_package_works() {
    let Some((stack, folder)) = serving("openais_npm_package_works", named(NODE)).await else { return };
    let url = format!("http://{}", stack.address());
    let mut node = Command::new("node");
    let output = run(node.env(NODE, folder).arg(script("node_client.mjs")).args([&*url, "builtin"])).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "all well\n");
}

#[tokio::test]
async fn curl_shows_a_stream_as_it_comes() {
    let curl = Ok(PathBuf::from("curl"));
    let Some((stack, curl)) = serving("curl_shows_a_stream_as_it_comes", curl).await else { return };
    let url = format!("http://{}/generate_stream", stack.address());
    let output = run(Command::new(curl).args(["-sN", &url, "-d", r#"{"text": "What is 17 + 25?"}"#])).await;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.starts_with("data: {\"text\":\"4"), "{said}");
    assert!(said.ends_with("}\n\n") && said.contains("\"finish_reason\":\"stop\""), "{said}");
}

/// Requests made up from the API's description, sound ones and broken ones: no answer is a fault of the server's, none is
/// undescribed.
#[tokio::test]
async fn schemathesis_finds_nothing() {
    const SEED: &str = "20261124";
    let Some((stack, python)) = serving("schemathesis_finds_nothing", named(PYTHON)).await else { return };
    let url = format!("http://{}/openapi.json", stack.address());
    let program = python.with_file_name("schemathesis");
    let mut schemathesis = Command::new(program);
    schemathesis
        .args(["run", &url, "--checks", "all", "--max-examples", "50", "--seed", SEED])
        .env("PYTHONPATH", script(""))
        .env("SCHEMATHESIS_HOOKS", "schemathesis_hooks")
        .env("PILLION_MODEL", "builtin")
        .current_dir(stack.folder());
    run(&mut schemathesis).await;
    assert_eq!(stack.metrics().await.sum("pillion_protocol_errors_total"), 0);
}
