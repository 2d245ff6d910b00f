//! `deploy/local` and `deploy/reload`, as a user runs them: `pillion serve` and `pillion reload` from the sources.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pillion_tests::client::Client;
use pillion_tests::eventually;
use pillion_tests::folder::Folder;
use pillion_tests::process::{Process, binary};
use pillion_tests::reference::{builtin, skipped, worker};
use serde_json::json;

fn deploy(command: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy").join(command)
}

/// A folder for sockets and logs, and an address to serve on.
struct Place {
    folder: Folder,
    listen: SocketAddr,
}

impl Place {
    fn new() -> Self {
        let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self { folder: Folder::new(), listen }
    }

    fn start(&self, command: &str, flags: &[&str]) -> Process {
        let address = self.listen.to_string();
        let script = deploy(command);
        // Tests that are run in the background have been made to ignore SIGINT, and what they start would too.
        let flags = [&["--default-signal=INT", script.to_str().unwrap(), "--listen", &address], flags].concat();
        let variables = [("XDG_RUNTIME_DIR", self.folder.path()), ("XDG_CACHE_HOME", self.folder.path())];
        Process::script(Path::new("env"), &flags, &variables, self.folder.path().join(format!("{command}.log")))
    }

    /// The programs that were built beside this test.
    fn local(&self, flags: &[&str]) -> Process {
        let programs = binary("pillion-proxy").unwrap();
        let programs = programs.parent().unwrap().to_str().unwrap();
        self.start("local", &[&["--device", "cpu", "--binaries", programs], flags].concat())
    }

    async fn serving(&self, flags: &[&str]) -> Process {
        let mut local = self.local(flags);
        local.logged("it serves", |line| line.contains("try:").then_some(())).await;
        local
    }

    /// One question, and its right answer.
    async fn asked(&self) {
        ask(self.listen, 7).await;
    }

    /// A client that asks until the task is aborted; it ends by itself if a request fails.
    fn asking(&self) -> tokio::task::JoinHandle<()> {
        let listen = self.listen;
        tokio::spawn(async move {
            for k in 1.. {
                ask(listen, k).await;
            }
        })
    }
}

async fn ask(listen: SocketAddr, k: u32) {
    let sum = k % 40 + 2;
    let answer = Client::new(listen).generate(&json!({"text": format!("What is {} + 2?", sum - 2)})).await;
    assert_eq!(answer.json()["text"].as_str().map(str::trim), Some(&*sum.to_string()), "{}", answer.text());
}

/// The numbers of a process's children that run this program.
fn children(parent: u32, program: &str) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |pid: &u32| {
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
        // "PID (NAME) STATE PARENT ...", and a name has 15 bytes at most.
        let Some((name, rest)) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')) else { return false };
        let words: Vec<&str> = rest.split_whitespace().take(2).collect();
        words.get(1).and_then(|word| word.parse().ok()) == Some(parent) && words[0] != "Z" && program.starts_with(name)
    };
    numbers.filter(is_child).collect()
}

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

fn lacks(test: &str) -> bool {
    skipped(test, &[worker(), builtin()])
}

