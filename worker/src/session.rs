//! One connection to a proxy, from HELLO to GOODBYE.
//!
//! The session submits batches to the engine threads, turns their events into frames, makes text from tokens, and keeps the
//! credit account. It never waits for an engine, and it reads while it writes.

use std::sync::Arc;
use std::time::Duration;

use pillion_protocol::connection::{FrameReader, FrameWriter};
use pillion_protocol::frame::{Batch, Goodbye, GoodbyeReason, Hello};
use pillion_protocol::{BatchId, Frame, Peer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use crate::batch::{BatchSignals, Event};
use crate::check::Health;
use crate::credit::{self, Credit};
use crate::engine::{EnginePool, ReceivedBatch};
use crate::prepare::forget_what_cannot_be_continued;
use crate::shared::Shared;
use crate::signals::Control;

mod end;
mod frames;
mod handshake;
mod in_flight;
mod member_text;
#[cfg(test)]
pub(crate) mod tests;

pub use end::End;
use end::Trouble;
pub use handshake::HandshakeError;
use in_flight::InFlight;

/// Events that may be unread. An engine thread that sends more waits for the session.
const EVENTS: usize = 256;
/// Bytes that may be unsent. With more, the session takes no events until some bytes have left.
const UNSENT: usize = 16 * 1024 * 1024;
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The parts of the worker that a session needs.
#[derive(Debug)]
pub struct Worker {
    /// The worker's HELLO, without its age.
    pub hello: Hello,
    /// When the model was loaded.
    pub loaded: Instant,
    /// The state that `pillion-worker check` asks for.
    pub health: Health,
    /// The state that the threads share.
    pub shared: Arc<Shared>,
    /// The engine threads.
    pub engines: EnginePool,
    /// Places for batches, running or waiting, of all connections: two for each slot.
    pub places: Arc<Semaphore>,
    /// How long a drain may take.
    pub drain_timeout: Duration,
    /// Whether prompts may be logged.
    pub log_prompts: bool,
}

/// Serves one connection. When the connection ends, all members in flight are cancelled.
///
/// # Errors
/// The proxy did not answer HELLO with WELCOME.
pub async fn run<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    reader: R,
    writer: W,
    worker: &Worker,
    controls: &mut mpsc::Receiver<Control>,
) -> Result<End, HandshakeError> {
    let mut reader = FrameReader::of(Peer::Proxy, reader);
    let mut writer = FrameWriter::new(writer);
    let age_ms = u64::try_from(worker.loaded.elapsed().as_millis()).unwrap_or(u64::MAX);
    handshake::greet(&mut reader, &mut writer, &Hello { age_ms, ..worker.hello.clone() }).await?;
    tracing::info!("connected to the proxy");
    let _connected = worker.health.connected();
    let (events, inbox) = mpsc::channel(EVENTS);
    let mut session = Session::new(worker, writer, events);
    let end = match session.serve(&mut reader, inbox, controls).await {
        Ok(end) => end,
        Err(trouble) => {
            if let Some(reason) = trouble.goodbye() {
                session.goodbye(reason, &trouble.to_string()).await;
            }
            End::Lost { reason: trouble.to_string(), draining: session.draining.is_some() }
        }
    };
    Ok(end)
}

struct Session<'a, W> {
    worker: &'a Worker,
    writer: FrameWriter<W>,
    events: mpsc::Sender<Event>,
    credit: Credit,
    /// The places of credits that no batch has used.
    granted: Vec<OwnedSemaphorePermit>,
    in_flight: InFlight,
    /// When the last credit was sent; `None` after a batch has come.
    requested: Option<std::time::Instant>,
    /// When the drain times out; `None` while the worker does not drain.
    draining: Option<Instant>,
    /// Whether the proxy has released the worker from serving.
    released: bool,
    /// Since when unsent bytes have waited without any leaving.
    stalled: Option<Instant>,
}

