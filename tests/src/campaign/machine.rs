//! What happens to the machine under a stack: no descriptors, no memory, another time, a folder that is gone, a proxy that
//! gets no processor.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::process::Command;
use tokio::time::sleep;

use super::load::ask;
use super::setting::{BATCH, Program, connected, often, questions, real_questions};
use super::{Row, Scale};
use crate::eventually;
use crate::folder::Folder;
use crate::process::Process;
use crate::stack::Stack;

/// Where Debian puts what makes a program see another time.
const FAKETIME: &str = "faketime/libfaketime.so.1";

/// The proxy's process is stopped, and goes on after longer than it lets a worker be silent: what that promises, and two seconds.
pub async fn proxy_stops(scale: Scale) -> Row {
    let stack = Stack::proxy(&BATCH).await;
    let program = Program::simulated(&["--silence", "300ms"]);
    let (tally, metrics) = often(scale, stack, &[program.clone(), program], questions(), async |stack, _| {
        stack.proxy.signal(Signal::SIGSTOP);
        sleep(Duration::from_secs(3)).await;
        stack.proxy.signal(Signal::SIGCONT);
        connected(stack, 2).await;
        // What came meanwhile is more than half a second's work.
        stack.metric("pillion_queue_depth", |waiting| waiting == 0).await;
    })
    .await;
    let lost = metrics.sum("pillion_workers_lost_total");
    Row {
        fault: "the proxy's process is stopped (SIGSTOP) for three seconds, longer than a worker may be silent",
        promise: "everybody waits, no request fails, no worker is taken for stuck",
        times: scale.times.to_string(),
        seen: format!("{lost} workers lost"),
        kept: tally.is_clean() && lost == 0,
        tally,
    }
}

/// Nobody reads what proxy and workers log, after the first lines, and a worker is killed.
pub async fn unread_logs(scale: Scale) -> Row {
    // What reads the first lines stays until the program ends, so that the pipe fills and does not break.
    let reader = "exec \"$@\" 2> >(head -n 2 >&2; exec tail --pid=$$ -f /dev/null)";
    let wrapper = ["bash", "-c", reader, "bash"];
    let stack = Stack::proxy_by(&wrapper, Folder::new(), &BATCH).await;
    let program = Program::simulated(&[]);
    let again = program.clone();
    let mut lines = 0;
    let (tally, _) = often(scale, stack, &[program.clone(), program], questions(), async |stack, _| {
        again.replace(stack, 0, Signal::SIGKILL);
        connected(stack, 2).await;
        // As many lines as a pipe holds, and more.
        let client = stack.client();
        for _ in 0..400 {
            client.post("/generate", &json!({"text": "", "wrong": 1})).await;
        }
        lines = stack.proxy.log().lines().count();
    })
    .await;
    Row {
        fault: "nobody reads what the proxy and its workers log, and a worker is killed",
        promise: "no request fails",
        times: scale.times.to_string(),
        seen: format!("{lines} lines were read"),
        kept: tally.is_clean() && lines < 400,
        tally,
    }
}

/// The workers' socket is removed, or the whole folder that it is in, and a worker restarted.
pub async fn folder_removed(scale: Scale) -> Row {
    let stack = Stack::proxy(&BATCH).await;
    let program = Program::simulated(&[]);
    let again = program.clone();
    let mut remade = 0;
    let (tally, _) = often(scale, stack, &[program.clone(), program], questions(), async |stack, turn| {
        let socket = stack.socket();
        if turn % 2 == 0 {
            std::fs::remove_file(&socket).expect("the socket can be removed");
        } else {
            std::fs::remove_dir_all(stack.folder()).expect("the folder can be removed");
        }
        stack.workers[0].signal(Signal::SIGKILL);
        connected(stack, 1).await;
        // Nobody but the proxy makes it.
        eventually("the socket is there again", async || socket.exists().then_some(())).await;
        remade += 1;
        again.start(stack);
        stack.workers.remove(0);
        connected(stack, 2).await;
    })
    .await;
    Row {
        fault: "the workers' socket is removed, in every other turn with its folder, and a worker is killed",
        promise: "both are made again, no request fails",
        times: scale.times.to_string(),
        seen: format!("made again {remade} times, and the next worker connected"),
        kept: tally.is_clean() && remade == scale.times,
        tally,
    }
}

/// The limit of a process, by util-linux's `prlimit`.
async fn limit(process: &Process, what: &str) {
    let pid = process.pid().expect("it runs").to_string();
    let done = Command::new("prlimit").args(["--pid", &pid, what]).status().await.expect("util-linux is there");
    assert!(done.success(), "prlimit --pid {pid} {what}");
}

fn proc(process: &Process, what: &str) -> PathBuf {
    Path::new("/proc").join(process.pid().expect("it runs").to_string()).join(what)
}

/// The hard limit of open files of a process.
fn most_files(process: &Process) -> String {
    let limits = std::fs::read_to_string(proc(process, "limits")).expect("its limits can be asked");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("one of them");
    line.split_whitespace().nth(1).expect("the hard limit").to_owned()
}

