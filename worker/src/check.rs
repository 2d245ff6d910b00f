//! How a worker is: kept by it, and asked by `pillion-worker check`, which is run beside it.
//!
//! A worker serves no port, its files may be read-only, and the socket's folder may be shared with others like it. So it
//! answers on a Unix socket of Linux's abstract namespace, which goes with the process. In its name are the namespace of
//! processes, which each container of a pod has to itself, and the process's number.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// A worker that does not answer for so long is not well.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries to accept somebody.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes of an answer that are looked at.
const LOOKED_AT: u64 = 64;

const WELL: u8 = 0;
const UNWELL: u8 = 1;
const BAD_FLAG: u8 = 64;

/// How a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It loads its model and warms up.
    Loading,
    /// It has no proxy.
    Waiting,
    /// It serves a proxy.
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

/// How this worker is, to be written by those who know and read by those who ask. At first it loads.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<AtomicU8>);

impl Health {
    /// From now on it is loaded, and has no proxy.
    pub fn loaded(&self) {
        self.0.store(1, Relaxed);
    }

    /// It has one, until the guard is dropped.
    #[must_use]
    pub fn connected(&self) -> Connected<'_> {
        self.0.store(2, Relaxed);
        Connected(self)
    }

    /// How it is.
    pub fn state(&self) -> State {
        match self.0.load(Relaxed) {
            0 => State::Loading,
            1 => State::Waiting,
            _ => State::Connected,
        }
    }

    /// Answers whoever asks, on a thread of its own, as long as the process lives.
    ///
    /// # Errors
    /// There is no socket to be had, or no thread.
    pub fn answer(&self) -> io::Result<()> {
        let listener = UnixListener::bind_addr(&name(std::process::id())?)?;
        let health = self.clone();
        let answer = move || {
            for stream in listener.incoming() {
                match stream {
                    // A few bytes, for which a new socket has room.
                    Ok(mut stream) => drop(stream.write_all(health.state().to_string().as_bytes())),
                    Err(_) => std::thread::sleep(PAUSE),
                }
            }
        };
        std::thread::Builder::new().name("check".to_owned()).spawn(answer)?;
        Ok(())
    }
}

/// A proxy is there.
#[derive(Debug)]
pub struct Connected<'a>(&'a Health);

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.loaded();
    }
}

/// Asks the worker that runs beside this, in the same container, how it is. Exit codes: 0 well, 1 not, 64 bad flag
#[derive(Debug, Parser)]
#[command(name = "pillion-worker check", version)]
struct Flags {
    /// live: it answers; loaded: its model is too; ready: and it serves a proxy
    #[arg(default_value = "live")]
    probe: Probe,
    /// Process number of the worker; without it all that run here are asked
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
    fn is_fulfilled(self, answer: &str) -> bool {
        match self {
            Self::Live => !answer.is_empty(),
            Self::Loaded => [State::Waiting, State::Connected].iter().any(|state| state.to_string() == answer),
            Self::Ready => State::Connected.to_string() == answer,
        }
    }
}

/// Runs `check` where these arguments (the first is the program's name) ask for it; its exit code.
pub fn asked(arguments: impl IntoIterator<Item = OsString>) -> Option<u8> {
    let mut arguments = arguments.into_iter();
    let program = arguments.next()?;
    if arguments.next()? != "check" {
        return None;
    }
    Some(match Flags::try_parse_from(std::iter::once(program).chain(arguments)) {
        Ok(flags) => check(&flags),
        Err(error) => {
            let _ = error.print();
            if error.use_stderr() { BAD_FLAG } else { WELL }
        }
    })
}

fn check(flags: &Flags) -> u8 {
    let workers = match flags.pid {
        Some(pid) => Ok(vec![pid]),
        None => all(),
    };
    let workers = match workers {
        Ok(workers) if !workers.is_empty() => workers,
        Ok(_) => {
            eprintln!("no worker runs here");
            return UNWELL;
        }
        Err(error) => {
            eprintln!("it cannot be told which workers run here: {error}");
            return UNWELL;
        }
    };
    let mut code = WELL;
    for pid in workers {
        match ask(pid) {
            Ok(answer) if flags.probe.is_fulfilled(&answer) => {}
            Ok(answer) => {
                eprintln!("worker {pid}: {answer}");
                code = UNWELL;
            }
            Err(error) => {
                eprintln!("worker {pid} does not answer: {error}");
                code = UNWELL;
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

/// What the names of all workers of this namespace of processes begin with.
fn prefix() -> io::Result<String> {
    let namespace = std::fs::read_link("/proc/self/ns/pid")?;
    let number: String = namespace.to_string_lossy().chars().filter(char::is_ascii_digit).collect();
    Ok(format!("pillion-worker-{number}-"))
}

fn all() -> io::Result<Vec<u32>> {
    Ok(found(&std::fs::read_to_string("/proc/net/unix")?, &prefix()?))
}

/// The numbers of the workers among the sockets of a machine; once for each that listens, also while it is being asked.
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
    fn a_worker_says_how_it_is() {
        let health = Health::default();
        health.answer().unwrap();
        let pid = std::process::id();
        assert!(all().unwrap().contains(&pid));
        let well = |probe| check(&Flags { probe, pid: Some(pid) });
        let all = [Probe::Live, Probe::Loaded, Probe::Ready];
        assert_eq!(all.map(well), [WELL, UNWELL, UNWELL]);
        health.loaded();
        assert_eq!(all.map(well), [WELL, WELL, UNWELL]);
        let connected = health.connected();
        assert_eq!(all.map(well), [WELL, WELL, WELL]);
        drop(connected);
        assert_eq!(health.state(), State::Waiting);
    }

    #[test]
    fn who_is_not_there_is_not_well() {
        assert_eq!(check(&Flags { probe: Probe::Live, pid: Some(0) }), UNWELL);
    }

    #[test]
    fn workers_of_other_namespaces_are_others() {
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
    fn only_check_is_taken_for_it() {
        let asked = |line: &str| asked(line.split(' ').map(OsString::from));
        assert_eq!(asked("pillion-worker"), None);
        assert_eq!(asked("pillion-worker --model check"), None);
        assert_eq!(asked("pillion-worker check well"), Some(BAD_FLAG));
        assert_eq!(asked("pillion-worker check --help"), Some(WELL));
    }
}
