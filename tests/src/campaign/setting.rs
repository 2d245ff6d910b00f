//! What every scene needs: workers, requests, and load while something happens again and again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::sleep;

use super::Scale;
use super::load::{Load, Question, Tally, ask};
use crate::fake_worker::echo::expected;
use crate::metrics::Metrics;
use crate::stack::Stack;

/// The simulated worker's costs: with batches of 16 it answers some 640 short texts a second.
const COSTS: [&str; 4] = ["--batch-cost", "10ms", "--step-cost", "1ms"];
/// Requests a second where one worker may have to do.
pub(crate) const RATE: f64 = 50.0;
pub(crate) const BATCH: [&str; 2] = ["--max-batch-size", "16"];

/// Requests of ten words, and some of 200 that are streamed.
pub(crate) fn questions() -> Arc<[Question]> {
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
pub(crate) struct Program {
    name: &'static str,
    flags: Vec<String>,
}

impl Program {
    /// One that waits instead of computing.
    pub(crate) fn simulated(more: &[&str]) -> Self {
        let flags = COSTS.iter().chain(more).map(|flag| (*flag).to_owned()).collect();
        Self { name: "simulated-worker", flags }
    }

    /// The real one, on the processor, with one thread.
    pub(crate) fn real(model: &str) -> Self {
        let flags = ["--model", model, "--device", "cpu", "--threads", "1"].map(str::to_owned);
        Self { name: "pillion-worker", flags: flags.into() }
    }

    pub(crate) fn start(&self, stack: &mut Stack) {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        let socket: PathBuf = stack.socket();
        stack.worker(self.name, &flags, &socket);
    }

    /// Kills a worker without a word and starts its like in its place.
    pub(crate) fn replace(&self, stack: &mut Stack, nth: usize, signal: Signal) {
        stack.workers[nth].signal(signal);
        self.start(stack);
        stack.workers.remove(nth);
    }
}

pub(crate) async fn connected(stack: &Stack, workers: i64) {
    stack.metric("pillion_workers_connected", |seen| seen == workers).await;
}

/// Requests a second that a stack answers when all clients ask again at once.
pub(crate) async fn capacity(stack: &Stack, questions: &Arc<[Question]>, clients: usize) -> f64 {
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
pub(crate) async fn busy(stack: &Stack) {
    const MANY: i64 = 12;
    for _ in 0..50 {
        if stack.metrics().await.sum("pillion_running") >= MANY {
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Something happens to a stack under load, so many times.
pub(crate) async fn often(
    scale: Scale,
    mut stack: Stack,
    programs: &[Program],
    questions: Arc<[Question]>,
    mut happen: impl AsyncFnMut(&mut Stack, usize),
) -> (Tally, Metrics) {
    programs.iter().for_each(|program| program.start(&mut stack));
    connected(&stack, i64::try_from(programs.len()).expect("few")).await;
    let load = Load::start(stack.address(), RATE, questions);
    for turn in 0..scale.times {
        sleep(Duration::from_millis(500)).await;
        happen(&mut stack, turn).await;
    }
    let tally = load.stop().await;
    let metrics = stack.metrics().await;
    (tally, metrics)
}

/// What a real worker is asked, and what it says undisturbed.
pub(crate) async fn real_questions(program: &Program) -> Arc<[Question]> {
    let mut asked = Vec::new();
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
    asked.into()
}
