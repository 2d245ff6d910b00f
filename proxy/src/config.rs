//! What the proxy is told: flags, or environment variables of the same names behind `PILLION_`, checked once.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use clap::Parser;
use nix::unistd::{AccessFlags, Uid, access};
use pillion_protocol::codec::{MAX_BATCH_MEMBERS, MAX_BATCH_TEXT};
use pillion_protocol::default_socket_path;

use crate::address;
use crate::http::ApiKeys;

/// The flags as they are written.
#[derive(Debug, Parser)]
#[command(
    name = "pillion-proxy",
    version,
    about = "Lets requests ride together: coalesces HTTP requests into batches for a model worker",
    after_help = "pillion-proxy check live|ready asks a running proxy how it is."
)]
struct Flags {
    /// Address and port to serve HTTP on
    #[arg(long, env = "PILLION_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT", value_parser = address::parse)]
    listen: SocketAddr,
    /// Address and port for probes and metrics alone, beside --listen
    #[arg(long, env = "PILLION_ADMIN_LISTEN", value_name = "ADDRESS:PORT", value_parser = address::parse)]
    admin_listen: Option<SocketAddr>,
    /// Unix-domain socket that workers dial [default: /run/pillion/worker.sock, or one in the user's runtime folder]
    #[arg(long, env = "PILLION_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The most requests (texts) in one batch
    #[arg(long, env = "PILLION_MAX_BATCH_SIZE", allow_negative_numbers = true, default_value_t = 50, value_name = "TEXTS",
        value_parser = clap::value_parser!(u32).range(1..=MAX_BATCH_MEMBERS as i64))]
    max_batch_size: u32,
    /// The longest that a request may be held for companions while a worker is free; nobody pays it otherwise
    #[arg(long, env = "PILLION_BATCH_TIMEOUT", default_value = "100ms", value_name = "DURATION", value_parser = duration)]
    batch_timeout: Duration,
    /// Texts that may wait; more are refused with 429
    #[arg(long, env = "PILLION_MAX_QUEUE", allow_negative_numbers = true, default_value_t = 1024, value_name = "TEXTS",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_queue: u32,
    /// Memory for the bodies of admitted requests; more are refused with 429
    #[arg(long, env = "PILLION_MAX_QUEUE_BYTES", default_value = "64MiB", value_name = "BYTES", value_parser = bytes)]
    max_queue_bytes: usize,
    /// The largest body, at most 8MiB; larger ones are refused with 413
    #[arg(long, env = "PILLION_MAX_BODY_BYTES", default_value = "2MiB", value_name = "BYTES", value_parser = bytes)]
    max_body_bytes: usize,
    /// HTTP connections at once; more wait to be accepted
    #[arg(long, env = "PILLION_MAX_CONNECTIONS", allow_negative_numbers = true, default_value_t = 10_000, value_name = "CONNECTIONS",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_connections: u32,
    /// The longest that a request may take, and what it may take where it says nothing
    #[arg(long, env = "PILLION_REQUEST_TIMEOUT", default_value = "60s", value_name = "DURATION", value_parser = duration)]
    request_timeout: Duration,
    /// The longest that a request waits while no worker is connected that will do for it, before 503
    #[arg(long, env = "PILLION_WORKER_WAIT", default_value = "30s", value_name = "DURATION", value_parser = duration)]
    worker_wait: Duration,
    /// How often workers may die before having produced anything of a text; then it is tried once alone, before 502
    #[arg(long, env = "PILLION_MAX_ATTEMPTS", allow_negative_numbers = true, default_value_t = 3, value_name = "TIMES",
        value_parser = clap::value_parser!(u32).range(1..=100))]
    max_attempts: u32,
    /// The longest that a shutdown waits for admitted requests; not shorter than --request-timeout
    #[arg(long, env = "PILLION_DRAIN_TIMEOUT", default_value = "65s", value_name = "DURATION", value_parser = duration)]
    drain_timeout: Duration,
    /// User number of workers to accept beside one's own; may be repeated
    #[arg(long, env = "PILLION_ALLOW_PEER", allow_negative_numbers = true, value_name = "UID", value_delimiter = ',')]
    allow_peer: Vec<u32>,
    /// File of API keys, one a line; with it, only requests with `Authorization: Bearer KEY` are served. Read again on change
    #[arg(long, env = "PILLION_API_KEY_FILE", value_name = "PATH")]
    api_key_file: Option<PathBuf>,
    /// How log lines are written
    #[arg(long, env = "PILLION_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    log_format: LogFormat,
    /// Log prompts and answers, which are private otherwise
    #[arg(long, env = "PILLION_LOG_PROMPTS")]
    log_prompts: bool,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one object a line.
    Json,
}

