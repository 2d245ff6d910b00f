//! What happens to the processes of a stack under load.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::sleep;

use super::load::{Load, Question};
use super::setting::{BATCH, Program, busy, capacity, connected, often, questions, real_questions};
use super::{Row, Scale};
use crate::client::Raw;
use crate::stack::Stack;

/// Time between two kills.
const PAUSE: Duration = Duration::from_secs(2);

/// `kill -9` of one worker every two seconds.
async fn kills(
    scale: Scale,
    program: Program,
    questions: Arc<[Question]>,
    workers: usize,
    share: f64,
    fault: &'static str,
) -> Row {
    // While a real worker loads its model the other cannot keep up: what comes meanwhile must find room.
    let flags = [&BATCH[..], &["--request-timeout", "30s", "--max-queue", "8192"]].concat();
    let mut stack = Stack::proxy(&flags).await;
    (0..workers).for_each(|_| program.start(&mut stack));
    connected(&stack, i64::try_from(workers).expect("few")).await;
    let rate = share * capacity(&stack, &questions, 64).await;
    let load = Load::start(stack.address(), rate, questions);
    sleep(Duration::from_secs(1)).await;
    let (begun, mut killed, mut landed) = (Instant::now(), 0, 0);
    let mut resumed = stack.metrics().await.with("pillion_resumed_total", &[("reason", "worker_lost")]);
    while begun.elapsed() < scale.kills {
        let due = begun + PAUSE * (killed + 1);
        busy(&stack).await;
        program.replace(&mut stack, 0, Signal::SIGKILL);
        killed += 1;
        sleep(due.saturating_duration_since(Instant::now())).await;
        let now = stack.metrics().await.with("pillion_resumed_total", &[("reason", "worker_lost")]);
        landed += u32::from(now > resumed);
        resumed = now;
    }
    let tally = load.stop().await;
    let kept = tally.is_clean() && landed > 0;
    let seen = format!("{rate:.0} requests/s; {landed} kills met a batch, {resumed} texts resumed");
    Row {
        fault,
        promise: "nothing lost, nothing crossed, streams whole",
        times: format!("{killed} kills"),
        tally,
        seen,
        kept,
    }
}

/// Two simulated workers, one of which is killed again and again.
pub async fn kills_of_two(scale: Scale) -> Row {
    let fault = "`kill -9` of one of two workers every 2 s (simulated), at 70 % of what two carry";
    kills(scale, Program::simulated(&["--eager"]), questions(), 2, 0.7, fault).await
}

/// The only worker is killed again and again.
pub async fn kills_of_one(scale: Scale) -> Row {
    let fault = "`kill -9` of the only worker every 2 s (simulated), at 70 %";
    kills(scale, Program::simulated(&["--eager"]), questions(), 1, 0.7, fault).await
}

/// Two real workers with a model, one of which is killed again and again. What they say undisturbed is what is expected.
pub async fn kills_of_real(scale: Scale, model: &str) -> Row {
    let program = Program::real(model);
    let asked = real_questions(&program).await;
    let fault = "`kill -9` of one of two real workers every 2 s, at 70 % of what two carry";
    kills(scale, program, asked, 2, 0.7, fault).await
}

/// The proxy is succeeded by another on the same socket.
pub async fn proxy_restarts(scale: Scale) -> Row {
    let stack = Stack::proxy_with_door(&BATCH).await;
    let program = Program::simulated(&[]);
    let mut clean = 0;
    let (tally, _) = often(scale, stack, &[program.clone(), program], questions(), async |stack, _| {
        clean += usize::from(stack.succeed_proxy().await == Some(0));
        connected(stack, 2).await;
    })
    .await;
    Row {
        fault: "the proxy is succeeded by another on its inherited socket",
        promise: "no request fails",
        times: scale.times.to_string(),
        seen: format!("{clean} ended with code 0"),
        kept: tally.is_clean() && clean == scale.times,
        tally,
    }
}

/// A worker with another model of the same name comes, and the one before is told to leave.
pub async fn model_swaps(scale: Scale) -> Row {
    let stack = Stack::proxy(&BATCH).await;
    let builds: Vec<Program> =
        ["00", "11"].map(|build| Program::simulated(&["--fingerprint", build])).into_iter().collect();
    let mut clean = 0;
    let first = builds[0].clone();
    let (tally, metrics) = often(scale, stack, &[first], questions(), async |stack, turn| {
        builds[(turn + 1) % 2].start(stack);
        connected(stack, 2).await;
        stack.workers[0].signal(Signal::SIGTERM);
        clean += usize::from(stack.workers[0].ended().await == Some(0));
        stack.workers.remove(0);
    })
    .await;
    let resumed = metrics.sum("pillion_resumed_total");
    Row {
        fault: "a worker with a newer model of the same name takes the place of the one before",
        promise: "no request fails",
        times: scale.times.to_string(),
        seen: format!("{clean} ended with code 0, {resumed} texts resumed"),
        kept: tally.is_clean() && clean == scale.times,
        tally,
    }
}

