//! A worker without a model, for tests and for measuring the proxy alone.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use pillion_process::socket;
use pillion_protocol::frame::Hello;
use pillion_tests::fake_worker::{Ending, FakeWorker, Fault, FaultKind, Profile};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Answers every prompt with its words in reverse, a word a token.
#[derive(Debug, Parser)]
#[command(version)]
struct Flags {
    /// The proxy's socket.
    #[arg(long, env = "PILLION_SOCKET")]
    socket: Option<PathBuf>,
    /// Wait so long before the first step of each batch.
    #[arg(long, default_value = "0ms", value_parser = humantime::parse_duration)]
    batch_cost: Duration,
    /// Wait so long between steps; each gives every member a token.
    #[arg(long, default_value = "0ms", value_parser = humantime::parse_duration)]
    step_cost: Duration,
    /// Batches taken at once.
    #[arg(long, default_value_t = 1)]
    slots: u32,
    /// The model's name.
    #[arg(long, default_value = "simulated")]
    model_name: String,
    /// The model's fingerprint.
    #[arg(long, default_value = "00")]
    fingerprint: String,
    /// The most tokens of a prompt and its answer.
    #[arg(long, default_value_t = 4096)]
    positions: u32,
    /// The largest `sampling_topk`.
    #[arg(long, default_value_t = 8192)]
    vocabulary: u32,
    /// The most tokens of a batch.
    #[arg(long, default_value_t = 1 << 20)]
    max_batch_tokens: u32,
    /// Protocol versions to offer instead of the real ones.
    #[arg(long, value_delimiter = ',')]
    versions: Option<Vec<u8>>,
    /// Send tokens every step for all members, not only for those that stream.
    #[arg(long)]
    eager: bool,
    /// Take no step while this file is there.
    #[arg(long)]
    gate: Option<PathBuf>,
    /// Time between heartbeats.
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    heartbeat: Duration,
    /// How long the engine may go without a step, as the heartbeats say.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    silence: Duration,
    /// How long a drain may take.
    #[arg(long, default_value = "65s", value_parser = humantime::parse_duration)]
    drain_timeout: Duration,
    /// Never grant credit.
    #[arg(long)]
    no_credit: bool,
    /// Something to do wrong, once.
    #[arg(long)]
    fault: Option<FaultKind>,
    /// In which batch, from 1.
    #[arg(long, default_value_t = 1)]
    fault_batch: u64,
    /// After how many of its steps.
    #[arg(long, default_value_t = 0)]
    fault_step: u64,
}

impl Flags {
    fn profile(&self) -> Profile {
        let plain = Profile::default();
        Profile {
            hello: Hello {
                versions: self.versions.clone().unwrap_or(plain.hello.versions),
                model: self.model_name.clone(),
                fingerprint: self.fingerprint.clone(),
                positions: self.positions,
                vocabulary: self.vocabulary,
                max_batch_tokens: self.max_batch_tokens,
                slots: self.slots,
                ..plain.hello
            },
            batch_cost: self.batch_cost,
            step_cost: self.step_cost,
            eager: self.eager,
            gate: self.gate.clone(),
            heartbeat: self.heartbeat,
            silence: self.silence,
            drain_timeout: self.drain_timeout,
            grants: !self.no_credit,
            fault: self.fault.map(|kind| Fault { kind, batch: self.fault_batch, step: self.fault_step }),
        }
    }
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let socket = flags.socket.clone().unwrap_or_else(socket::default_path);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(live(FakeWorker::new(flags.profile()), &socket)),
        Err(error) => {
            eprintln!("no runtime: {error}");
            ExitCode::from(70)
        }
    }
}

/// Dials for ever, and serves what answers.
async fn live(mut worker: FakeWorker, socket: &Path) -> ExitCode {
    const REDIAL: Duration = Duration::from_millis(50);
    let (told, drain) = watch::channel(false);
    tokio::spawn(async move {
        if let Ok(mut signals) = signal(SignalKind::terminate()) {
            signals.recv().await;
            told.send_replace(true);
            signals.recv().await;
            std::process::exit(75);
        }
    });
    loop {
        if *drain.borrow() {
            return ExitCode::SUCCESS;
        }
        if let Ok(stream) = UnixStream::connect(socket).await {
            eprintln!("connected to {}", socket.display());
            match worker.serve(stream, drain.clone()).await {
                Ok(Ending::Drained) => return ExitCode::SUCCESS,
                Ok(Ending::DrainTimeout) => return ExitCode::from(75),
                Ok(Ending::Fault(FaultKind::Abort)) => std::process::abort(),
                Ok(ending) => eprintln!("the connection ended: {ending:?}"),
                Err(error) => eprintln!("the connection failed: {error}: {error:?}"),
            }
        }
        tokio::time::sleep(REDIAL).await;
    }
}
