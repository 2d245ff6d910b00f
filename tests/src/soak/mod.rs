//! A soak: mixed load for long, with a fault every few seconds, and whether anything grows meanwhile.
//!
//! Two real workers; whatever happens to workers happens to the second, so that the first grows old like the proxy.

pub mod chart;

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::campaign::load::{Load, Question, Tally, ask};
use crate::campaign::setting::{Program, connected, real_questions};
use crate::eventually;
use crate::floods::hostile::{Crowd, Deed, resets};
use crate::random::SplitMix64;
use crate::stack::Stack;
use crate::usage::Usage;

/// Requests a second: a third of what one worker answers alone.
const RATE: f64 = 60.0;
/// Time between two faults.
const PAUSE: Duration = Duration::from_secs(5);
/// Time between two looks.
const LOOK: Duration = Duration::from_secs(10);
/// Hostile clients all the while.
const HOSTILE: usize = 40;

/// What happens now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// A worker dies.
    Kill,
    /// One leaves.
    Drain,
    /// One stands still.
    Stop,
    /// The proxy does.
    StopProxy,
    /// The socket's file goes, and a worker with it.
    Socket,
    /// Requests of HTTP/2 are reset.
    Resets,
    /// Clients go before their answers are there.
    Leave,
    /// Somebody says what no worker says.
    Garbage,
}

const FAULTS: [Fault; 8] = [
    Fault::Kill,
    Fault::Drain,
    Fault::Stop,
    Fault::StopProxy,
    Fault::Socket,
    Fault::Resets,
    Fault::Leave,
    Fault::Garbage,
];

/// Both processes at one time, and when that was.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Since the start.
    pub at: Duration,
    /// The proxy.
    pub proxy: Usage,
    /// The first worker.
    pub worker: Usage,
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct Soaked {
    /// By honest clients.
    pub tally: Tally,
    /// How often something happened.
    pub faults: usize,
    /// Of the processes.
    pub samples: Vec<Sample>,
}

/// Soaks a proxy and two workers with this model. The seed says what happens when.
///
/// # Panics
/// Something does not come up, or does not come back after a fault.
pub async fn soak(span: Duration, model: &str, seed: u64) -> Soaked {
    let program = Program::real(model);
    let questions = real_questions(&program).await;
    let mut stack = Stack::proxy(&["--request-timeout", "30s", "--max-queue", "8192"]).await;
    program.start(&mut stack);
    connected(&stack, 1).await;
    program.start(&mut stack);
    connected(&stack, 2).await;
    let crowd = Crowd::start(stack.address(), HOSTILE, &[Deed::Head, Deed::Body, Deed::Idle]);
    let load = Load::start(stack.address(), RATE, questions.clone());
    let start = Instant::now();
    let (mut random, mut samples, mut faults) = (SplitMix64(seed), Vec::new(), 0);
    let (mut next_fault, mut next_look) = (start + PAUSE, start + LOOK);
    while start.elapsed() < span {
        sleep_until(next_fault.min(next_look)).await;
        if Instant::now() >= next_look {
            samples.push(Sample {
                at: start.elapsed(),
                proxy: Usage::of(&stack.proxy),
                worker: Usage::of(&stack.workers[0]),
            });
            next_look += LOOK;
        }
        if Instant::now() >= next_fault {
            let drawn = usize::try_from(random.next() % FAULTS.len() as u64).expect("few");
            happen(FAULTS[drawn], &mut stack, &program, &questions).await;
            faults += 1;
            next_fault = Instant::now() + PAUSE;
        }
    }
    let tally = load.stop().await;
    drop(crowd);
    Soaked { tally, faults, samples }
}

async fn happen(fault: Fault, stack: &mut Stack, program: &Program, questions: &Arc<[Question]>) {
    match fault {
        Fault::Kill => program.replace(stack, 1, Signal::SIGKILL),
        Fault::Drain => {
            program.start(stack);
            connected(stack, 3).await;
            stack.workers[1].signal(Signal::SIGTERM);
            let left = stack.workers[1].ended().await;
            assert_eq!(left, Some(0), "a worker that is told to leave does");
            stack.workers.remove(1);
        }
        Fault::Stop => {
            stack.workers[1].signal(Signal::SIGSTOP);
            sleep(Duration::from_secs(2)).await;
            stack.workers[1].signal(Signal::SIGCONT);
        }
        Fault::StopProxy => {
            stack.proxy.signal(Signal::SIGSTOP);
            sleep(Duration::from_millis(500)).await;
            stack.proxy.signal(Signal::SIGCONT);
        }
        Fault::Socket => {
            let socket = stack.socket();
            std::fs::remove_file(&socket).expect("the socket can be removed");
            program.replace(stack, 1, Signal::SIGKILL);
            eventually("the socket is there again", async || socket.exists().then_some(())).await;
        }
        Fault::Resets => drop(resets(stack.address(), 4, 1000).await),
        Fault::Leave => {
            let asked = questions.iter().filter(|question| question.is_stream);
            for question in asked {
                // Long enough to be with a worker, mostly.
                let _ = timeout(Duration::from_millis(20), ask(&stack.client(), question)).await;
            }
        }
        Fault::Garbage => {
            let mut stranger = UnixStream::connect(stack.socket()).await.expect("the proxy listens");
            // It may be hung up on before all is said.
            let _ = stranger.write_all(&[0xff; 4096]).await;
        }
    }
    connected(stack, 2).await;
}