/// Every worker is replaced by its like, one after the other.
pub async fn rolling_restarts(scale: Scale) -> Row {
    let stack = Stack::proxy(&BATCH).await;
    let program = Program::simulated(&[]);
    let mut clean = 0;
    let programs = [program.clone(), program.clone()];
    let (tally, metrics) = often(scale, stack, &programs, questions(), async |stack, _| {
        for _ in 0..2 {
            program.start(stack);
            connected(stack, 3).await;
            stack.workers[0].signal(Signal::SIGTERM);
            clean += usize::from(stack.workers[0].ended().await == Some(0));
            stack.workers.remove(0);
        }
    })
    .await;
    let yielded = metrics.with("pillion_resumed_total", &[("reason", "yielded")]);
    Row {
        fault: "all workers are replaced by their like, one after the other, with SIGTERM",
        promise: "no request fails",
        times: format!("{} of two workers", scale.times),
        seen: format!("{clean} ended with code 0, {yielded} texts handed over"),
        kept: tally.is_clean() && clean == 2 * scale.times,
        tally,
    }
}

/// A prompt that kills whoever serves it.
pub async fn poison(scale: Scale) -> Row {
    let stack = Stack::proxy(&BATCH).await;
    let program = Program::simulated(&[]);
    let mut guilty = Vec::new();
    let (tally, metrics) = often(scale, stack, &[program.clone(), program], questions(), async |stack, turn| {
        let body = json!({"text": format!("!die {turn}")});
        guilty.push(stack.client().post("/generate", &body).await.status);
    })
    .await;
    let lost = metrics.sum("pillion_workers_lost_total");
    Row {
        fault: "a prompt kills every worker that serves it",
        promise: "it alone fails, with 502",
        times: scale.times.to_string(),
        seen: format!("statuses {guilty:?}, {lost} workers lost"),
        kept: tally.is_clean() && guilty.iter().all(|status| *status == 502),
        tally,
    }
}

/// A worker's process is stopped, and goes on later.
pub async fn stops(scale: Scale) -> Row {
    let stack = Stack::proxy(&BATCH).await;
    let program = Program::simulated(&["--silence", "300ms"]);
    let (tally, metrics) = often(scale, stack, &[program.clone(), program], questions(), async |stack, turn| {
        stack.workers[turn % 2].signal(Signal::SIGSTOP);
        connected(stack, 1).await;
        stack.workers[turn % 2].signal(Signal::SIGCONT);
        connected(stack, 2).await;
    })
    .await;
    let found = metrics.with("pillion_workers_lost_total", &[("reason", "stuck")]);
    Row {
        fault: "a worker's process is stopped (SIGSTOP) in the middle of its work",
        promise: "its members go on elsewhere, no request fails; it comes back",
        times: scale.times.to_string(),
        seen: format!("{found} found stuck"),
        kept: tally.is_clean() && found >= i64::try_from(scale.times).expect("few"),
        tally,
    }
}

/// Clients that come all at once, ask for something long, and leave all at once.
pub async fn crowds(scale: Scale) -> Row {
    const CROWD: usize = 300;
    let stack = Stack::proxy(&BATCH).await;
    let program = Program::simulated(&[]);
    let (tally, metrics) = often(scale, stack, &[program.clone(), program], questions(), async |stack, _| {
        let mut crowd = Vec::new();
        for _ in 0..CROWD {
            let mut client = Raw::connect(stack.address()).await;
            client.post(r#"{"text": "a b c", "min_new_tokens": 2000, "max_new_tokens": 2000}"#).await;
            crowd.push(client);
        }
        busy(stack).await;
        drop(crowd);
        stack.metric("pillion_queue_depth", |waiting| waiting < 50).await;
    })
    .await;
    let cancelled = metrics.sum("pillion_cancelled_total");
    Row {
        fault: "300 more clients ask for long answers, and all of them leave at once",
        promise: "the others are served, no request fails",
        times: scale.times.to_string(),
        seen: format!("{cancelled} texts cancelled"),
        kept: tally.is_clean() && cancelled >= i64::try_from(CROWD * scale.times / 2).expect("few"),
        tally,
    }
}

/// Workers that lie or break the protocol, each once in its life.
pub async fn liars(scale: Scale) -> Row {
    let kinds = ["garbage", "half-frame", "answer-twice", "unknown-member", "unknown-batch", "abort", "close"];
    let stack = Stack::proxy(&BATCH).await;
    let program = Program::simulated(&[]);
    let mut gone = 0;
    let (tally, metrics) = often(scale, stack, &[program.clone(), program], questions(), async |stack, turn| {
        let liar = Program::simulated(&["--fault", kinds[turn % kinds.len()], "--fault-step", "3"]);
        liar.start(stack);
        let lost = stack.metrics().await.sum("pillion_workers_lost_total");
        stack.metric("pillion_workers_lost_total", |seen| seen > lost).await;
        stack.workers.pop();
        connected(stack, 2).await;
        gone += 1;
    })
    .await;
    let errors = metrics.sum("pillion_protocol_errors_total");
    Row {
        fault: "a third worker sends garbage, half a frame, an answer twice, strangers' answers, or dies",
        promise: "it is dropped, no request fails",
        times: scale.times.to_string(),
        seen: format!("{gone} dropped, {errors} protocol errors counted"),
        kept: tally.is_clean() && gone == scale.times,
        tally,
    }
}
