//! The worker's health: [`Health`] holds it inside the worker, and the command `pillion-worker check` asks for it.
//!
//! A worker serves no port, its files may be read-only, and workers may share the socket's folder. So a worker answers on a
//! Unix socket of Linux's abstract namespace, which vanishes with the process. The socket's name holds the number of the PID
//! namespace, which each container of a pod has to itself, and the worker's PID.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use pillion_process::command;

/// A worker that takes longer than this to answer is unhealthy.
const PATIENCE: Duration = Duration::from_secs(2);
/// The pause after a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes of an answer that are read.
const LOOKED_AT: u64 = 64;

const HEALTHY: u8 = 0;
const UNHEALTHY: u8 = 1;

/// The state of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The worker loads its model and warms up.
    Loading,
    /// The model is loaded, but no proxy is connected.
    Waiting,
    /// The worker serves a proxy.
    Connected,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loading => "loading the model",
            Self::Waiting => "waiting for a proxy",
            Self::Connected => "connected to a proxy",
        })
    }
}

/// The state of this worker. It starts as [`State::Loading`].
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<AtomicU8>);

impl Health {
    /// Sets the state to [`State::Waiting`].
    pub fn loaded(&self) {
        self.0.store(1, Relaxed);
    }

    /// Sets the state to [`State::Connected`] until the guard is dropped.
    #[must_use]
    pub fn connected(&self) -> Connected<'_> {
        self.0.store(2, Relaxed);
        Connected(self)
    }

    /// The present state.
    pub fn state(&self) -> State {
        match self.0.load(Relaxed) {
            0 => State::Loading,
            1 => State::Waiting,
            _ => State::Connected,
        }
    }

    /// Answers `pillion-worker check` on a thread of its own, as long as the process lives.
    ///
    /// # Errors
    /// The system gives no socket or no thread.
    pub fn answer(&self) -> io::Result<()> {
        let listener = UnixListener::bind_addr(&name(std::process::id())?)?;
        let health = self.clone();
        let answer = move || {
            for stream in listener.incoming() {
                match stream {
                    // A few bytes: a new socket has room for them, so the write does not block.
                    Ok(mut stream) => drop(stream.write_all(health.state().to_string().as_bytes())),
                    Err(_) => std::thread::sleep(PAUSE),
                }
            }
        };
        std::thread::Builder::new().name("check".to_owned()).spawn(answer)?;
        Ok(())
    }
}

/// The worker counts as connected until this is dropped.
#[derive(Debug)]
pub struct Connected<'a>(&'a Health);

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.loaded();
    }
}

/// Asks the workers in the same container for their state. Exit codes: 0 healthy, 1 not, 64 bad flag
#[derive(Debug, Parser)]
#[command(name = "pillion-worker check", version)]
struct Flags {
    /// live: the worker answers; loaded: its model is loaded; ready: it serves a proxy
    #[arg(default_value = "live")]
    probe: Probe,
    /// PID of the worker; without it all workers in the container are asked
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Probe {
    Live,
    Loaded,
    Ready,
}

impl Probe {
    fn is_met_by(self, answer: &str) -> bool {
        match self {
            Self::Live => !answer.is_empty(),
            Self::Loaded => [State::Waiting, State::Connected].iter().any(|state| state.to_string() == answer),
            Self::Ready => State::Connected.to_string() == answer,
        }
    }
}

/// Runs the command `check` if these arguments, the first of which is the program's name, ask for it. Returns its exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Option<u8> {
    command::run("check", arguments, check)
}

