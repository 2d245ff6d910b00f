//! One connection of the simulated worker.

use std::future::pending;
use std::io;
use std::time::Duration;

use bytes::BytesMut;
use pillion_protocol::connection::FrameReader;
use pillion_protocol::frame::{Batch, Goodbye, GoodbyeReason, Heartbeat, Hello};
use pillion_protocol::{BatchId, Frame, codec};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::running::Running;
use super::{Ending, FaultKind, Profile, SessionError};

/// How often a closed gate is looked at.
const GATE: Duration = Duration::from_millis(5);

/// A worker's life, over any number of connections.
#[derive(Debug)]
pub struct FakeWorker {
    pub(super) profile: Profile,
    batches: u64,
    steps: u64,
    born: Instant,
    /// When it last became idle.
    idle_since: Instant,
}

impl FakeWorker {
    /// A worker at the start of its life.
    pub fn new(profile: Profile) -> Self {
        let now = Instant::now();
        Self { profile, batches: 0, steps: 0, born: now, idle_since: now }
    }

    /// Serves one connection to its end. Once `drain` turns true the worker asks to leave.
    ///
    /// # Errors
    /// The stream failed, or the proxy broke the protocol.
    pub async fn serve<S>(&mut self, io: S, mut drain: watch::Receiver<bool>) -> Result<Ending, SessionError>
    where
        S: AsyncRead + AsyncWrite,
    {
        let (reader, writer) = tokio::io::split(io);
        let mut session = Session {
            life: self,
            reader: FrameReader::new(reader),
            writer,
            wire: BytesMut::new(),
            running: Vec::new(),
            credit: 0,
            draining: None,
            released: false,
        };
        let age_ms = u64::try_from(session.life.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        session.put(&Frame::Hello(Hello { age_ms, ..session.life.profile.hello.clone() }))?;
        session.flush().await?;
        match session.reader.next().await? {
            Some(Frame::Welcome(_)) => {}
            Some(Frame::Goodbye(goodbye)) => return Ok(Ending::Goodbye(goodbye)),
            Some(_) => return Err(SessionError::Violation("no WELCOME")),
            None => return Ok(Ending::Closed),
        }
        session.run(&mut drain).await
    }
}

/// A connection after the handshake.
pub(super) struct Session<'a, S> {
    pub(super) life: &'a mut FakeWorker,
    reader: FrameReader<ReadHalf<S>>,
    writer: WriteHalf<S>,
    pub(super) wire: BytesMut,
    pub(super) running: Vec<Running>,
    /// Granted and not yet used.
    credit: u32,
    /// When draining must be over, once it has begun.
    draining: Option<Instant>,
    released: bool,
}

