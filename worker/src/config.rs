//! The worker's settings: read raw from flags and environment, then validated. Only the validated [`Config`] is passed on.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use clap::builder::BoolishValueParser;

mod compute;
mod refusal;
#[cfg(test)]
mod tests;

use pillion_process::log::LogFormat;
use pillion_process::socket::default_path;

use crate::model::Overrides;
pub use compute::ComputeType;
pub use refusal::FlagError;
use refusal::{explain, refuse};

/// The longest path that fits into a Unix socket's address.
const SOCKET_PATH_MAX: usize = 107;

/// Holds a CTranslate2 model and serves batches to a Pillion proxy over a Unix socket.
#[derive(Debug, Parser)]
#[command(
    name = "pillion-worker",
    version,
    about,
    after_help = "Every flag can be set by the environment too: \
    PILLION_ and the flag in capitals, such as PILLION_MAX_BATCH_TOKENS. RUST_LOG chooses what is logged. \
    pillion-worker check asks a running worker for its state, pillion-worker inspect DIR describes a model."
)]
struct Raw {
    /// Directory of the converted model: model.bin, config.json, vocabulary.json (or vocabulary.txt) and tokenizer.json
    #[arg(long, env = "PILLION_MODEL", value_name = "DIR")]
    model: Option<PathBuf>,
    /// Socket of the proxy [default: /run/pillion/worker.sock where that folder can be written, else a file under the
    /// user's runtime folder]
    #[arg(long, env = "PILLION_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// auto, cpu or cuda
    #[arg(long, env = "PILLION_DEVICE", value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// Which of the CUDA devices, from 0
    #[arg(long, env = "PILLION_DEVICE_INDEX", value_name = "N", default_value = "0")]
    device_index: String,
    /// default: as the model was converted; auto: the fastest of the device; or a type by name
    #[arg(long, env = "PILLION_COMPUTE_TYPE", value_name = "TYPE", default_value = "default",
        long_help = compute::HELP)]
    compute_type: String,
    /// Processor threads of each slot: a number, or auto to measure at start which number serves a batch fastest; auto takes
    /// all processors for a model that takes long to load
    #[arg(long, env = "PILLION_THREADS", value_name = "N", default_value = "auto")]
    threads: String,
    /// Batches that run at once, each on its own copy of the model
    #[arg(long, env = "PILLION_SLOTS", value_name = "N", default_value = "1")]
    slots: String,
    /// The most tokens, prompts and answers together, of one engine call: a number, or auto for the model's positions but
    /// at least 32768, if the memory holds the keys and values of that many tokens
    #[arg(long, env = "PILLION_MAX_BATCH_TOKENS", value_name = "N", default_value = "auto")]
    max_batch_tokens: String,
    /// The most tokens that a prompt and its answer may have together: a number, or auto for the model's own limit, else
    /// `model_max_length` of `tokenizer_config.json`, else 32768
    #[arg(long, env = "PILLION_MAX_POSITIONS", value_name = "N", default_value = "auto")]
    max_positions: String,
    /// The text of one more token that ends answers, such as `<|im_end|>`, besides the tokens that the model's files name; may
    /// be given several times
    #[arg(long, env = "PILLION_END_TOKEN", value_name = "TOKEN")]
    end_token: Vec<String>,
    /// The model's name for clients and metrics [default: the name of its directory]
    #[arg(long, env = "PILLION_MODEL_NAME", value_name = "NAME")]
    model_name: Option<String>,
    /// The longest that a worker serves on after it is told to stop: 65s, 2m, ...
    #[arg(long, env = "PILLION_DRAIN_TIMEOUT", value_name = "TIME", default_value = "65s")]
    drain_timeout: String,
    /// text or json
    #[arg(long, env = "PILLION_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: String,
    /// Log prompts and answers
    #[arg(long, env = "PILLION_LOG_PROMPTS", value_parser = BoolishValueParser::new())]
    log_prompts: bool,
}

/// The choice of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA if it is available, else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// A CUDA device.
    Cuda,
}

/// Valid settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The model's directory.
    pub model: PathBuf,
    /// The proxy's socket.
    pub socket: PathBuf,
    /// The device that the model runs on.
    pub device: DeviceChoice,
    /// Which of the CUDA devices.
    pub device_index: u32,
    /// The arithmetic of the model.
    pub compute_type: ComputeType,
    /// Processor threads of a slot; `None` to measure the best number.
    pub threads: Option<NonZeroUsize>,
    /// Batches that run at once.
    pub slots: u32,
    /// The most tokens of one call; `None` for the default of the model.
    pub max_batch_tokens: Option<u32>,
    /// Settings that replace or extend those of the model's files.
    pub overrides: Overrides,
    /// The model's name.
    pub model_name: String,
    /// How long a drain may take.
    pub drain_timeout: Duration,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// Whether prompts and answers may be logged.
    pub log_prompts: bool,
}

