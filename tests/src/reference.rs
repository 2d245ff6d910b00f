//! CTranslate2's own Python package as the judge, and what the tests with a real worker need.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::process::binary;
use crate::say;

/// The Python that has `tests/model/requirements-reference.txt` installed.
pub const PYTHON: &str = "PILLION_TEST_PYTHON";

/// Says so and returns true where a test cannot run because something that it needs is missing. With `CI` set it fails.
///
/// # Panics
/// Something is missing and `CI` is set.
pub fn skipped(test: &str, needs: &[Result<PathBuf, String>]) -> bool {
    let missing: Vec<_> = needs.iter().filter_map(|need| need.as_ref().err()).collect();
    if missing.is_empty() {
        return false;
    }
    assert!(std::env::var_os("CI").is_none(), "{test} cannot run: {missing:?}");
    say(&format!("SKIPPED {test}: {missing:?}"));
    true
}

/// The worker's program.
///
/// # Errors
/// It is not built: how to.
pub fn worker() -> Result<PathBuf, String> {
    binary("pillion-worker")
}

/// The model that comes with Pillion.
///
/// # Errors
/// It is not there.
pub fn builtin() -> Result<PathBuf, String> {
    let path = repository().join("deploy/models/builtin");
    if path.join("model.bin").is_file() { Ok(path) } else { Err(format!("no model in {}", path.display())) }
}

/// The Python that the environment names.
///
/// # Errors
/// It names none.
pub fn python() -> Result<PathBuf, String> {
    std::env::var_os(PYTHON).map(PathBuf::from).ok_or(format!("{PYTHON} is not set"))
}

/// Writes a model that nobody trained into `folder`.
///
/// # Panics
/// It cannot be written.
pub fn random_model(folder: &Path, flags: &[&str]) {
    let output = python_command("random_model.py").arg("--output").arg(folder).args(flags).output();
    let output = output.expect("Python starts");
    assert!(output.status.success(), "random_model.py: {}", String::from_utf8_lossy(&output.stderr));
}

/// Writes a tiny model of every family into `folder`, each with what Python answers.
///
/// # Panics
/// They cannot be written.
pub fn families(folder: &Path) {
    let output = python_command("families.py").arg("--output").arg(folder).output();
    let output = output.expect("Python starts");
    assert!(output.status.success(), "families.py: {}", String::from_utf8_lossy(&output.stderr));
}

/// What the reference says to each of `lines`, in their order. `flags` go to it besides the model's folder.
///
/// # Panics
/// It fails, or does not answer every line.
pub fn reference(model: &Path, flags: &[&str], lines: &[Value]) -> Vec<Value> {
    let mut child = python_command("reference.py")
        .arg("--model")
        .arg(model)
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let input: String = lines.iter().flat_map(|line| [line.to_string(), "\n".to_owned()]).collect();
    // Another thread, or both pipes fill up and nobody reads.
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("its output can be read");
    assert!(output.status.success(), "reference.py failed: {}", output.status);
    writer.join().expect("no panic").expect("all lines are taken");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let answers: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();
    assert_eq!(answers.len(), lines.len(), "an answer for every line");
    answers
}

fn python_command(script: &str) -> Command {
    let mut command = Command::new(python().unwrap_or_else(|missing| panic!("{missing}")));
    command.arg(repository().join("tests/model").join(script));
    command
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).to_owned()
}
