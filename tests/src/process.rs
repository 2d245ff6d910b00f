//! One child process, with its log in a file.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::{PATIENCE, eventually};

/// A running program. Dropping it kills the process; while a test fails, its log is shown.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts one of this workspace's programs, with standard error and output in `log`.
    ///
    /// # Panics
    /// The program is not built, or cannot be started.
    pub fn start<A: AsRef<str>>(program: &str, arguments: &[A], log: PathBuf) -> Self {
        Self::start_by(&[], program, arguments, log)
    }

    /// The same by a command that becomes the program, such as `env NAME=VALUE`; by nothing where it is empty.
    ///
    /// # Panics
    /// The program is not built, or cannot be started.
    pub fn start_by<A: AsRef<str>>(wrapper: &[String], program: &str, arguments: &[A], log: PathBuf) -> Self {
        let path = binary(program).unwrap_or_else(|missing| panic!("{missing}"));
        let mut command = match wrapper.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(path);
                command
            }
            None => Command::new(path),
        };
        command.args(arguments.iter().map(AsRef::as_ref));
        Self::run(program, command, log)
    }

    /// The same, with a listening socket that it inherits: systemd's convention, `sd_listen_fds(3)`.
    ///
    /// # Panics
    /// The program is not built, or cannot be started.
    pub fn start_on<A: AsRef<str>>(door: &TcpListener, program: &str, arguments: &[A], log: PathBuf) -> Self {
        let path = binary(program).unwrap_or_else(|missing| panic!("{missing}"));
        // What the shell becomes by exec keeps its number.
        let script = format!("exec 3<&{}; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"", door.as_raw_fd());
        fcntl(door, FcntlArg::F_SETFD(FdFlag::empty())).expect("the socket can be passed on");
        let mut command = Command::new("bash");
        command.args(["-c", &script, "bash"]).arg(path).args(arguments.iter().map(AsRef::as_ref));
        Self::run(program, command, log)
    }

    /// Starts a script with these variables in its environment.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn script<A: AsRef<str>>(path: &Path, arguments: &[A], variables: &[(&str, &Path)], log: PathBuf) -> Self {
        let mut command = Command::new(path);
        command.args(arguments.iter().map(AsRef::as_ref)).envs(variables.iter().copied());
        Self::run(&path.display().to_string(), command, log)
    }

    fn run(program: &str, mut command: Command, log: PathBuf) -> Self {
        let output = File::create(&log).expect("the log can be written");
        let child = command
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("one more handle"))
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{program} cannot be started: {error}"));
        Self { name: program.to_owned(), child, log }
    }

    /// What it has logged so far; nothing where that is no file.
    pub fn log(&self) -> String {
        if !self.log.is_file() {
            return String::new();
        }
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits for a line of the log that `find` likes, and returns what it makes of it.
    ///
    /// # Panics
    /// There is none in time, or the process ends without.
    pub async fn logged<T>(&mut self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        eventually(what, async || {
            let ended = self.child.try_wait().expect("its state can be asked");
            let found = self.log().lines().find_map(&find);
            assert!(
                found.is_some() || ended.is_none(),
                "{} ended ({ended:?}) before {what}:\n{}",
                self.name,
                self.log()
            );
            found
        })
        .await
    }

    /// Its number; none once it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Sends a signal. A process that is gone does not mind.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id() {
            let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
        }
    }

    /// Waits for the end; the exit code, or `None` where a signal ended it.
    ///
    /// # Panics
    /// It does not end in time.
    pub async fn ended(&mut self) -> Option<i32> {
        let ended = timeout(PATIENCE, self.child.wait()).await;
        let status = ended.unwrap_or_else(|_| {
            panic!(
                "{} did not end:
{}",
                self.name,
                self.log()
            )
        });
        status.expect("its end can be awaited").code()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of {} ----\n{}", self.name, self.log());
        }
    }
}

/// The environment's name of the folder with an earlier build's programs; empty where there are none.
pub const PREVIOUS: &str = "PILLION_TEST_PREVIOUS";

/// A program of this workspace, beside the running one in the target folder; tests are one folder further down. What begins
/// with `previous/` is an earlier build's.
///
/// # Errors
/// It is not there: how to build it.
pub fn binary(program: &str) -> Result<PathBuf, String> {
    if let Some(program) = program.strip_prefix("previous/") {
        let folder = std::env::var_os(PREVIOUS).ok_or(format!("{PREVIOUS} is not set"))?;
        let path = Path::new(&folder).join(program);
        return if path.is_file() { Ok(path) } else { Err(format!("{} is not there", path.display())) };
    }
    let here = std::env::current_exe().map_err(|error| error.to_string())?;
    let folder = here.parent().unwrap_or(Path::new("/"));
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    let path = folder.join(program);
    let package = if program == "simulated-worker" { "pillion-tests" } else { program };
    let profile = if path.components().any(|part| part.as_os_str() == "release") { " --release" } else { "" };
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("{} is not built: cargo build{profile} -p {package} --bin {program}", path.display()))
    }
}
