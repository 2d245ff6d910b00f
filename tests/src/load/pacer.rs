//! The thread that says when a request is due.
//!
//! Tokio's timers tick in milliseconds. With them, a generator of thousands of requests a second would send several
//! requests at each tick. A thread's sleep is precise to the kernel's timer slack, which is 50 µs unless the thread
//! asks for less.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl::set_timerslack;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// The nanoseconds by which the kernel may delay the pacer's wake-ups. This is the least value that the kernel takes.
const TIMER_SLACK: core::ffi::c_ulong = 1;

/// Sends each instant of `schedule`, counted from `start`, when the instant has come.
///
/// The channel has no bound, so that the pacer never waits for the receiver. The channel never holds more instants than
/// the schedule has. Dropping the receiver ends the thread at the next instant.
///
/// # Errors
/// The thread cannot be started.
pub fn pace(
    start: Instant,
    schedule: impl Iterator<Item = Duration> + Send + 'static,
) -> io::Result<UnboundedReceiver<Instant>> {
    let (due, receiver) = unbounded_channel();
    let pacing = move || {
        // If the kernel refuses, the instants come a little later.
        let _ = set_timerslack(TIMER_SLACK);
        for offset in schedule {
            let intended = start + offset;
            let ahead = intended.saturating_duration_since(Instant::now());
            if !ahead.is_zero() {
                thread::sleep(ahead);
            }
            if due.send(intended).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("pacer".to_owned()).spawn(pacing)?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_instant_is_handed_over_in_order_and_never_early() {
        let schedule: Vec<_> = [0, 0, 1, 2, 2, 5].map(Duration::from_millis).into();
        let start = Instant::now();
        let mut due = pace(start, schedule.clone().into_iter()).unwrap();
        for offset in schedule {
            assert_eq!(due.recv().await, Some(start + offset));
            assert!(start.elapsed() >= offset);
        }
        assert_eq!(due.recv().await, None);
    }
}
