//! Listening sockets that the process inherits by systemd's convention (`sd_listen_fds(3)`): descriptors from 3 on, of which
//! `LISTEN_FDS` is the number and `LISTEN_PID` the process that they are for. The sockets outlive the process: a connection
//! that comes after one proxy ends and before the next begins waits in the kernel instead of being refused.

use std::io;
use std::net::TcpListener;

use listenfd::ListenFd;

/// The inherited sockets, which are taken one by one.
#[allow(missing_debug_implementations, reason = "`ListenFd` has none")]
pub struct Inherited {
    sockets: ListenFd,
    taken: usize,
}

impl Inherited {
    /// Finds the sockets through the environment.
    pub fn from_env() -> Self {
        Self { sockets: ListenFd::from_env(), taken: 0 }
    }

    /// Takes the next socket in order; `None` if no socket is left.
    ///
    /// # Errors
    /// The descriptor is not a listening TCP socket.
    pub fn next_tcp(&mut self) -> io::Result<Option<TcpListener>> {
        let listener = self.sockets.take_tcp_listener(self.taken)?;
        if let Some(listener) = &listener {
            self.taken += 1;
            listener.set_nonblocking(true)?;
        }
        Ok(listener)
    }

    /// Number of sockets that were not taken.
    pub fn left(&self) -> usize {
        self.sockets.len().saturating_sub(self.taken)
    }
}
