//! The command `pillion-proxy check live|ready`: sends a probe to a running proxy and returns its result as the exit code. For
//! images that hold no other HTTP client.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use pillion_process::command;

use crate::address;

/// A proxy that takes longer than this to answer is unhealthy.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of an answer that are read.
const MAX_ANSWER: u64 = 4096;

const HEALTHY: u8 = 0;
const UNHEALTHY: u8 = 1;

/// Sends a probe to a running proxy. Exit codes: 0 healthy, 1 not, 64 bad flag
#[derive(Debug, Parser)]
#[command(name = "pillion-proxy check", version)]
struct Flags {
    /// live: it can serve HTTP; ready: it has a worker and is not shutting down
    probe: Probe,
    /// Address of the proxy
    #[arg(long, env = "PILLION_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT", value_parser = address::parse)]
    listen: SocketAddr,
    /// Address at which the proxy serves probes alone; used instead
    #[arg(long, env = "PILLION_ADMIN_LISTEN", value_name = "ADDRESS:PORT", value_parser = address::parse)]
    admin_listen: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Probe {
    Live,
    Ready,
}

impl Probe {
    fn path(self) -> &'static str {
        match self {
            Self::Live => "/livez",
            Self::Ready => "/readyz",
        }
    }
}

/// Runs the command `check` if these arguments, the first of which is the program's name, ask for it. Returns its exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Option<u8> {
    command::run("check", arguments, check)
}

fn check(flags: &Flags) -> u8 {
    // Where the proxy listens on every address (0.0.0.0 or ::), this connects on the loopback address.
    let address = flags.admin_listen.unwrap_or(flags.listen);
    let found = match ask(address, flags.probe.path()) {
        Ok((200, _)) => return HEALTHY,
        Ok((status, text)) => format!("answers {status}: {text}"),
        Err(error) => format!("does not answer: {error}"),
    };
    eprintln!("{address} {found}");
    UNHEALTHY
}

/// Status and text of an answer.
fn ask(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    read(&String::from_utf8_lossy(&answer)).ok_or_else(|| io::Error::other("what it says is no HTTP"))
}

fn read(answer: &str) -> Option<(u16, String)> {
    let (head, text) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some((status, text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> impl Iterator<Item = OsString> {
        line.split(' ').map(OsString::from).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn only_check_is_taken_for_it() {
        assert_eq!(run(arguments("pillion-proxy")), None);
        assert_eq!(run(arguments("pillion-proxy --listen check")), None);
        assert_eq!(run(arguments("pillion-proxy check well")), Some(pillion_process::exit::BAD_FLAG));
        assert_eq!(run(arguments("pillion-proxy check")), Some(pillion_process::exit::BAD_FLAG));
        assert_eq!(run(arguments("pillion-proxy check --help")), Some(HEALTHY));
    }

    #[test]
    fn an_answer_is_read() {
        let unready = "HTTP/1.1 503 Service Unavailable\r\na: b\r\n\r\nno worker is connected\n";
        assert_eq!(read(unready), Some((503, "no worker is connected".to_owned())));
        for no_http in ["", "HTTP/1.1 200 OK\r\n", "SSH-2.0\r\n\r\n", "HTTP/1.1 20\r\n\r\n"] {
            assert_eq!(read(no_http), None, "{no_http}");
        }
    }
}
