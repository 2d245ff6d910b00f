//! What happens to a stack under load.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::sleep;

use super::load::{Load, Question, ask};
use super::{Row, Scale};
use crate::simulated::echo::expected;
use crate::stack::Stack;

/// Time between two kills.
const PAUSE: Duration = Duration::from_secs(2);
/// The simulated worker's costs: with batches of 16 it answers some 640 short texts a second.
const COSTS: [&str; 4] = ["--batch-cost", "10ms", "--step-cost", "1ms"];
/// Requests a second where one worker may have to do.
const RATE: f64 = 50.0;
const BATCH: [&str; 2] = ["--max-batch-size", "16"];

/// Requests of ten words, and some of 200 that are streamed.
fn questions() -> Arc<[Question]> {
    let question = |number: usize| {
        let is_stream = number.is_multiple_of(8);
        let words = if is_stream { 200 } else { 10 };
        let text: Vec<String> = (0..words).map(|word| format!("q{number}w{word}")).collect();
        let text = text.join(" ");
        let expected = expected(&text, 256, 0);
        Question { body: json!({"text": text, "max_new_tokens": 256}), expected, is_stream }
    };
    (0..64).map(question).collect()
}

/// A worker's program with its flags.
#[derive(Clone, Debug)]
pub struct Program {
    name: &'static str,
    flags: Vec<String>,
}

impl Program {
    /// One that waits instead of computing.
    fn simulated(more: &[&str]) -> Self {
        let flags = COSTS.iter().chain(more).map(|flag| (*flag).to_owned()).collect();
        Self { name: "simulated-worker", flags }
    }

    /// The real one, on the processor, with one thread.
    pub fn real(model: &str) -> Self {
        let flags = ["--model", model, "--device", "cpu", "--threads", "1"].map(str::to_owned);
        Self { name: "pillion-worker", flags: flags.into() }
    }

    fn start(&self, stack: &mut Stack) {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        let socket: PathBuf = stack.socket();
        stack.worker(self.name, &flags, &socket);
    }

    /// Kills a worker without a word and starts its like in its place.
    fn replace(&self, stack: &mut Stack, nth: usize, signal: Signal) {
        stack.workers[nth].signal(signal);
        self.start(stack);
        stack.workers.remove(nth);
    }
}

async fn connected(stack: &Stack, workers: i64) {
    stack.metric("pillion_workers_connected", |seen| seen == workers).await;
}

/// Requests a second that a stack answers when all clients ask again at once.
async fn capacity(stack: &Stack, questions: &Arc<[Question]>, clients: usize) -> f64 {
    const SPAN: Duration = Duration::from_secs(3);
    let end = Instant::now() + SPAN;
    let mut asking = Vec::new();
    for first in 0..clients {
        let (client, questions) = (stack.client(), questions.clone());
        asking.push(tokio::spawn(async move {
            let mut answered = 0;
            while Instant::now() < end {
                let question = &questions[(first + answered * 7) % questions.len()];
                ask(&client, question).await.expect("an undisturbed stack answers");
                answered += 1;
            }
            answered
        }));
    }
    let mut all = 0;
    for answered in asking {
        all += answered.await.expect("no client panics");
    }
    f64::from(u32::try_from(all).expect("a count")) / SPAN.as_secs_f64()
}

/// Waits a little for a moment in which many texts are with the workers, so that the next kill meets a batch.
async fn busy(stack: &Stack) {
    const MANY: i64 = 12;
    for _ in 0..50 {
        if stack.metrics().await.sum("pillion_running") >= MANY {
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
}

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
    let mut asked = Vec::new();
    {
        let mut stack = Stack::proxy(&[]).await;
        program.start(&mut stack);
        stack.ready().await;
        let client = stack.client();
        for number in 0..48 {
            let is_stream = number % 8 == 0;
            let most = if is_stream { 200 } else { 10 };
            let body = json!({"text": format!("What is {} + {}?", number, 2 * number), "max_new_tokens": most, "min_new_tokens": most});
            let mut question = Question { body, expected: String::new(), is_stream };
            question.expected = ask(&client, &question).await.expect("an undisturbed worker answers");
            asked.push(question);
        }
    }
    let fault = "`kill -9` of one of two real workers every 2 s, at 70 % of what two carry";
    kills(scale, program, asked.into(), 2, 0.7, fault).await
}

/// Something happens to a stack under load, so many times.
async fn often(
    scale: Scale,
    mut stack: Stack,
    programs: &[Program],
    rate: f64,
    mut happen: impl AsyncFnMut(&mut Stack, usize),
) -> (super::load::Tally, crate::metrics::Metrics) {
    programs.iter().for_each(|program| program.start(&mut stack));
    connected(&stack, i64::try_from(programs.len()).expect("few")).await;
    let load = Load::start(stack.address(), rate, questions());
    for turn in 0..scale.times {
        sleep(Duration::from_millis(500)).await;
        happen(&mut stack, turn).await;
    }
    let tally = load.stop().await;
    let metrics = stack.metrics().await;
    (tally, metrics)
}

/// The proxy is succeeded by another on the same socket.
pub async fn proxy_restarts(scale: Scale) -> Row {
    let stack = Stack::proxy_with_door(&BATCH).await;
    let program = Program::simulated(&[]);
    let mut clean = 0;
    let (tally, _) = often(scale, stack, &[program.clone(), program], RATE, async |stack, _| {
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
    let (tally, metrics) = often(scale, stack, &[first], RATE, async |stack, turn| {
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
    let (tally, metrics) = often(scale, stack, &programs, RATE, async |stack, _| {
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
    let (tally, metrics) = often(scale, stack, &[program.clone(), program], RATE, async |stack, turn| {
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
    let (tally, metrics) = often(scale, stack, &[program.clone(), program], RATE, async |stack, turn| {
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

/// Workers that lie or break the protocol, each once in its life.
pub async fn liars(scale: Scale) -> Row {
    let kinds = ["garbage", "half-frame", "answer-twice", "unknown-member", "unknown-batch", "abort", "close"];
    let stack = Stack::proxy(&BATCH).await;
    let program = Program::simulated(&[]);
    let mut gone = 0;
    let (tally, metrics) = often(scale, stack, &[program.clone(), program], RATE, async |stack, turn| {
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

/// The folder of the workers' socket is removed, and a worker restarted.
pub async fn folder_removed(scale: Scale) -> Row {
    let stack = Stack::proxy(&BATCH).await;
    let program = Program::simulated(&[]);
    let again = program.clone();
    let (tally, _) = often(scale, stack, &[program.clone(), program], RATE, async |stack, _| {
        std::fs::remove_file(stack.socket()).expect("the socket can be removed");
        again.replace(stack, 0, Signal::SIGKILL);
        connected(stack, 1).await;
        connected(stack, 2).await;
    })
    .await;
    Row {
        fault: "the workers' socket is removed, and a worker is killed",
        promise: "the socket is made again, no request fails",
        times: scale.times.to_string(),
        seen: "the next worker connected each time".into(),
        kept: tally.is_clean(),
        tally,
    }
}