/// The proxy may open nothing more, while clients come and a worker is killed.
pub async fn descriptors(scale: Scale) -> Row {
    const STRANGERS: usize = 20;
    let stack = Stack::proxy(&BATCH).await;
    let program = Program::simulated(&[]);
    let again = program.clone();
    let asked = questions();
    let (mut waited, mut answered, mut told) = (0, 0, false);
    let (tally, _) = often(scale, stack, &[program.clone(), program], asked.clone(), async |stack, turn| {
        // Below all that it has open, so that nothing which is closed meanwhile makes room.
        let most = most_files(&stack.proxy);
        limit(&stack.proxy, "--nofile=3:").await;
        let strangers: Vec<_> = (0..STRANGERS)
            .map(|nth| {
                let (client, asked) = (stack.client(), asked.clone());
                tokio::spawn(async move {
                    let question = &asked[(turn + nth) % asked.len()];
                    ask(&client, question).await.is_ok_and(|answer| answer == question.expected)
                })
            })
            .collect();
        again.replace(stack, 0, Signal::SIGKILL);
        sleep(Duration::from_millis(500)).await;
        waited += strangers.iter().filter(|stranger| !stranger.is_finished()).count();
        told |= stack.proxy.log().contains("cannot accept a client");
        limit(&stack.proxy, &format!("--nofile={most}:")).await;
        for stranger in strangers {
            answered += usize::from(stranger.await.expect("no client panics"));
        }
        connected(stack, 2).await;
    })
    .await;
    let all = STRANGERS * scale.times;
    Row {
        fault: "the proxy may open nothing more for half a second (RLIMIT_NOFILE); 20 more clients come, a worker is killed",
        promise: "who is connected is served, who comes waits, no request fails; the log says why",
        times: scale.times.to_string(),
        seen: format!("{waited} of {all} who came then waited, and {answered} had their answers"),
        kept: tally.is_clean() && told && waited == all && answered == all,
        tally,
    }
}

fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?;
    folders.filter_map(|folder| Some(folder.ok()?.path().join(FAKETIME))).find(|path| path.is_file())
}

/// The machine's clock is set forward or back, by days.
///
/// # Panics
/// Debian's package faketime is not installed.
pub async fn clock(scale: Scale) -> Row {
    let steps = ["+400d", "-30d", "+1h", "-1h"];
    let library = faketime().expect("Debian's package faketime is installed");
    let folder = Folder::new();
    let file = folder.path().join("clock");
    let set = |step: &str| std::fs::write(&file, format!("{step}\n")).expect("the clock's file can be written");
    set("+0");
    let (library, time) =
        (format!("LD_PRELOAD={}", library.display()), format!("FAKETIME_TIMESTAMP_FILE={}", file.display()));
    let wrapper = ["env", &library, &time, "FAKETIME_NO_CACHE=1", "DONT_FAKE_MONOTONIC=1"];
    let stack = Stack::proxy_by(&wrapper, folder, &BATCH).await;
    let program = Program::simulated(&["--silence", "300ms"]);
    let mut stepped = 0;
    let (tally, metrics) = often(scale, stack, &[program.clone(), program], questions(), async |stack, turn| {
        let created = async || {
            let body = json!({"model": "simulated", "prompt": "what time is it", "max_tokens": 4});
            stack.client().post("/v1/completions", &body).await.json()["created"].as_i64().expect("it says when")
        };
        let before = created().await;
        set(steps[turn % steps.len()]);
        sleep(Duration::from_millis(500)).await;
        stepped += usize::from((created().await - before).abs() > 1800);
    })
    .await;
    let lost = metrics.sum("pillion_workers_lost_total");
    Row {
        fault: "the clock of proxy and workers is set by hours and days, forward and back",
        promise: "no request fails, no worker is taken for stuck",
        times: scale.times.to_string(),
        seen: format!("answers say {stepped} steps; {lost} workers lost"),
        kept: tally.is_clean() && stepped == scale.times && lost == 0,
        tally,
    }
}

/// One of two real workers may have no more memory than it has, while many long prompts come.
pub async fn memory(scale: Scale, model: &str) -> Row {
    const STRANGERS: usize = 40;
    let program = Program::real(model);
    let asked = real_questions(&program).await;
    let stack = Stack::proxy(&[]).await;
    let again = program.clone();
    let (mut answered, mut short, mut died) = (0, 0, 0);
    let (tally, _) = often(scale, stack, &[program.clone(), program], asked, async |stack, turn| {
        let statm = std::fs::read_to_string(proc(&stack.workers[0], "statm")).expect("its memory can be asked");
        let pages: u64 = statm.split(' ').next().and_then(|pages| pages.parse().ok()).expect("a number of pages");
        limit(&stack.workers[0], &format!("--as={}:", pages * 4096)).await;
        let strangers: Vec<_> = (0..STRANGERS)
            .map(|nth| {
                let text = format!("{turn} {nth} {}", "and so on and on ".repeat(150));
                let (client, body) =
                    (stack.client(), json!({"text": text, "max_new_tokens": 10, "min_new_tokens": 10}));
                tokio::spawn(async move { client.post("/generate", &body).await.status })
            })
            .collect();
        for stranger in strangers {
            answered += usize::from(stranger.await.expect("no client panics") == 200);
        }
        short += stack.workers[0].log().matches("not enough memory").count();
        if stack.workers[0].runs() {
            limit(&stack.workers[0], "--as=unlimited:").await;
        } else {
            died += 1;
        }
        // A fresh one, which has not learned to do with less.
        again.replace(stack, 0, Signal::SIGTERM);
        connected(stack, 1).await;
        connected(stack, 2).await;
    })
    .await;
    let all = STRANGERS * scale.times;
    Row {
        fault: "one of two real workers gets no more memory (RLIMIT_AS), and 40 long prompts come",
        promise: "it does with less, or dies and its members go on elsewhere; no request fails",
        times: scale.times.to_string(),
        seen: format!("{short} calls found no memory, {died} workers died, {answered} of the {all} were answered"),
        kept: tally.is_clean() && answered == all && short + died > 0,
        tally,
    }
}