impl<S: AsyncRead + AsyncWrite> Session<'_, S> {
    async fn run(&mut self, drain: &mut watch::Receiver<bool>) -> Result<Ending, SessionError> {
        let mut heartbeat = interval(self.life.profile.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.grant()?;
        loop {
            self.flush().await?;
            if self.released {
                return self.leave(Ending::Drained).await;
            }
            let due = self.running.iter().filter_map(|batch| batch.due).min();
            tokio::select! {
                // The same each time.
                biased;
                frame = self.reader.next() => match frame? {
                    None => return Ok(Ending::Closed),
                    Some(Frame::Goodbye(goodbye)) => return Ok(Ending::Goodbye(goodbye)),
                    Some(frame) => self.take(frame)?,
                },
                () = at(due) => if let Some(ending) = self.step().await? { return Ok(ending) },
                () = told(drain), if self.draining.is_none() => {
                    self.draining = Some(Instant::now() + self.life.profile.drain_timeout);
                    self.put(&Frame::Draining)?;
                }
                () = at(self.draining) => {
                    self.give_back(|_| true)?;
                    return self.leave(Ending::DrainTimeout).await;
                }
                _ = heartbeat.tick() => {
                    let silence_ms = u64::try_from(self.life.profile.silence.as_millis()).unwrap_or(u64::MAX);
                    self.put(&Frame::Heartbeat(Heartbeat { steps: self.life.steps, silence_ms }))?;
                }
            }
        }
    }

    fn take(&mut self, frame: Frame) -> Result<(), SessionError> {
        match frame {
            Frame::Batch(id, batch) => self.begin(id, batch),
            Frame::Cancel(id, members) => self.with(id, |batch| batch.cancel(&members)),
            Frame::Yield(id) => self.give_back(|batch| batch.id == id),
            Frame::Release if self.draining.is_some() => {
                self.released = true;
                self.give_back(|_| true)
            }
            Frame::Release => Err(SessionError::Violation("RELEASE without DRAINING")),
            _ => Err(SessionError::Violation("a frame that only a worker sends")),
        }
    }

    fn begin(&mut self, id: BatchId, batch: Batch) -> Result<(), SessionError> {
        if batch.members.is_empty() {
            return Err(SessionError::Violation("an empty BATCH"));
        }
        if self.released {
            return Err(SessionError::Violation("BATCH after RELEASE"));
        }
        if self.running.iter().any(|running| running.id == id) {
            return Err(SessionError::Violation("a BATCH whose number is in use"));
        }
        self.credit = self.credit.checked_sub(1).ok_or(SessionError::Violation("BATCH without credit"))?;
        self.life.batches += 1;
        let now = Instant::now();
        let idle = if self.running.is_empty() { now - self.life.idle_since } else { Duration::ZERO };
        let idle_us = u64::try_from(idle.as_micros()).unwrap_or(u64::MAX);
        let (running, failed) = Running::begin(id, batch, &self.life.profile, self.life.batches, idle_us, now);
        self.running.push(running);
        failed.iter().try_for_each(|frame| self.put(frame))?;
        self.with(id, |_| Vec::new())
    }

    /// Steps every batch that is due.
    async fn step(&mut self) -> Result<Option<Ending>, SessionError> {
        let now = Instant::now();
        if self.life.profile.gate.as_ref().is_some_and(|gate| gate.exists()) {
            self.running.iter_mut().for_each(|batch| batch.due = batch.due.map(|due| due.max(now + GATE)));
            return Ok(None);
        }
        let due: Vec<_> =
            self.running.iter().filter(|batch| batch.due.is_some_and(|due| due <= now)).map(|batch| batch.id).collect();
        for id in due {
            if let Some(ending) = self.misbehave(id).await? {
                return Ok(Some(ending));
            }
            let twice = self.faulty(id, FaultKind::AnswerTwice);
            let cost = self.life.profile.step_cost;
            self.with(id, |batch| {
                let Some(due) = batch.due else { return Vec::new() };
                batch.due = Some(due + cost);
                let mut frames = batch.step(now);
                if twice {
                    let again: Vec<_> = frames.iter().filter(|f| matches!(f, Frame::Finished(..))).cloned().collect();
                    frames.extend(again);
                }
                frames
            })?;
            self.life.steps += 1;
        }
        Ok(None)
    }

    fn give_back(&mut self, which: impl Fn(&Running) -> bool) -> Result<(), SessionError> {
        let ids: Vec<_> = self.running.iter().filter(|batch| which(batch)).map(|batch| batch.id).collect();
        ids.into_iter().try_for_each(|id| self.with(id, Running::give_back))
    }

    /// Sends what `act` makes of a batch, and ends the batch where that leaves it without a member.
    fn with(&mut self, id: BatchId, act: impl FnOnce(&mut Running) -> Vec<Frame>) -> Result<(), SessionError> {
        let Some(index) = self.running.iter().position(|batch| batch.id == id) else { return Ok(()) };
        let frames = act(&mut self.running[index]);
        let done = self.running[index].done(Instant::now());
        frames.iter().chain(&done).try_for_each(|frame| self.put(frame))?;
        if done.is_some() {
            self.running.remove(index);
            self.life.idle_since = Instant::now();
            self.grant()?;
        }
        Ok(())
    }

    /// Grants credit for the slots that are free.
    fn grant(&mut self) -> Result<(), SessionError> {
        let slots = self.life.profile.hello.slots as usize;
        let free = slots.saturating_sub(self.running.len() + self.credit as usize);
        let grant = u32::try_from(free).unwrap_or(u32::MAX);
        if grant == 0 || self.released || !self.life.profile.grants {
            return Ok(());
        }
        self.credit += grant;
        self.put(&Frame::Credit { grant })
    }

    async fn leave(&mut self, ending: Ending) -> Result<Ending, SessionError> {
        self.put(&Frame::Goodbye(Goodbye { reason: GoodbyeReason::Drained, message: format!("{ending:?}") }))?;
        self.flush().await?;
        Ok(ending)
    }

    pub(super) fn put(&mut self, frame: &Frame) -> Result<(), SessionError> {
        Ok(codec::encode(frame, &mut self.wire)?)
    }

    pub(super) async fn flush(&mut self) -> io::Result<()> {
        self.writer.write_all_buf(&mut self.wire).await?;
        self.writer.flush().await
    }
}

/// Resolves at that instant. One that has passed costs no timer: tokio's tick in milliseconds.
async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) if instant <= Instant::now() => {}
        Some(instant) => sleep_until(instant).await,
        None => pending().await,
    }
}

async fn told(drain: &mut watch::Receiver<bool>) {
    if drain.wait_for(|drain| *drain).await.is_err() {
        pending::<()>().await;
    }
}
