//! A proxy and its workers as they run in earnest: child processes, a socket between them.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::client::Client;
use crate::eventually;
use crate::folder::Folder;
use crate::metrics::Metrics;
use crate::process::Process;

const PROXY: &str = "pillion-proxy";

/// A proxy, any number of workers, and the folder that holds their socket and logs. Dropping it kills all of them.
#[derive(Debug)]
pub struct Stack {
    /// The proxy.
    pub proxy: Process,
    /// The workers, in the order in which they were started.
    pub workers: Vec<Process>,
    address: SocketAddr,
    /// A socket that outlives the proxies that listen on it, if there is one.
    door: Option<TcpListener>,
    /// The proxy's program.
    program: &'static str,
    flags: Vec<String>,
    /// What all its programs are started by, if by anything.
    wrapper: Vec<String>,
    logs: usize,
    folder: Folder,
}

impl Stack {
    /// Starts a proxy with these flags besides its socket and a free port, and no worker.
    ///
    /// # Panics
    /// It does not come up.
    pub async fn proxy(flags: &[&str]) -> Self {
        Self::proxy_of(PROXY, flags).await
    }

    /// The same with another build's proxy.
    ///
    /// # Panics
    /// It does not come up.
    pub async fn proxy_of(program: &'static str, flags: &[&str]) -> Self {
        Self::start(program, Folder::new(), &[], flags, None).await
    }

    /// The same, with a folder that is there already and a command by which all its programs are started.
    ///
    /// # Panics
    /// It does not come up.
    pub async fn proxy_by(wrapper: &[&str], folder: Folder, flags: &[&str]) -> Self {
        Self::start(PROXY, folder, wrapper, flags, None).await
    }

    /// The same, with a socket that outlives the proxy.
    ///
    /// # Panics
    /// It does not come up.
    pub async fn proxy_with_door(flags: &[&str]) -> Self {
        let door = TcpListener::bind("127.0.0.1:0").expect("a free port");
        Self::start(PROXY, Folder::new(), &[], flags, Some(door)).await
    }

    async fn start(
        program: &'static str,
        folder: Folder,
        wrapper: &[&str],
        flags: &[&str],
        door: Option<TcpListener>,
    ) -> Self {
        let [wrapper, flags] =
            [wrapper, flags].map(|words| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>());
        let launch =
            Launch { program, folder: folder.path(), door: door.as_ref(), wrapper: &wrapper, flags: &flags, number: 0 };
        let (proxy, address) = launch.listening("127.0.0.1:0").await;
        Self { proxy, workers: Vec::new(), address, door, program, flags, wrapper, logs: 1, folder }
    }

    /// Starts a successor of the proxy on the same socket and tells the proxy to stop. Its exit code.
    ///
    /// # Panics
    /// It has no socket that outlives it, the successor does not come up, or the proxy does not end.
    pub async fn succeed_proxy(&mut self) -> Option<i32> {
        assert!(self.door.is_some(), "a socket that outlives the proxy");
        let (successor, _) = self.launch().listening("127.0.0.1:0").await;
        self.logs += 1;
        let mut old = std::mem::replace(&mut self.proxy, successor);
        old.signal(Signal::SIGTERM);
        old.ended().await
    }

    /// Starts a proxy and one simulated worker, and waits until they are ready.
    ///
    /// # Panics
    /// They do not come up.
    pub async fn simulated(proxy: &[&str], worker: &[&str]) -> Self {
        let mut stack = Self::proxy(proxy).await;
        stack.simulated_worker(worker);
        stack.ready().await;
        stack
    }

    /// Adds a simulated worker with these flags.
    pub fn simulated_worker(&mut self, flags: &[&str]) {
        let socket = self.socket();
        self.worker("simulated-worker", flags, &socket);
    }

