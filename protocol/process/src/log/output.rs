//! Lines on their way to standard error. A thread writes them, so that whoever logs does not wait for whoever reads.
//!
//! If nobody reads, the lines are kept up to a bound. Lines beyond it are lost and counted. When somebody reads again, a warning
//! says how many were lost.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// The bytes that are kept while nobody reads.
const MOST: usize = 1024 * 1024;
/// The longest time for which lines are collected that are not urgent.
const COLLECT: Duration = Duration::from_millis(100);
/// Bytes at which collected lines leave at once.
const FULL: usize = 32 * 1024;
/// How long [`Output::flush`] waits for a reader.
const FLUSH: Duration = Duration::from_secs(1);

/// Lines on their way to a stream. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Output(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<u8>,
    is_urgent: bool,
    is_writing: bool,
    lost: u64,
}

impl Output {
    /// Lines on their way to `stream`. `tell` is called with the number of lost lines when the stream takes lines again.
    pub(super) fn to(stream: impl Write + Send + 'static, tell: impl Fn(u64) + Send + 'static) -> Self {
        let output = Self::default();
        let own = output.clone();
        // Without the thread the lines are lost, and counted.
        let _ = thread::Builder::new().name("log".into()).spawn(move || own.run(stream, tell));
        output
    }

    /// Adds the lines that `write` appends, unless too many are waiting. Lines that are not urgent may wait for others.
    pub(super) fn add(&self, is_urgent: bool, write: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.lock();
        if state.lines.len() >= MOST {
            state.lost += 1;
            return;
        }
        let was_empty = state.lines.is_empty();
        write(&mut state.lines);
        state.is_urgent |= is_urgent;
        if was_empty || is_urgent || state.lines.len() >= FULL {
            self.0.changed.notify_all();
        }
    }

    /// The number of lines that were lost.
    pub(super) fn lost(&self) -> u64 {
        self.lock().lost
    }

    /// Waits until all lines are written, but not for long: perhaps nobody reads.
    pub(super) fn flush(&self) {
        let mut state = self.lock();
        state.is_urgent = true;
        self.0.changed.notify_all();
        let waits = |state: &mut State| state.is_writing || !state.lines.is_empty();
        drop(self.0.changed.wait_timeout_while(state, FLUSH, waits));
    }

    fn run(&self, mut stream: impl Write, tell: impl Fn(u64)) {
        let (mut lines, mut told) = (Vec::new(), 0);
        loop {
            let lost = self.take(&mut lines);
            if lost > told {
                // This adds a line, for which there is room now.
                tell(lost - told);
                told = lost;
            }
            // A failure cannot be reported: it would go the same way.
            let _ = stream.write_all(&lines);
            lines.clear();
            self.lock().is_writing = false;
            self.0.changed.notify_all();
        }
    }

    /// Waits for lines and takes them. Returns the number of lines that were lost before.
    fn take(&self, lines: &mut Vec<u8>) -> u64 {
        let changed = &self.0.changed;
        let unpoisoned = PoisonError::into_inner;
        let mut state = changed.wait_while(self.lock(), |state| state.lines.is_empty()).unwrap_or_else(unpoisoned);
        let waits = |state: &mut State| !state.is_urgent && state.lines.len() < FULL;
        let waited = changed.wait_timeout_while(state, COLLECT, waits);
        state = waited.map_or_else(|error| error.into_inner().0, |(state, _)| state);
        std::mem::swap(lines, &mut state.lines);
        (state.is_urgent, state.is_writing) = (false, true);
        state.lost
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each call of `write` has whole lines.
impl Write for Output {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.add(true, |out| out.extend_from_slice(lines));
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A stream that passes each write on, and waits until it was received.
    struct Pipe(mpsc::SyncSender<Vec<u8>>);

    impl Write for Pipe {
        fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
            self.0.send(lines.to_owned()).map_err(io::Error::other).map(|()| lines.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn pipe() -> (Output, mpsc::Receiver<Vec<u8>>, mpsc::Receiver<u64>) {
        let (written, reader) = mpsc::sync_channel(0);
        let (tell, told) = mpsc::channel();
        (Output::to(Pipe(written), move |lost| tell.send(lost).unwrap()), reader, told)
    }

    #[test]
    fn whoever_logs_does_not_wait_for_a_reader_and_lost_lines_are_counted_and_told() {
        let (output, reader, told) = pipe();
        let line = [b'x'; 1024];
        for _ in 0..3 * MOST / line.len() {
            output.add(true, |out| out.extend_from_slice(&line));
        }
        output.flush();
        let lost = output.lost();
        assert!(lost > 0, "nobody read");
        let mut read = 0;
        while read < 3 * MOST - usize::try_from(lost).unwrap() * line.len() {
            read += reader.recv_timeout(Duration::from_secs(60)).unwrap().len();
        }
        // All at once, or in parts if the thread was late.
        let mut sum = 0;
        while sum < lost {
            sum += told.recv_timeout(Duration::from_secs(60)).unwrap();
        }
        assert_eq!(sum, lost);
    }

    #[test]
    fn lines_that_are_not_urgent_leave_together() {
        let (output, reader, _told) = pipe();
        output.add(true, |out| out.extend(b"first\n"));
        while !output.lock().is_writing {
            thread::yield_now();
        }
        // The thread waits until the first line is received, so these lines are there before it looks again.
        (0..3).for_each(|_| output.add(false, |out| out.extend(b"a\n")));
        output.add(true, |out| out.extend(b"b\n"));
        assert_eq!(reader.recv_timeout(Duration::from_secs(60)).unwrap(), b"first\n");
        assert_eq!(reader.recv_timeout(Duration::from_secs(60)).unwrap(), b"a\na\na\nb\n");
    }
}
