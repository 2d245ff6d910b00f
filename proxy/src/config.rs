//! The configuration: flags, or environment variables with the same names and the prefix `PILLION_`, validated at start.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Parser;
use clap::builder::RangedI64ValueParser;
use pillion_process::log::LogFormat;
use pillion_process::socket;
use pillion_protocol::codec::{MAX_BATCH_MEMBERS, MAX_BATCH_TEXT};

use crate::address;
use crate::auth::ApiKeys;

/// The validated configuration.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "pillion-proxy",
    version,
    about = "An HTTP proxy that coalesces requests into batches for a model worker",
    after_help = "pillion-proxy check live|ready asks a running proxy whether it is live or ready."
)]
pub struct Config {
    /// Address and port to serve HTTP on
    #[arg(long, env = "PILLION_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT", value_parser = address::parse)]
    pub listen: SocketAddr,
    /// A second address and port, for probes and metrics only
    #[arg(long, env = "PILLION_ADMIN_LISTEN", value_name = "ADDRESS:PORT", value_parser = address::parse)]
    pub admin_listen: Option<SocketAddr>,
    /// Unix-domain socket that workers connect to [default: /run/pillion/worker.sock, or one in the user's runtime folder]
    #[arg(long, env = "PILLION_SOCKET", value_name = "PATH",
        default_value_os_t = socket::default_path(), hide_default_value = true)]
    pub socket: PathBuf,
    /// The most texts in one batch
    #[arg(long, env = "PILLION_MAX_BATCH_SIZE", allow_negative_numbers = true, default_value_t = 50, value_name = "TEXTS",
        value_parser = count(MAX_BATCH_MEMBERS))]
    pub max_batch_size: usize,
    /// The longest that a batch may be held for more texts while a worker is free; it is held only if that pays
    #[arg(long, env = "PILLION_BATCH_TIMEOUT", default_value = "100ms", value_name = "DURATION", value_parser = duration)]
    pub batch_timeout: Duration,
    /// The most texts that may wait; further ones are refused with 429
    #[arg(long, env = "PILLION_MAX_QUEUE", allow_negative_numbers = true, default_value_t = 1024, value_name = "TEXTS",
        value_parser = count(1_000_000))]
    pub max_queue: usize,
    /// Memory for the bodies of requests until they are answered; further ones are refused with 429
    #[arg(long, env = "PILLION_MAX_QUEUE_BYTES", default_value = "64MiB", value_name = "BYTES", value_parser = bytes)]
    pub max_queue_bytes: usize,
    /// The largest body of a request, at most 8MiB; larger ones are refused with 413
    #[arg(long, env = "PILLION_MAX_BODY_BYTES", default_value = "2MiB", value_name = "BYTES", value_parser = bytes)]
    pub max_body_bytes: usize,
    /// The most HTTP connections at once; further ones wait to be accepted
    #[arg(long, env = "PILLION_MAX_CONNECTIONS", allow_negative_numbers = true, default_value_t = 10_000, value_name = "CONNECTIONS",
        value_parser = count(1_000_000))]
    pub max_connections: usize,
    /// The longest timeout of a request, and the default
    #[arg(long, env = "PILLION_REQUEST_TIMEOUT", default_value = "60s", value_name = "DURATION", value_parser = duration)]
    pub request_timeout: Duration,
    /// The longest that a request waits while no suitable worker is connected, before it fails with 503
    #[arg(long, env = "PILLION_WORKER_WAIT", default_value = "30s", value_name = "DURATION", value_parser = duration)]
    pub worker_wait: Duration,
    /// How many worker deaths a text may be present at before it is retried alone; after one more it fails with 502
    #[arg(long, env = "PILLION_MAX_ATTEMPTS", allow_negative_numbers = true, default_value_t = 3, value_name = "TIMES",
        value_parser = clap::value_parser!(u32).range(1..=100))]
    pub max_attempts: u32,
    /// The longest that a shutdown waits for admitted requests; not shorter than --request-timeout
    #[arg(long, env = "PILLION_DRAIN_TIMEOUT", default_value = "65s", value_name = "DURATION", value_parser = duration)]
    pub drain_timeout: Duration,
    /// User id of another user whose workers may connect; may be repeated
    #[arg(long, env = "PILLION_ALLOW_PEER", allow_negative_numbers = true, value_name = "UID", value_delimiter = ',')]
    pub allow_peer: Vec<u32>,
    /// File of API keys, one a line; only requests with `Authorization: Bearer KEY` are served. Reloaded when it changes
    #[arg(long, env = "PILLION_API_KEY_FILE", value_name = "PATH")]
    pub api_key_file: Option<PathBuf>,
    /// Format of log lines
    #[arg(long, env = "PILLION_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// Log prompts and answers, which are never logged otherwise
    #[arg(long, env = "PILLION_LOG_PROMPTS")]
    pub log_prompts: bool,
    /// The keys of `--api-key-file`.
    #[arg(skip)]
    pub api_keys: Option<ApiKeys>,
}

