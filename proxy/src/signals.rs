//! Signals: what an operator says to the process.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that the proxy hears.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    dump: Signal,
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

    /// Resolves on SIGTERM or SIGINT: finish what was admitted and exit; the second time, exit. Calls `dump` on each SIGUSR1
    /// until then.
    pub async fn stop(&mut self, dump: impl Fn()) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.dump.recv() => dump(),
            }
        }
    }
}
