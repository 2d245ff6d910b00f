//! Listening sockets that the process was started with, by systemd's convention (`sd_listen_fds(3)`): descriptors from 3 on,
//! `LISTEN_FDS` says how many, `LISTEN_PID` for whom. They outlive the process: what connects while one proxy ends and the
//! next begins waits in the kernel, and nobody is refused.

use std::io;
use std::net::TcpListener;

use listenfd::ListenFd;

/// The sockets, and how many of them have been taken.
#[allow(missing_debug_implementations, reason = "what it holds has none")]
pub struct Inherited {
    sockets: ListenFd,
    taken: usize,
}

impl Inherited {
    /// Those of this process.
    pub fn from_env() -> Self {
        Self { sockets: ListenFd::from_env(), taken: 0 }
    }

    /// The next of them, in their order; `None` where there are no more.
    ///
    /// # Errors
    /// It is no listening TCP socket.
    pub fn next_tcp(&mut self) -> io::Result<Option<TcpListener>> {
        let listener = self.sockets.take_tcp_listener(self.taken)?;
        if let Some(listener) = &listener {
            self.taken += 1;
            listener.set_nonblocking(true)?;
        }
        Ok(listener)
    }

    /// How many are left.
    pub fn left(&self) -> usize {
        self.sockets.len().saturating_sub(self.taken)
    }
}