/// What holds.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each field is named like its flag, which says what it is")]
pub struct Config {
    pub listen: SocketAddr,
    pub admin_listen: Option<SocketAddr>,
    pub socket: PathBuf,
    pub max_batch_size: usize,
    pub batch_timeout: Duration,
    pub max_queue: usize,
    pub max_queue_bytes: usize,
    pub max_body_bytes: usize,
    pub max_connections: usize,
    pub request_timeout: Duration,
    pub worker_wait: Duration,
    pub max_attempts: u32,
    pub drain_timeout: Duration,
    pub allow_peer: Vec<u32>,
    pub api_keys: Option<ApiKeys>,
    pub log_format: LogFormat,
    pub log_prompts: bool,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A flag or value is wrong, or help was asked for; the text says it all.
    #[error(transparent)]
    Flags(#[from] clap::Error),
    /// Values contradict each other.
    #[error("--{flag} is {value}: {allowed}")]
    Value {
        /// The flag, without its dashes.
        flag: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        allowed: String,
    },
}

impl Config {
    /// Reads flags (the first argument is the program's name) and the environment.
    ///
    /// # Errors
    /// A flag is unknown, or a value is not allowed.
    pub fn read(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, ConfigError> {
        Self::check(Flags::try_parse_from(arguments)?)
    }

    /// Logs what holds.
    pub fn log(&self) {
        let time = |duration: Duration| humantime::format_duration(duration).to_string();
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            listen = %self.listen,
            admin_listen = %self.admin_listen.map_or("off".to_owned(), |address| address.to_string()),
            socket = %self.socket.display(),
            max_batch_size = self.max_batch_size,
            batch_timeout = time(self.batch_timeout),
            max_queue = self.max_queue,
            max_queue_bytes = self.max_queue_bytes,
            max_body_bytes = self.max_body_bytes,
            max_connections = self.max_connections,
            request_timeout = time(self.request_timeout),
            worker_wait = time(self.worker_wait),
            max_attempts = self.max_attempts,
            drain_timeout = time(self.drain_timeout),
            allow_peer = ?self.allow_peer,
            api_keys = if self.api_keys.is_some() { "needed" } else { "off" },
            log_prompts = self.log_prompts,
            "starting"
        );
    }

    fn check(flags: Flags) -> Result<Self, ConfigError> {
        let time = |duration: Duration| humantime::format_duration(duration).to_string();
        if flags.drain_timeout < flags.request_timeout {
            return Err(ConfigError::Value {
                flag: "drain-timeout",
                value: time(flags.drain_timeout),
                allowed: format!("it must not be shorter than --request-timeout, {}", time(flags.request_timeout)),
            });
        }
        for (flag, value) in [("request-timeout", flags.request_timeout), ("drain-timeout", flags.drain_timeout)] {
            let day = Duration::from_secs(24 * 3600);
            if value.is_zero() || value > day {
                let allowed = "it must be over 0 and at most 1day".to_owned();
                return Err(ConfigError::Value { flag, value: time(value), allowed });
            }
        }
        if flags.max_body_bytes == 0 || flags.max_body_bytes > MAX_BATCH_TEXT.min(flags.max_queue_bytes) {
            return Err(ConfigError::Value {
                flag: "max-body-bytes",
                value: ByteSize(flags.max_body_bytes as u64).to_string(),
                allowed: format!(
                    "it must be over 0, at most --max-queue-bytes and at most {}",
                    ByteSize(MAX_BATCH_TEXT as u64)
                ),
            });
        }
        let socket = flags.socket.unwrap_or_else(socket_path);
        if let Some(folder) = socket.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir())
            && socket != socket_path()
        {
            return Err(ConfigError::Value {
                flag: "socket",
                value: socket.display().to_string(),
                allowed: format!("its folder must be there, and {} is not", folder.display()),
            });
        }
        let api_keys = flags.api_key_file.map(|path| {
            ApiKeys::read(&path).map_err(|error| ConfigError::Value {
                flag: "api-key-file",
                value: path.display().to_string(),
                allowed: format!("the file {error}"),
            })
        });
        Ok(Self {
            api_keys: api_keys.transpose()?,
            listen: flags.listen,
            admin_listen: flags.admin_listen,
            socket,
            max_batch_size: flags.max_batch_size as usize,
            batch_timeout: flags.batch_timeout,
            max_queue: flags.max_queue as usize,
            max_queue_bytes: flags.max_queue_bytes,
            max_body_bytes: flags.max_body_bytes,
            max_connections: flags.max_connections as usize,
            request_timeout: flags.request_timeout,
            worker_wait: flags.worker_wait,
            max_attempts: flags.max_attempts,
            drain_timeout: flags.drain_timeout,
            allow_peer: flags.allow_peer,
            log_format: flags.log_format,
            log_prompts: flags.log_prompts,
        })
    }
}