#[tokio::test]
async fn a_running_stack_gets_another_model_and_no_request_notices() {
    if lacks("a_running_stack_gets_another_model_and_no_request_notices") {
        return;
    }
    let place = Place::new();
    let mut local = place.serving(&[]).await;
    let asking = place.asking();
    // A worker leaves only once its successor is there.
    let client = Client::new(place.listen);
    let watching = tokio::spawn(async move {
        loop {
            let answer = client.get("/readyz").await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let mut reload = place.start("reload", &[]);
    assert_eq!(reload.ended().await, Some(0), "{}", reload.log());
    let mut reload = place.start("reload", &["--model", "/no/such/model"]);
    assert_eq!(reload.ended().await, Some(66), "{}", reload.log());
    let broken = place.folder.path().join("broken");
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join("model.bin"), "none").unwrap();
    let mut reload = place.start("reload", &[broken.to_str().unwrap()]);
    assert_eq!(reload.ended().await, Some(66), "{}", reload.log());
    assert!(reload.log().contains("the model before goes on"), "{}", reload.log());
    let mut reload = place.start("reload", &["--model", builtin().unwrap().to_str().unwrap()]);
    assert_eq!(reload.ended().await, Some(0), "{}", reload.log());
    let served = local.log().lines().filter(|line| line.contains("a worker has connected")).count();
    assert_eq!(served, 3, "{}", local.log());
    assert!(!asking.is_finished(), "a request failed");
    assert!(!watching.is_finished(), "it was not ready");
    asking.abort();
    watching.abort();

    local.signal(Signal::SIGINT);
    assert_eq!(local.ended().await, Some(0), "{}", local.log());
    let mut reload = place.start("reload", &[]);
    assert_eq!(reload.ended().await, Some(69), "{}", reload.log());
}

#[tokio::test]
async fn workers_and_a_proxy_that_die_are_started_again() {
    if lacks("workers_and_a_proxy_that_die_are_started_again") {
        return;
    }
    let place = Place::new();
    let mut local = place.serving(&["--workers", "2"]).await;
    let parent = local.pid().unwrap();
    let connected = |log: &str| log.matches("a worker has connected").count();
    eventually("both workers serve", async || (connected(&local.log()) == 2).then_some(())).await;
    let workers = children(parent, "pillion-worker");
    assert_eq!(workers.len(), 2);
    let asking = place.asking();
    for victim in workers {
        send(victim, Signal::SIGKILL);
        eventually("there are two again", async || {
            let workers = children(parent, "pillion-worker");
            (workers.len() == 2 && !workers.contains(&victim)).then_some(())
        })
        .await;
    }
    eventually("their successors serve", async || (connected(&local.log()) >= 4).then_some(())).await;
    assert!(!asking.is_finished(), "a request failed");
    asking.abort();

    let [proxy] = children(parent, "pillion-proxy")[..] else { panic!("one proxy runs") };
    send(proxy, Signal::SIGKILL);
    // Whoever comes while there is none waits in the socket, which is still there.
    place.asked().await;
    assert!(local.log().contains("the proxy was ended by SIGKILL; starting it again"), "{}", local.log());
    local.signal(Signal::SIGTERM);
    assert_eq!(local.ended().await, Some(0), "{}", local.log());
}

#[tokio::test]
async fn a_supervisor_that_is_killed_leaves_nothing_behind() {
    if lacks("a_supervisor_that_is_killed_leaves_nothing_behind") {
        return;
    }
    let place = Place::new();
    let mut local = place.serving(&[]).await;
    let parent = local.pid().unwrap();
    let left = [children(parent, "pillion-proxy"), children(parent, "pillion-worker")].concat();
    assert_eq!(left.len(), 2);
    local.signal(Signal::SIGKILL);
    assert_eq!(local.ended().await, None);
    eventually("both have ended", async || {
        left.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    })
    .await;
    // And nothing of it is in the way of the next.
    let mut local = place.serving(&[]).await;
    place.asked().await;
    local.signal(Signal::SIGTERM);
    assert_eq!(local.ended().await, Some(0), "{}", local.log());
}

#[tokio::test]
async fn an_interrupt_at_any_moment_ends_it_well() {
    if lacks("an_interrupt_at_any_moment_ends_it_well") {
        return;
    }
    for sign in ["", "starting version", "configuration version", "measured threads", "a worker has connected"] {
        let place = Place::new();
        let mut local = place.local(&[]);
        if sign.is_empty() {
            // Python has begun, and is no shell any more that has not heard of the signal.
            let name = format!("/proc/{}/comm", local.pid().unwrap());
            eventually("it is Python", async || fs::read_to_string(&name).ok()?.starts_with("python").then_some(()))
                .await;
            let handles = |line: &str| u64::from_str_radix(line.strip_prefix("SigCgt:")?.trim(), 16).ok();
            let status = format!("/proc/{}/status", local.pid().unwrap());
            eventually("it handles SIGTERM", async || {
                let caught = fs::read_to_string(&status).ok()?.lines().find_map(handles)?;
                (caught & 1 << (Signal::SIGTERM as u64 - 1) != 0).then_some(())
            })
            .await;
        } else {
            local.logged(sign, |line| line.contains(sign).then_some(())).await;
        }
        local.signal(Signal::SIGINT);
        assert_eq!(local.ended().await, Some(0), "{sign}: {}", local.log());
        assert!(!local.log().contains("Traceback"), "{}", local.log());
        let left = fs::read_dir(place.folder.path().join("pillion-serve"));
        assert!(left.map_or(0, Iterator::count) == 0, "its sockets are left");
    }
}

#[tokio::test]
async fn what_cannot_be_served_is_told_with_an_exit_code() {
    if lacks("what_cannot_be_served_is_told_with_an_exit_code") {
        return;
    }
    let place = Place::new();
    let file = |name: &str, text: &str| {
        let path = place.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let gguf = file("some.gguf", "GGUF");
    file("broken/model.bin", "none");
    let broken = place.folder.path().join("broken");
    let broken = broken.to_str().unwrap();
    for (flags, code, told) in [
        (&["/no/such/model"][..], 66, "/no/such/model: does not exist"),
        (&[&gguf], 66, "is a GGUF file"),
        (&[broken], 66, "worker 1 ended with exit code 66 before it was ready"),
        (&["--workers", "0"], 64, "--workers does not take '0'"),
        (&["--max-queue", "none"], 64, "the proxy ended with exit code 64 before it was ready"),
        (&["--slots", "none"], 64, "--slots does not take \"none\""),
        (&["--no-such-flag"], 64, "there is no flag --no-such-flag"),
        (&["--socket", "/no/such/folder/worker.sock"], 64, "/no/such/folder is not"),
        (&["--device", "cuda"], 69, "--device cuda is not available"),
    ] {
        let mut local = match flags {
            // The later one counts.
            ["--device", _] if !Path::new("/dev/nvidiactl").exists() => place.local(flags),
            ["--device", _] => continue,
            _ => place.local(flags),
        };
        assert_eq!(local.ended().await, Some(code), "{flags:?}: {}", local.log());
        assert!(local.log().contains(told), "{flags:?}: {}", local.log());
    }
    let _taken = TcpListener::bind(place.listen).unwrap();
    let mut local = place.local(&[]);
    assert_eq!(local.ended().await, Some(69), "{}", local.log());
    assert!(local.log().contains("Address already in use; --listen takes another"), "{}", local.log());
}

#[tokio::test]
async fn an_engine_that_cannot_be_fetched_is_told_in_a_sentence_and_nothing_is_left() {
    let place = Place::new();
    let copy = place.folder.path().join("deploy");
    let engine = copy.join("engine");
    fs::create_dir_all(&engine).unwrap();
    for file in ["setup", "functions", "engine/requirements.txt"] {
        fs::copy(deploy(file), copy.join(file)).unwrap();
    }
    // Pip sees this folder and nothing else.
    let wheels = place.folder.path().join("wheels");
    fs::create_dir(&wheels).unwrap();
    let alone: [(&str, &Path); 3] =
        [("PIP_NO_INDEX", Path::new("1")), ("PIP_FIND_LINKS", &wheels), ("PIP_NO_CACHE_DIR", Path::new("1"))];
    for (wheel, told) in [
        (None, "the engine cannot be fetched; is there a network?"),
        (Some("ctranslate2-4.8.4-cp312-cp312-manylinux_2_28_x86_64.whl"), "its hash is another; nothing was kept"),
    ] {
        if let Some(wheel) = wheel {
            fs::write(wheels.join(wheel), "another").unwrap();
        }
        let mut setup =
            Process::script(&copy.join("setup"), &[] as &[&str], &alone, place.folder.path().join("setup.log"));
        assert_eq!(setup.ended().await, Some(69), "{}", setup.log());
        assert!(setup.log().contains(told), "{}", setup.log());
        assert_eq!(fs::read_dir(&engine).unwrap().count(), 1, "only the pin is there");
    }
}