    /// Adds a worker of either kind that dials `socket`.
    ///
    /// # Panics
    /// The program is not built.
    pub fn worker(&mut self, program: &str, flags: &[&str], socket: &Path) {
        let mut arguments = vec!["--socket", socket.to_str().expect("a plain path")];
        arguments.extend(flags);
        let log = self.folder.path().join(format!("{}-{}.log", self.logs, program.replace('/', "-")));
        self.logs += 1;
        self.workers.push(Process::start_by(&self.wrapper, program, &arguments, log));
    }

    fn launch(&self) -> Launch<'_> {
        Launch {
            program: self.program,
            folder: self.folder.path(),
            door: self.door.as_ref(),
            wrapper: &self.wrapper,
            flags: &self.flags,
            number: self.logs,
        }
    }

    /// Ends the proxy by `signal` and starts it again on the same address.
    ///
    /// # Panics
    /// It does not end, or does not come up again.
    pub async fn restart_proxy(&mut self, signal: Signal) {
        self.proxy.signal(signal);
        self.proxy.ended().await;
        let listen = self.address.to_string();
        (self.proxy, self.address) = self.launch().listening(&listen).await;
        self.logs += 1;
    }

    /// Waits until `/readyz` says 200.
    ///
    /// # Panics
    /// It does not.
    pub async fn ready(&self) {
        let client = self.client();
        eventually("/readyz says 200", async || (client.try_get("/readyz").await?.status == 200).then_some(())).await;
    }

    /// A client of the proxy, with connections of its own.
    pub fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// What `/metrics` says now.
    ///
    /// # Panics
    /// It says nothing.
    pub async fn metrics(&self) -> Metrics {
        let answer = self.client().get("/metrics").await;
        assert_eq!(answer.status, 200, "/metrics");
        Metrics::parse(&answer.text())
    }

    /// Waits until a metric, summed over its labels, is what `like` wants.
    ///
    /// # Panics
    /// It never is.
    pub async fn metric(&self, name: &str, like: impl Fn(i64) -> bool) -> i64 {
        eventually(name, async || Some(self.metrics().await.sum(name)).filter(|value| like(*value))).await
    }

    /// Where the proxy listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The proxy's socket for workers.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("worker.sock")
    }

    /// The folder of the stack, for what a test wants to put beside.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// How a proxy is started.
struct Launch<'a> {
    program: &'static str,
    folder: &'a Path,
    door: Option<&'a TcpListener>,
    wrapper: &'a [String],
    flags: &'a [String],
    /// Of its log.
    number: usize,
}

impl Launch<'_> {
    async fn listening(&self, listen: &str) -> (Process, SocketAddr) {
        let socket = self.folder.join("worker.sock");
        let mut arguments = vec!["--listen", listen, "--socket", socket.to_str().expect("a plain path")];
        arguments.extend(["--log-format", "json"]);
        arguments.extend(self.flags.iter().map(String::as_str));
        let log = self.folder.join(format!("{}-proxy.log", self.number));
        let mut proxy = match self.door {
            Some(door) => Process::start_on(door, self.program, &arguments, log),
            None => Process::start_by(self.wrapper, self.program, &arguments, log),
        };
        let address = proxy.logged("the proxy listens", listen_address).await;
        (proxy, address)
    }
}

/// The address in a line that says where the proxy listens, in either log format.
fn listen_address(line: &str) -> Option<SocketAddr> {
    if !line.contains("listening") {
        return None;
    }
    ["\"listen\":\"", "listen="].iter().find_map(|key| {
        let rest = line.split_once(key)?.1;
        rest.split(|c: char| c == '"' || c == ',' || c.is_whitespace()).next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::listen_address;

    #[test]
    fn the_address_is_found_in_both_log_formats() {
        let expected = Some("127.0.0.1:4711".parse().unwrap());
        assert_eq!(listen_address(r#"{"level":"INFO","message":"listening","listen":"127.0.0.1:4711"}"#), expected);
        assert_eq!(listen_address("INFO listening listen=127.0.0.1:4711 socket=/x"), expected);
        assert_eq!(listen_address("INFO configuration listen=127.0.0.1:0"), None);
    }
}