/// The task that the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Serve.
    Serve(Box<Config>),
    /// Print this text, the help or the version, and exit with 0.
    Print(String),
}

impl Config {
    /// Reads the command line (with the program's name first) and the environment.
    ///
    /// # Errors
    /// A flag does not exist or does not take its value.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, FlagError> {
        match Raw::try_parse_from(arguments) {
            Ok(raw) => Self::validate(raw).map(|config| Command::Serve(Box::new(config))),
            Err(error) if !error.use_stderr() => Ok(Command::Print(error.render().to_string())),
            Err(error) => Err(explain(&error)),
        }
    }

    fn validate(raw: Raw) -> Result<Self, FlagError> {
        let model = raw
            .model
            .filter(|path| !path.as_os_str().is_empty())
            .ok_or_else(|| FlagError::missing("--model", "the directory of a converted model"))?;
        let socket = match raw.socket {
            None => default_path(),
            Some(path) if path.as_os_str().is_empty() => return refuse("--socket", "", "the path of a Unix socket"),
            Some(path) => path,
        };
        if let Some(folder) = socket.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir())
            && socket != default_path()
        {
            let allowed = format!("a path in a folder that exists, and {} does not exist", folder.display());
            return refuse("--socket", &socket.to_string_lossy(), &allowed);
        }
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            return refuse("--socket", &socket.to_string_lossy(), "a path of at most 107 bytes");
        }
        let device = match raw.device.as_str() {
            "auto" => DeviceChoice::Auto,
            "cpu" => DeviceChoice::Cpu,
            "cuda" => DeviceChoice::Cuda,
            other => return refuse("--device", other, "auto, cpu or cuda"),
        };
        let threads = auto_or("--threads", &raw.threads, 1, 1024)?;
        let max_positions = auto_or("--max-positions", &raw.max_positions, 2, 1 << 24)?;
        if raw.end_token.iter().any(String::is_empty) {
            return refuse("--end-token", "", "the text of one of the model's tokens");
        }
        let log_format = match raw.log_format.as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => return refuse("--log-format", other, "text or json"),
        };
        Ok(Self {
            device,
            device_index: within("--device-index", &raw.device_index, 0, 1023, "")?,
            compute_type: ComputeType::parse(&raw.compute_type)?,
            threads: threads.and_then(|threads| NonZeroUsize::new(threads as usize)),
            slots: within("--slots", &raw.slots, 1, 64, "")?,
            max_batch_tokens: auto_or("--max-batch-tokens", &raw.max_batch_tokens, 1, 1 << 30)?,
            overrides: Overrides { end_tokens: raw.end_token, max_positions },
            model_name: model_name(raw.model_name, &model)?,
            drain_timeout: duration("--drain-timeout", &raw.drain_timeout)?,
            log_format,
            log_prompts: raw.log_prompts,
            model,
            socket,
        })
    }
}

fn within(flag: &str, text: &str, least: u32, most: u32, or: &str) -> Result<u32, FlagError> {
    match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => refuse(flag, text, &format!("{or}a whole number from {least} to {most}")),
    }
}

fn auto_or(flag: &str, text: &str, least: u32, most: u32) -> Result<Option<u32>, FlagError> {
    if text == "auto" { Ok(None) } else { within(flag, text, least, most, "auto or ").map(Some) }
}

fn duration(flag: &'static str, text: &str) -> Result<Duration, FlagError> {
    const MOST: Duration = Duration::from_secs(24 * 60 * 60);
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= MOST => Ok(duration),
        _ => refuse(flag, text, "a time with its unit, such as 500ms, 65s or 2m, of at most 24h"),
    }
}

fn model_name(given: Option<String>, model: &Path) -> Result<String, FlagError> {
    const MOST: usize = 256;
    let name = given.unwrap_or_else(|| {
        let folder = model.canonicalize().unwrap_or_else(|_| model.to_owned());
        folder.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
    });
    if name.is_empty() || name.len() > MOST || name.chars().any(char::is_control) {
        return refuse("--model-name", &name, "a name of 1 to 256 bytes without control characters");
    }
    Ok(name)
}