fn check(flags: &Flags) -> u8 {
    let workers = match flags.pid {
        Some(pid) => Ok(vec![pid]),
        None => all(),
    };
    let workers = match workers {
        Ok(workers) if !workers.is_empty() => workers,
        Ok(_) => {
            eprintln!("no worker runs in this container (PID namespace)");
            return UNHEALTHY;
        }
        Err(error) => {
            eprintln!("cannot list the workers of this container: {error}");
            return UNHEALTHY;
        }
    };
    let mut code = HEALTHY;
    for pid in workers {
        match ask(pid) {
            Ok(answer) if flags.probe.is_met_by(&answer) => {}
            Ok(answer) => {
                eprintln!("worker {pid}: {answer}");
                code = UNHEALTHY;
            }
            Err(error) => {
                eprintln!("worker {pid} does not answer: {error}");
                code = UNHEALTHY;
            }
        }
    }
    code
}

fn ask(pid: u32) -> io::Result<String> {
    let stream = UnixStream::connect_addr(&name(pid)?)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    stream.take(LOOKED_AT).read_to_string(&mut answer)?;
    Ok(answer)
}

fn name(pid: u32) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("{}{pid}", prefix()?))
}

/// The prefix of the socket names of all workers of this PID namespace.
fn prefix() -> io::Result<String> {
    let namespace = std::fs::read_link("/proc/self/ns/pid")?;
    let number: String = namespace.to_string_lossy().chars().filter(char::is_ascii_digit).collect();
    Ok(format!("pillion-worker-{number}-"))
}

fn all() -> io::Result<Vec<u32>> {
    Ok(found(&std::fs::read_to_string("/proc/net/unix")?, &prefix()?))
}

/// The PIDs of the workers among a machine's sockets, each once: a worker that is being asked has more than one socket.
fn found(sockets: &str, prefix: &str) -> Vec<u32> {
    let name = |line: &str| line.split_whitespace().nth(7)?.strip_prefix('@')?.strip_prefix(prefix)?.parse().ok();
    let mut workers: Vec<u32> = sockets.lines().filter_map(name).collect();
    workers.sort_unstable();
    workers.dedup();
    workers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_answers_with_its_state() {
        let health = Health::default();
        health.answer().unwrap();
        let pid = std::process::id();
        assert!(all().unwrap().contains(&pid));
        let check = |probe| super::check(&Flags { probe, pid: Some(pid) });
        let all = [Probe::Live, Probe::Loaded, Probe::Ready];
        assert_eq!(all.map(check), [HEALTHY, UNHEALTHY, UNHEALTHY]);
        health.loaded();
        assert_eq!(all.map(check), [HEALTHY, HEALTHY, UNHEALTHY]);
        let connected = health.connected();
        assert_eq!(all.map(check), [HEALTHY, HEALTHY, HEALTHY]);
        drop(connected);
        assert_eq!(health.state(), State::Waiting);
    }

    #[test]
    fn a_worker_that_does_not_run_is_unhealthy() {
        assert_eq!(check(&Flags { probe: Probe::Live, pid: Some(0) }), UNHEALTHY);
    }

    #[test]
    fn workers_of_other_namespaces_are_left_out() {
        let sockets = "Num RefCount Protocol Flags Type St Inode Path\n\
            0000: 00000002 00000000 00010000 0001 01 7 @pillion-worker-12-7\n\
            0000: 00000003 00000000 00000000 0001 03 8 @pillion-worker-12-7\n\
            0000: 00000002 00000000 00010000 0001 01 9 @pillion-worker-123-1\n\
            0000: 00000002 00000000 00010000 0001 01 9 @pillion-worker-12-x\n\
            0000: 00000002 00000000 00010000 0001 01 9 /run/pillion-worker-12-9\n\
            0000: 00000002 00000000 00010000 0001 01 9\n";
        assert_eq!(found(sockets, "pillion-worker-12-"), [7]);
    }

    #[test]
    fn only_the_first_argument_check_runs_it() {
        let run = |line: &str| run(line.split(' ').map(OsString::from));
        assert_eq!(run("pillion-worker"), None);
        assert_eq!(run("pillion-worker --model check"), None);
        assert_eq!(run("pillion-worker check well"), Some(64));
        assert_eq!(run("pillion-worker check --help"), Some(HEALTHY));
    }
}
