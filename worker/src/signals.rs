//! Signals of the system as orders to the worker.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// What somebody outside wants of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Stop serving once nobody needs it: the first SIGTERM or SIGINT.
    Drain,
    /// Stop at once: the second.
    Quit,
    /// Log what is held: SIGUSR1.
    Dump,
}

/// Listens from now on. Dropping the receiver ends the listening, not the handling: the signals are then ignored.
///
/// # Errors
/// The system does not let signals be handled.
pub fn listen() -> io::Result<mpsc::Receiver<Control>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut dump = signal(SignalKind::user_defined1())?;
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        let mut stop = Control::Drain;
        loop {
            let control = tokio::select! {
                _ = terminate.recv() => std::mem::replace(&mut stop, Control::Quit),
                _ = interrupt.recv() => std::mem::replace(&mut stop, Control::Quit),
                _ = dump.recv() => Control::Dump,
            };
            if sender.send(control).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}