/// Why the configuration is invalid.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A flag or value is invalid, or help was requested. The message is for the user as it is.
    #[error(transparent)]
    Flags(#[from] clap::Error),
    /// A value is not allowed.
    #[error("--{flag} is {value}: {allowed}")]
    Value {
        /// The flag, without its dashes.
        flag: &'static str,
        /// The flag's value.
        value: String,
        /// What is allowed, as a clause.
        allowed: String,
    },
}

impl Config {
    /// Reads flags (the first argument is the program's name) and the environment.
    ///
    /// # Errors
    /// A flag is unknown, or a value is not allowed.
    pub fn read(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, ConfigError> {
        let mut config = Self::try_parse_from(arguments)?;
        config.check()?;
        if let Some(path) = &config.api_key_file {
            config.api_keys = Some(ApiKeys::read(path).map_err(|error| ConfigError::Value {
                flag: "api-key-file",
                value: path.display().to_string(),
                allowed: format!("the file {error}"),
            })?);
        }
        Ok(config)
    }

    /// Logs the configuration.
    pub fn log(&self) {
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

    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |flag, value, allowed| Err(ConfigError::Value { flag, value, allowed });
        if self.drain_timeout < self.request_timeout {
            let allowed = format!("it must not be shorter than --request-timeout, {}", time(self.request_timeout));
            return wrong("drain-timeout", time(self.drain_timeout), allowed);
        }
        if self.request_timeout.is_zero() {
            return wrong("request-timeout", time(self.request_timeout), "it must be over 0".to_owned());
        }
        if self.max_body_bytes == 0 || self.max_body_bytes > MAX_BATCH_TEXT.min(self.max_queue_bytes) {
            let most = ByteSize(MAX_BATCH_TEXT as u64);
            let allowed = format!("it must be over 0, at most --max-queue-bytes and at most {most}");
            return wrong("max-body-bytes", ByteSize(self.max_body_bytes as u64).to_string(), allowed);
        }
        let folder = self.socket.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir());
        if let Some(folder) = folder.filter(|_| self.socket != socket::default_path()) {
            let allowed = format!("its folder must exist, but {} is not there", folder.display());
            return wrong("socket", self.socket.display().to_string(), allowed);
        }
        Ok(())
    }
}

fn time(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// Parses a number from 1 to `most`.
fn count(most: usize) -> RangedI64ValueParser<usize> {
    RangedI64ValueParser::new().range(1..=i64::try_from(most).unwrap_or(i64::MAX))
}

/// Parses a duration of at most a day, so that it can be added to any instant.
fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= Duration::from_secs(24 * 3600) => Ok(duration),
        Ok(_) => Err("it must be at most 24h".to_owned()),
        Err(error) => Err(format!("{error}; write it like 500ms, 30s or 2m")),
    }
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
    fn absent_flags_have_the_documented_defaults() {
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
    fn an_error_names_the_flag_its_value_and_what_is_allowed() {
        for (flags, expected) in [
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
            (&["--drain-timeout", "25h"], &["--drain-timeout", "25h", "24h"]),
            (&["--batch-timeout", "25h"], &["--batch-timeout", "25h", "24h"]),
            (&["--worker-wait", "500000000000y"], &["--worker-wait", "500000000000y"]),
            (&["--api-key-file", "/nowhere"], &["--api-key-file", "/nowhere", "cannot be read"]),
            (&["--log-format", "xml"], &["--log-format", "xml", "json"]),
            (&["--frobnicate"], &["--frobnicate"]),
        ] {
            let error = read(flags).unwrap_err().to_string();
            for word in expected {
                assert!(error.contains(word), "{flags:?} gave: {error}");
            }
        }
    }

    #[test]
    fn allow_peer_may_be_repeated() {
        assert_eq!(read(&["--allow-peer", "7", "--allow-peer", "8"]).unwrap().allow_peer, [7, 8]);
    }
}
