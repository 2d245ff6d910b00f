//! Builds a worker from its settings and serves: checks the model, loads the engine and measures its threads, warms it up, and
//! only then connects to the proxy.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use pillion_protocol::VERSIONS;
use pillion_protocol::frame::Hello;
use tokio::sync::{Semaphore, oneshot};

use crate::budget::Budget;
use crate::check::Health;
use crate::config::Config;
use crate::engine::ct2::{Ct2, Device, Setting, unusable};
use crate::engine::{Engine, EngineFailed, EnginePool};
use crate::error::Error;
use crate::liveness::{Liveness, Stuck};
use crate::memory::{self, Allowance, Need};
use crate::model::Model;
use crate::pace::Pace;
use crate::session::Worker;
use crate::shared::{Limits, Shared, THREADS_PER_SLOT};
use crate::tokens::{Template, Tokens};
use crate::warmup::{self, Loaded, Sample};
use crate::{lifecycle, signals};

/// The default limit of a call's tokens, unless the model has more positions. A larger call is not cheaper per token.
const MOST_BATCH_TOKENS: u32 = 32_768;
/// How often the engines and the free memory are checked.
const WATCH: Duration = Duration::from_secs(1);
/// The most time of work that is lost with a worker for an answer that is not streamed.
const HELD_BACK: Duration = Duration::from_secs(1);

/// Wraps the engine once it is warm. The worker keeps the engine as it is; tests wrap it.
pub type Patch = fn(Arc<dyn Engine>) -> Arc<dyn Engine>;

/// How a worker ended.
#[derive(Debug)]
pub struct End {
    /// Why the worker ended, if not after a drain.
    pub result: Result<(), Error>,
    /// Whether an engine runs a call or is still being loaded. Then the process must end by [`crate::leave`].
    pub engine_runs: bool,
}

impl End {
    fn before_any_engine(error: Error) -> Self {
        Self { result: Err(error), engine_runs: false }
    }
}

/// Runs a worker to its end.
pub fn run(config: Config, patch: Patch) -> End {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        model = %config.model.display(),
        model_name = config.model_name,
        socket = %config.socket.display(),
        device = ?config.device,
        device_index = config.device_index,
        compute_type = %config.compute_type,
        threads = config.threads.map_or_else(|| "auto".to_owned(), |threads| threads.to_string()),
        slots = config.slots,
        max_positions = config.overrides.max_positions.map_or_else(|| "auto".to_owned(), |most| most.to_string()),
        end_tokens = ?config.overrides.end_tokens,
        max_batch_tokens = config.max_batch_tokens.map_or_else(|| "auto".to_owned(), |tokens| tokens.to_string()),
        drain_timeout = ?config.drain_timeout,
        log_format = ?config.log_format,
        log_prompts = config.log_prompts,
        "configuration"
    );
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(serve(config, patch)),
        Err(error) => End::before_any_engine(internal(&error)),
    }
}

async fn serve(config: Config, patch: Patch) -> End {
    let socket = config.socket.clone();
    let health = Health::default();
    if let Err(error) = health.answer() {
        tracing::warn!(%error, "cannot open the socket for `pillion-worker check`: probes of this worker will fail");
    }
    let started = signals::listen().and_then(|controls| Ok((controls, start_loading(config, patch, health)?)));
    let (mut controls, mut loaded) = match started {
        Ok(started) => started,
        Err(error) => return End::before_any_engine(internal(&error)),
    };
    let worker = loop {
        tokio::select! {
            worker = &mut loaded => match worker {
                Ok(Ok(worker)) => break worker,
                Ok(Err(error)) => return End::before_any_engine(error),
                Err(_) => return End::before_any_engine(Error::Internal("the loading thread ended without a result".to_owned())),
            },
            Some(control) = controls.recv() => match control {
                signals::Control::Dump => tracing::info!("dump: the model is being loaded"),
                _ => return End { result: Ok(()), engine_runs: true },
            },
        }
    };
    let result = tokio::select! {
        result = lifecycle::serve(&worker, async || lifecycle::dial(&socket).await, &mut controls) => result,
        stuck = watch(&worker.shared) => {
            Err(Error::Stuck { slot: stuck.thread / THREADS_PER_SLOT, seconds: stuck.silent.as_secs() })
        }
    };
    // No request waits for an engine that still runs. A stuck engine would block the join of its thread for ever.
    let engine_runs = worker.shared.liveness.busy();
    if engine_runs {
        worker.engines.abandon();
    }
    End { result, engine_runs }
}