impl<'a, W: AsyncWrite + Unpin> Session<'a, W> {
    fn new(worker: &'a Worker, writer: FrameWriter<W>, events: mpsc::Sender<Event>) -> Self {
        let slots = worker.hello.slots;
        Self {
            worker,
            writer,
            events,
            credit: Credit::new(slots),
            granted: Vec::new(),
            in_flight: InFlight::default(),
            requested: None,
            draining: None,
            released: false,
            stalled: None,
        }
    }

    async fn serve<R: AsyncRead + Unpin>(
        &mut self,
        reader: &mut FrameReader<R>,
        mut inbox: mpsc::Receiver<Event>,
        controls: &mut mpsc::Receiver<Control>,
    ) -> Result<End, Trouble> {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let places = &self.worker.places;
        loop {
            self.grant()?;
            if self.released && self.in_flight.is_empty() {
                self.goodbye(GoodbyeReason::Drained, "drained").await;
                return Ok(End::Drained);
            }
            let unsent = self.writer.pending();
            let drain_end = self.draining.unwrap_or_else(Instant::now);
            tokio::select! {
                frame = reader.next() => {
                    let mut frame = frame?;
                    loop {
                        match frame.ok_or(Trouble::Closed)? {
                            Frame::Goodbye(goodbye) => return Ok(End::Goodbye { goodbye, draining: self.draining.is_some() }),
                            other => self.on_frame(other)?,
                        }
                        match reader.buffered()? {
                            None => break,
                            next => frame = next,
                        }
                    }
                }
                Some(event) = inbox.recv(), if unsent < UNSENT => {
                    self.on_event(event)?;
                    while self.writer.pending() < UNSENT && let Ok(event) = inbox.try_recv() {
                        self.on_event(event)?;
                    }
                }
                sent = self.writer.flush(), if unsent > 0 => {
                    sent?;
                    self.stalled = None;
                }
                Ok(place) = Arc::clone(places).acquire_owned(), if self.wants_credit() => self.granted.push(place),
                _ = heartbeat.tick() => self.heartbeat()?,
                Some(control) = controls.recv() => match control {
                    Control::Drain => self.drain()?,
                    Control::Quit => return Ok(End::Quit(self.in_flight.unfinished())),
                    Control::Dump => self.dump(),
                },
                () = tokio::time::sleep_until(drain_end), if self.draining.is_some() => {
                    return Ok(End::DrainTimeout(self.in_flight.unfinished()));
                }
            }
        }
    }

    fn wants_credit(&self) -> bool {
        !self.released && self.credit.due() > 0
    }

    /// Sends the credits that are due and for which there are places.
    fn grant(&mut self) -> Result<(), Trouble> {
        let mut grant = u32::try_from(self.granted.len()).unwrap_or(0).saturating_sub(self.credit.unused());
        while self.wants_credit() && grant < self.credit.due() {
            let Ok(place) = Arc::clone(&self.worker.places).try_acquire_owned() else { break };
            self.granted.push(place);
            grant += 1;
        }
        if grant > 0 {
            self.credit.grant(grant);
            self.requested = Some(std::time::Instant::now());
            self.writer.put(&Frame::Credit { grant })?;
        }
        Ok(())
    }

    fn on_frame(&mut self, frame: Frame) -> Result<(), Trouble> {
        match frame {
            Frame::Batch(id, batch) => return self.on_batch(id, batch),
            Frame::Cancel(id, members) => self.in_flight.signal(id, |signals| {
                for &member in &members {
                    signals.cancel(member);
                }
            }),
            Frame::Yield(id) => self.in_flight.signal(id, BatchSignals::request_yield),
            Frame::Release if self.draining.is_some() => {
                self.released = true;
                self.in_flight.request_yield();
            }
            Frame::Release => return Err(Trouble::Protocol("RELEASE without DRAINING".to_owned())),
            other => return Err(Trouble::Protocol(format!("an unexpected frame: {}", name(&other)))),
        }
        Ok(())
    }

