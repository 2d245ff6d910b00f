//! Signals: what an operator says to the process. And how long it lingers once it is to go.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Once clients are to go elsewhere, idle connections stay open for so long: a request may be on its way.
pub const LINGER: Duration = Duration::from_secs(1);

/// The signals that the proxy hears.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    dump: Signal,
}

/// What one of them asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// SIGTERM or SIGINT: finish what was admitted and exit; the second time, exit.
    Stop,
    /// SIGUSR1: log what is queued and in flight.
    Dump,
}

impl Signals {
    /// Takes the signals over from their defaults.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            dump: signal(SignalKind::user_defined1())?,
        })
    }

    /// The next of them.
    pub async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.terminate.recv() => Request::Stop,
            _ = self.interrupt.recv() => Request::Stop,
            _ = self.dump.recv() => Request::Dump,
        }
    }

    /// Resolves when the process is asked to stop, and passes dumps to `dump` until then.
    pub async fn stop(&mut self, dump: impl Fn()) {
        while self.next().await == Request::Dump {
            dump();
        }
    }
}