/// Loads the model on a thread of its own, so that signals are handled meanwhile.
fn start_loading(
    config: Config,
    patch: Patch,
    health: Health,
) -> std::io::Result<oneshot::Receiver<Result<Worker, Error>>> {
    let (sender, loaded) = oneshot::channel();
    let work = move || {
        // If the receiver is gone, the process is about to end.
        let _ = sender.send(load(&config, patch, health));
    };
    std::thread::Builder::new().name("loader".to_owned()).spawn(work)?;
    Ok(loaded)
}

/// Watches the engines, and while no call runs also the free memory. Returns when an engine is stuck.
async fn watch(shared: &Shared) -> Stuck {
    let mut interval = tokio::time::interval(WATCH);
    loop {
        interval.tick().await;
        if let Some(stuck) = shared.liveness.stuck(Instant::now()) {
            return stuck;
        }
        if shared.is_on_processor
            && !shared.liveness.busy()
            && let Some(free) = memory::system()
        {
            shared.found_memory(memory::share(free, shared.limits.slots as u64));
        }
    }
}

/// The memory that a call may take on this device.
fn allowance(model: &Model, device: Device, config: &Config) -> Allowance {
    // Half-precision activations take half the bytes. Integer types are used for weights only.
    let element = match device {
        Device::Cuda(_) if config.compute_type.is_half(model.description.is_half()) => 2,
        _ => 4,
    };
    let need = Need::of(&model.description, element);
    let free = match device {
        Device::Cpu => memory::system(),
        Device::Cuda(index) => memory::device(index),
    };
    let bytes = free.map_or(u64::MAX, |free| memory::share(free, config.slots.into()));
    if let Some(free) = free {
        tracing::info!(free_mib = free >> 20, call_mib = bytes >> 20, token_bytes = need.token(), "memory for calls");
    } else {
        tracing::info!("free memory unknown: no request is refused for its size, even if it exhausts the memory");
    }
    let allowance = Allowance::new(need, bytes);
    if allowance.bytes > bytes {
        tracing::warn!(
            needed_mib = allowance.bytes >> 20,
            "the free memory is too small for even a short request: requests are served anyway, and the system may kill this \
             worker; give it more memory"
        );
    }
    allowance
}

/// The default limit of a call's tokens: less if the memory holds fewer, but always enough for one member.
fn batch_tokens(allowance: Allowance, positions: u32) -> u32 {
    let most = positions.max(MOST_BATCH_TOKENS);
    let fit = allowance.bytes / allowance.need.token().max(1);
    u32::try_from(fit).unwrap_or(u32::MAX).clamp(positions.max(1), most)
}

/// Logs what the model's files say that shapes answers.
fn log_model(model: &Model, template: &Template) {
    let ends: Vec<&str> =
        model.ends.iter().filter_map(|&id| model.vocabulary.get(id as usize).map(String::as_str)).collect();
    tracing::info!(positions = model.positions, from = %model.positions_from, end_tokens = ?ends, "model");
    match (template.file(), template.problem()) {
        (None, _) => tracing::warn!(
            "the model has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json): chats are \
             written as plain \"role: content\" lines, which few models are trained for"
        ),
        (Some(file), None) => tracing::info!(file, "chat template"),
        (Some(file), Some(problem)) => {
            tracing::warn!(file, problem, "the chat template cannot be used, so chats are refused; the rest is served");
        }
    }
}