    fn on_batch(&mut self, id: BatchId, mut batch: Batch) -> Result<(), Trouble> {
        let protocol = |message: &str| Trouble::Protocol(format!("{id}: {message}"));
        if self.released {
            return Err(protocol("a batch came after RELEASE"));
        }
        self.credit.spend().map_err(|error| protocol(&error.to_string()))?;
        let place = self.granted.pop().ok_or_else(|| protocol("a batch came for which no place was reserved"))?;
        if batch.members.is_empty() || batch.members.len() > pillion_protocol::codec::MAX_BATCH_MEMBERS {
            return Err(protocol("a batch came with no members or with too many"));
        }
        if self.worker.log_prompts {
            for (member, text) in batch.members.iter().enumerate() {
                tracing::info!(batch = id.0, member, prompt = ?text.prompt, "prompt");
            }
        }
        for member in &mut batch.members {
            forget_what_cannot_be_continued(member, &batch.options);
            self.worker.shared.tokens.resolve_stops(member);
        }
        let signals = Arc::new(BatchSignals::new(batch.members.len()));
        if !self.in_flight.add(id, &batch.members, &signals) {
            return Err(protocol("a batch of this number is in flight already"));
        }
        let at = std::time::Instant::now();
        let requested =
            self.requested.take().filter(|&requested| credit::came_at_once(at.saturating_duration_since(requested)));
        let received = ReceivedBatch { id, batch, at, requested, signals, events: self.events.clone(), place };
        self.worker.engines.submit(received).map_err(|error| Trouble::Internal(error.to_string()))
    }

    fn on_event(&mut self, event: Event) -> Result<(), Trouble> {
        match event {
            Event::Progress(progress) => {
                if let Some(batch) = self.in_flight.get(BatchId(progress.batch)) {
                    let decoder = self.worker.shared.tokens.decoder();
                    let mut frames = frames::frames(progress, batch, decoder, self.worker.log_prompts);
                    frames.try_for_each(|frame| self.writer.put(&frame))?;
                }
            }
            Event::EndsSoon(id) => {
                if let Some(batch) = self.in_flight.get(id)
                    && !std::mem::replace(&mut batch.announced, true)
                {
                    self.credit.ends_soon();
                }
            }
            Event::Done(id, cost) => {
                if let Some(batch) = self.in_flight.remove(id) {
                    self.credit.done(batch.announced);
                    self.writer.put(&Frame::Done(id, cost))?;
                }
            }
        }
        Ok(())
    }

    fn heartbeat(&mut self) -> Result<(), Trouble> {
        if self.writer.pending() > 0 {
            let since = *self.stalled.get_or_insert_with(Instant::now);
            if since.elapsed() >= end::LONGEST_STALL {
                return Err(Trouble::Stalled);
            }
        }
        Ok(self.writer.put(&Frame::Heartbeat(self.worker.shared.liveness.heartbeat()))?)
    }

    fn drain(&mut self) -> Result<(), Trouble> {
        if self.draining.is_none() {
            tracing::info!(timeout = ?self.worker.drain_timeout, "told to stop: serving on until the proxy releases this worker or the timeout passes");
            self.draining = Some(Instant::now() + self.worker.drain_timeout);
            self.writer.put(&Frame::Draining)?;
        }
        Ok(())
    }

    /// Sends the last frame. The connection ends anyway, so sending may take a second and no more.
    async fn goodbye(&mut self, reason: GoodbyeReason, message: &str) {
        let goodbye = Goodbye { reason, message: message.to_owned() };
        if self.writer.put(&Frame::Goodbye(goodbye)).is_ok() {
            let _ = tokio::time::timeout(Duration::from_secs(1), self.writer.flush()).await;
        }
    }

    fn dump(&self) {
        tracing::info!(
            credit = ?self.credit,
            draining = self.draining.is_some(),
            unsent_bytes = self.writer.pending(),
            places_free = self.worker.places.available_permits(),
            "dump: connected to a proxy"
        );
        self.in_flight.dump();
    }
}

fn name(frame: &Frame) -> String {
    let debug = format!("{frame:?}");
    debug.split(['(', ' ', '{']).next().unwrap_or_default().to_uppercase()
}