fn socket_path() -> PathBuf {
    let writable = |folder: &Path| access(folder, AccessFlags::W_OK | AccessFlags::X_OK).is_ok();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    default_socket_path(writable, runtime.as_deref(), &std::env::temp_dir(), Uid::effective().as_raw())
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write it like 500ms, 30s or 2m"))
}

fn bytes(text: &str) -> Result<usize, String> {
    let size: ByteSize = text.parse().map_err(|error| format!("{error}; write it like 65536, 512KiB or 64MiB"))?;
    usize::try_from(size.as_u64()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(flags: &[&str]) -> Result<Config, ConfigError> {
        Config::read([&["pillion-proxy"], flags].concat())
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let config = read(&[]).unwrap();
        assert_eq!(config.listen, "127.0.0.1:8080".parse().unwrap());
        assert_eq!((config.max_batch_size, config.max_queue, config.max_connections), (50, 1024, 10_000));
        assert_eq!((config.max_queue_bytes, config.max_body_bytes), (64 << 20, 2 << 20));
        assert_eq!(config.batch_timeout, Duration::from_millis(100));
        assert_eq!((config.request_timeout.as_secs(), config.worker_wait.as_secs()), (60, 30));
        assert_eq!((config.drain_timeout.as_secs(), config.max_attempts), (65, 3));
        assert!(config.admin_listen.is_none() && !config.log_prompts);
    }

    #[test]
    fn a_wrong_value_is_told_with_its_flag_and_what_is_allowed() {
        for (flags, told) in [
            (&["--batch-timeout", "fast"][..], &["--batch-timeout", "fast", "500ms"][..]),
            (&["--max-batch-size", "0"], &["--max-batch-size", "0", "1..=4096"]),
            (&["--max-queue", "-1"], &["--max-queue", "-1", "1..=1000000"]),
            (&["--listen", "here"], &["--listen", "here", "localhost:8080"]),
            (
                &["--socket", "/no/such/folder/a.sock"],
                &["--socket", "/no/such/folder/a.sock", "/no/such/folder is not"],
            ),
            (&["--max-body-bytes", "9MiB"], &["--max-body-bytes", "9.0 MiB", "8.0 MiB"]),
            (&["--drain-timeout", "59s"], &["--drain-timeout", "59s", "--request-timeout", "1m"]),
            (&["--request-timeout", "0s"], &["--request-timeout", "0s", "over 0"]),
            (&["--api-key-file", "/nowhere"], &["--api-key-file", "/nowhere", "cannot be read"]),
            (&["--log-format", "xml"], &["--log-format", "xml", "json"]),
            (&["--frobnicate"], &["--frobnicate"]),
        ] {
            let error = read(flags).unwrap_err().to_string();
            for word in told {
                assert!(error.contains(word), "{flags:?} gave: {error}");
            }
        }
    }

    #[test]
    fn peers_may_be_several() {
        assert_eq!(read(&["--allow-peer", "7", "--allow-peer", "8"]).unwrap().allow_peer, [7, 8]);
    }
}