fn load(config: &Config, patch: Patch, health: Health) -> Result<Worker, Error> {
    let chosen = Device::choose(config.device, config.device_index)?;
    let model = Model::open(&config.model, &config.overrides)?;
    let tokens = Tokens::load(&model)?;
    log_model(&model, tokens.chat_template());
    let sample = Sample { vocabulary: tokens.vocabulary(), positions: model.positions };
    let (Started { engine, threads, pace }, device) = match start(config, &model, chosen, sample) {
        Ok(started) => (started, chosen),
        Err(error) => match chosen.instead(config.device).filter(|_| matches!(error, Error::Unusable(_))) {
            None => return Err(error),
            Some(device) => {
                tracing::warn!("--device auto: the GPU cannot be used, computing on the processor instead: {error}");
                (start(config, &model, device, sample)?, device)
            }
        },
    };
    let allowance = allowance(&model, device, config);
    let batch_tokens = config.max_batch_tokens.unwrap_or_else(|| batch_tokens(allowance, model.positions));
    let slots = config.slots as usize;
    let limits = Limits {
        positions: model.positions,
        slots,
        top_p_candidates: device.top_p_candidates(),
        allowance,
        window: model.description.window,
    };
    let hello = Hello {
        versions: VERSIONS.to_vec(),
        software: concat!("pillion-worker/", env!("CARGO_PKG_VERSION")).to_owned(),
        pid: std::process::id(),
        model: config.model_name.clone(),
        fingerprint: model.fingerprint,
        positions: model.positions,
        vocabulary: tokens.vocabulary(),
        max_batch_tokens: batch_tokens,
        slots: config.slots,
        chat: true,
        cost: pace.cost().into(),
        // Each connection sends the age anew.
        age_ms: 0,
    };
    tracing::info!(
        ?device,
        threads,
        positions = hello.positions,
        vocabulary = hello.vocabulary,
        max_batch_tokens = batch_tokens,
        fingerprint = hello.fingerprint,
        cost_ns = ?pace.cost(),
        step_us = u64::try_from(pace.step().as_micros()).unwrap_or(u64::MAX),
        "loaded"
    );
    let liveness = Liveness::new(slots * THREADS_PER_SLOT, slots, Instant::now());
    let shared = Arc::new(Shared {
        tokens,
        pace,
        liveness,
        limits,
        memory: AtomicU64::new(limits.allowance.bytes),
        is_on_processor: device == Device::Cpu,
        budget: Budget::new(batch_tokens.into()),
        held_back: HELD_BACK,
    });
    let engines = EnginePool::start(&patch(engine), &shared).map_err(|error| internal(&error))?;
    health.loaded();
    Ok(Worker {
        health,
        hello,
        loaded: tokio::time::Instant::now(),
        shared,
        engines,
        places: Arc::new(Semaphore::new(2 * slots)),
        drain_timeout: config.drain_timeout,
        log_prompts: config.log_prompts,
    })
}

/// An engine that is warmed up.
struct Started {
    engine: Arc<dyn Engine>,
    threads: usize,
    pace: Pace,
}

fn start(config: &Config, model: &Model, device: Device, sample: Sample) -> Result<Started, Error> {
    let weights_mib = model.description.bytes >> 20;
    tracing::info!(weights_mib, slots = config.slots, ?device, "loading the model");
    let Loaded { engine, threads, loading, measuring } = engine(config, model, device, sample)?;
    tracing::info!(threads, took = ?rounded(loading), "the model is loaded");
    tracing::info!(at_most = ?rounded(measuring), "measuring how long calls take");
    let pace = Pace::default();
    warmup::warm_up(&*engine, sample, &pace, Instant::now() + measuring).map_err(|error| engine_failed(&error))?;
    Ok(Started { engine, threads, pace })
}

/// Loads the engine with the number of threads that the user set, else with the fastest.
fn engine(config: &Config, model: &Model, device: Device, sample: Sample) -> Result<Loaded, Error> {
    let vocabulary = Arc::new(model.vocabulary.clone());
    let setting = Setting { device, compute_type: config.compute_type, slots: config.slots };
    let load =
        |threads| -> Result<Arc<dyn Engine>, Error> { Ok(Arc::new(Ct2::load(model, &vocabulary, setting, threads)?)) };
    let threads = match (config.threads, device) {
        (Some(threads), _) => threads.get(),
        // On a GPU the processor has little to do.
        (None, Device::Cuda(_)) => 1,
        (None, Device::Cpu) => {
            let available = std::thread::available_parallelism().map_or(1, usize::from) / config.slots as usize;
            return warmup::fastest(available, model.description.bytes, sample, load, |error| engine_failed(&error));
        }
    };
    let start = Instant::now();
    let engine = load(threads)?;
    let loading = start.elapsed();
    Ok(Loaded { engine, threads, loading, measuring: warmup::budget(loading) })
}

/// The time in whole milliseconds, for logs.
fn rounded(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

fn engine_failed(error: &EngineFailed) -> Error {
    match error {
        EngineFailed::Device(message) => Error::Unusable(unusable(message)),
        _ => Error::Internal(format!("the engine failed in its first calls: {error}")),
    }
}

fn internal(error: &std::io::Error) -> Error {
    Error::Internal(error.to_string())
}
