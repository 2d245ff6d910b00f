//! Turns signals of the operating system into orders to the worker.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// An order from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// The first SIGTERM or SIGINT: drain, then stop.
    Drain,
    /// The second SIGTERM or SIGINT: stop at once.
    Quit,
    /// SIGUSR1: log the worker's state.
    Dump,
}

/// Handles the signals from now on. After the receiver is dropped, the signals are ignored.
///
/// # Errors
/// The system refuses a signal handler.
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
