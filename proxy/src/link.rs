//! One worker's connection: the handshake, batches out, what members produce in.
//!
//! A link never waits for a client: a terminal event has its place reserved, and what members produce is kept with the
//! job. It never stops reading to write: both go on side by side, so that two full sockets cannot wedge each other.

pub mod inflight;
pub mod progress;

use std::sync::Arc;
use std::time::Duration;

use pillion_protocol::connection::{FrameReader, FrameWriter};
use pillion_protocol::frame::{
    Batch, FinishReason, Frame, Goodbye, GoodbyeReason, Hello, Member, MemberFailed, MemberFinished, Prompt, Welcome,
};
use pillion_protocol::{BatchId, EncodeError, MemberIndex, ReadError, VERSIONS, negotiate};
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{debug, info, warn};

use self::inflight::{Departure, InFlight, Violation};
use self::progress::Progress;
use crate::batcher::workers::WorkerId;
use crate::batcher::{FromLink, LinkPort, ToLink};
use crate::job::{Completion, Failure, Job};
use crate::metrics::Metrics;

/// How long a worker may take for its HELLO; its model is loaded before it dials.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long after a member's deadline the worker may still answer for itself.
const GRACE: Duration = Duration::from_millis(500);
/// How often members are checked against their deadline.
const TICK: Duration = Duration::from_millis(100);
/// Bytes waiting to be written at which no further message is taken from the batcher.
const HIGH_WATER: usize = 1024 * 1024;
/// Messages that may wait for a link: batches, bounded by credit, and cancellations.
const INBOX: usize = 4096;

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("no HELLO in time")]
    NoHello,
    #[error("the worker's first frame is not HELLO")]
    NotHello,
    #[error("the worker speaks protocol versions {theirs:?}, this proxy {VERSIONS:?}")]
    Version { theirs: Vec<u8> },
    #[error("the worker's HELLO cannot be used: {0}")]
    Hello(&'static str),
    #[error("the worker broke the protocol: {0}")]
    Violation(#[from] Violation),
    #[error("the worker sent a frame that only a proxy sends")]
    Direction,
    #[error("the worker's engine has made no step for {0:?}, which is longer than it said it might take")]
    Stuck(Duration),
    #[error("the worker granted more credit than anyone could use")]
    Credit,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the connection failed")]
    Write(#[from] std::io::Error),
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl LinkError {
    /// Whether the worker is to blame, so that the counter of protocol errors rises and the worker is told.
    fn is_violation(&self) -> bool {
        !matches!(
            self,
            Self::Read(ReadError::Io(_)) | Self::Write(_) | Self::Encode(_) | Self::NoHello | Self::Stuck(_)
        )
    }

    fn reason(&self) -> GoodbyeReason {
        match self {
            Self::Version { .. } => GoodbyeReason::Version,
            Self::Encode(_) | Self::Stuck(_) => GoodbyeReason::Internal,
            _ => GoodbyeReason::Protocol,
        }
    }
}

/// How a link ended that did not fail.
enum End {
    /// One of the two said so.
    Goodbye,
    /// The worker closed it without a word.
    Closed,
}

struct Link<I> {
    worker: WorkerId,
    reader: FrameReader<ReadHalf<I>>,
    writer: FrameWriter<WriteHalf<I>>,
    inbox: mpsc::Receiver<ToLink>,
    port: LinkPort,
    metrics: Arc<Metrics>,
    inflight: InFlight,
    progress: Progress,
    fingerprint: Arc<str>,
}

/// Serves one worker's connection to its end, and then gives what was in flight back to the batcher.
pub async fn serve<I: AsyncRead + AsyncWrite>(io: I, max_batch_size: usize, port: LinkPort, metrics: Arc<Metrics>) {
    let (reader, writer) = tokio::io::split(io);
    let (reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
    let worker = port.new_worker();
    let (outbox, inbox) = mpsc::channel(INBOX);
    let mut reader = reader;
    let hello = match shake_hands(&mut reader, &mut writer, max_batch_size).await {
        Ok(hello) => hello,
        Err(error) => {
            part(worker, &error, &mut writer, &metrics).await;
            return;
        }
    };
    info!(
        worker = worker.0,
        model = %hello.model,
        fingerprint = %hello.fingerprint,
        software = %hello.software,
        pid = hello.pid,
        slots = hello.slots,
        "a worker has connected"
    );
    let fingerprint = Arc::from(hello.fingerprint.as_str());
    port.tell(worker, FromLink::Up(hello, outbox)).await;
    let inflight = InFlight::default();
    let progress = Progress::new(Instant::now());
    let mut link = Link { worker, reader, writer, inbox, port, metrics, inflight, progress, fingerprint };
    match link.run().await {
        Ok(End::Goodbye) => {}
        Ok(End::Closed) => link.metrics.workers_lost_closed.increment(1),
        Err(error) => {
            match error {
                LinkError::Stuck(_) => &link.metrics.workers_lost_stuck,
                _ if error.is_violation() => &link.metrics.workers_lost_protocol,
                _ => &link.metrics.workers_lost_closed,
            }
            .increment(1);
            // Whoever waits for its members should not wait for a worker that does not listen.
            let jobs = link.take_all();
            link.port.tell(worker, FromLink::Down(jobs)).await;
            part(worker, &error, &mut link.writer, &link.metrics).await;
            return;
        }
    }
    let jobs = link.take_all();
    link.port.tell(worker, FromLink::Down(jobs)).await;
}

async fn shake_hands<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    reader: &mut FrameReader<R>,
    writer: &mut FrameWriter<W>,
    max_batch_size: usize,
) -> Result<Hello, LinkError> {
    let first = timeout(HANDSHAKE, reader.next()).await.map_err(|_| LinkError::NoHello)??;
    let Some(Frame::Hello(hello)) = first else { return Err(LinkError::NotHello) };
    let Some(version) = negotiate(&hello.versions) else {
        return Err(LinkError::Version { theirs: hello.versions });
    };
    if hello.model.is_empty() || hello.model.len() > 256 {
        return Err(LinkError::Hello("its model's name is empty or longer than 256 bytes"));
    }
    if hello.positions == 0 || hello.vocabulary == 0 || hello.max_batch_tokens == 0 || hello.slots == 0 {
        return Err(LinkError::Hello("positions, vocabulary, max_batch_tokens and slots must be at least 1"));
    }
    let max_batch_size = u32::try_from(max_batch_size).unwrap_or(u32::MAX);
    writer.put(&Frame::Welcome(Welcome { version, max_batch_size }))?;
    writer.flush().await?;
    Ok(hello)
}

/// Logs why the connection ends and tells the worker, as far as it still listens.
async fn part<W: AsyncWrite + Unpin>(
    worker: WorkerId,
    error: &LinkError,
    writer: &mut FrameWriter<W>,
    metrics: &Metrics,
) {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    warn!(worker = worker.0, %error, %cause, "the worker's connection has failed");
    if error.is_violation() {
        metrics.protocol_errors.increment(1);
    }
    let goodbye = Goodbye { reason: error.reason(), message: error.to_string() };
    if writer.put(&Frame::Goodbye(goodbye)).is_ok() {
        let _ = timeout(Duration::from_secs(1), writer.flush()).await;
    }
}

impl<I: AsyncRead + AsyncWrite> Link<I> {
    /// Until the worker leaves or fails, or the batcher ends.
    async fn run(&mut self) -> Result<End, LinkError> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let unwritten = self.writer.pending();
            tokio::select! {
                // In this order nobody starves: what comes first is bounded by time, by the socket, and by credit. And a
                // simulation goes the same way each time.
                biased;
                _ = tick.tick(), if !self.inflight.is_empty() => self.check()?,
                flushed = self.writer.flush(), if unwritten > 0 => flushed?,
                message = self.inbox.recv(), if unwritten < HIGH_WATER => {
                    let Some(message) = message else { return self.say_goodbye().await.map(|()| End::Goodbye) };
                    self.pass_on(message)?;
                }
                frame = self.reader.next() => {
                    let mut next = frame?;
                    if next.is_none() {
                        return Ok(End::Closed);
                    }
                    while let Some(frame) = next {
                        if let Frame::Goodbye(goodbye) = &frame {
                            info!(worker = self.worker.0, reason = ?goodbye.reason, "the worker leaves");
                            return Ok(End::Goodbye);
                        }
                        self.hear(frame).await?;
                        next = self.reader.buffered()?;
                    }
                }
            }
        }
    }

    /// What time alone brings: members' deadlines, and a worker that makes no progress.
    fn check(&mut self) -> Result<(), LinkError> {
        self.expire()?;
        self.progress.stuck(Instant::now()).map_or(Ok(()), |silent| Err(LinkError::Stuck(silent)))
    }

    async fn say_goodbye(&mut self) -> Result<(), LinkError> {
        let message = "the proxy has drained and exits".into();
        self.writer.put(&Frame::Goodbye(Goodbye { reason: GoodbyeReason::Drained, message }))?;
        Ok(self.writer.flush().await?)
    }

    fn pass_on(&mut self, message: ToLink) -> Result<(), LinkError> {
        match message {
            ToLink::Batch(jobs, departure) => self.send_batch(jobs, departure)?,
            ToLink::Cancel(range) => {
                for (batch, member, _job) in self.inflight.cancel(&range) {
                    self.metrics.cancelled_running.increment(1);
                    self.metrics.running.decrement(1.0);
                    self.writer.put(&Frame::Cancel(batch, vec![member]))?;
                }
            }
            // It may have ended meanwhile.
            ToLink::Yield(batch) if !self.inflight.holds(batch) => {}
            ToLink::Yield(batch) => self.writer.put(&Frame::Yield(batch))?,
            ToLink::Release => self.writer.put(&Frame::Release)?,
            ToLink::Dump => {
                for job in self.inflight.wanted() {
                    let (age, attempts, produced) = (job.admitted.elapsed(), job.attempts, job.progress.produced.len());
                    warn!(worker = self.worker.0, job = job.id.0, ?age, attempts, produced, "dump: in flight");
                }
            }
        }
        Ok(())
    }

    fn send_batch(&mut self, mut jobs: Vec<Box<Job>>, departure: Departure) -> Result<(), LinkError> {
        let id = departure.batch;
        let now = Instant::now();
        let Some(first) = jobs.first() else { return Ok(()) };
        let options = first.ask.class.options();
        let members = jobs.iter_mut().map(|job| member(job, now)).collect();
        let frame = Frame::Batch(id, Batch { options, members });
        debug!(worker = self.worker.0, batch = id.0, members = jobs.len(), "a batch leaves");
        let put = self.writer.put(&frame);
        if let Frame::Batch(_, batch) = frame {
            jobs.iter_mut().zip(batch.members).for_each(|(job, member)| job.ask.prompt = member.prompt);
        }
        if let Err(error) = put {
            // The batcher keeps batches below the limit; should one be too large all the same, its members hear of it.
            for job in jobs {
                job.reply.fail(Failure::Unsendable(error.to_string()));
            }
            return Err(error.into());
        }
        self.metrics.running.increment(crate::metrics::count(jobs.len()));
        if self.inflight.is_empty() {
            self.progress.begins(now);
        }
        self.inflight.insert(jobs, departure, now);
        Ok(())
    }

    async fn hear(&mut self, frame: Frame) -> Result<(), LinkError> {
        if matches!(frame, Frame::Tokens(..) | Frame::Finished(..) | Frame::Failed(..) | Frame::Yielded(..)) {
            self.progress.got_on(Instant::now());
        }
        match frame {
            Frame::Credit { grant: 0 } => return Err(LinkError::Credit),
            Frame::Credit { grant } if grant as usize > INBOX / 4 => return Err(LinkError::Credit),
            Frame::Credit { grant } => self.port.tell(self.worker, FromLink::Credit(grant)).await,
            Frame::Tokens(batch, members) => {
                let now = Instant::now();
                for tokens in members {
                    self.inflight.tokens(batch, tokens, &self.fingerprint, now)?;
                }
            }
            Frame::Finished(batch, members) => {
                self.port.tell(self.worker, FromLink::Ended(batch, members.len())).await;
                for finished in members {
                    if let Some(job) = self.inflight.finish(batch, &finished)? {
                        self.metrics.running.decrement(1.0);
                        self.finish(job, &finished);
                    }
                }
            }
            Frame::Failed(batch, members) => {
                self.port.tell(self.worker, FromLink::Ended(batch, members.len())).await;
                for MemberFailed { member, code, message } in members {
                    if let Some(job) = self.end(batch, member)? {
                        job.reply.fail(Failure::Worker { code, message });
                    }
                }
            }
            Frame::Yielded(batch, members) => {
                let given_back = members.len();
                let mut jobs = Vec::new();
                for member in members {
                    jobs.extend(self.end(batch, member)?);
                }
                self.port.tell(self.worker, FromLink::Yielded(batch, given_back, jobs)).await;
            }
            Frame::Done(batch, cost) => {
                let arrival = self.inflight.done(batch, cost)?;
                self.metrics.batch_duration.record(arrival.since.elapsed().as_secs_f64());
                self.metrics.forced_steps.increment(cost.forced_steps);
                if cost.cohorts > 0 {
                    self.metrics.engine_busy.record(Duration::from_micros(cost.engine_us).as_secs_f64());
                    self.metrics.engine_idle.record(Duration::from_micros(cost.idle_us).as_secs_f64());
                }
                self.port.tell(self.worker, FromLink::Done(arrival)).await;
            }
            Frame::Draining => self.port.tell(self.worker, FromLink::Draining).await,
            Frame::Heartbeat(heartbeat) => self.progress.heard(&heartbeat, Instant::now()),
            Frame::Goodbye(_) => {}
            Frame::Hello(_)
            | Frame::Welcome(_)
            | Frame::Batch(..)
            | Frame::Cancel(..)
            | Frame::Yield(_)
            | Frame::Release => return Err(LinkError::Direction),
        }
        Ok(())
    }

    fn end(&mut self, batch: BatchId, member: MemberIndex) -> Result<Option<Box<Job>>, Violation> {
        let job = self.inflight.end(batch, member)?;
        if job.is_some() {
            self.metrics.running.decrement(1.0);
        }
        Ok(job)
    }

    fn finish(&self, job: Box<Job>, finished: &MemberFinished) {
        self.metrics.prompt_tokens.increment(u64::from(finished.prompt_tokens));
        self.metrics.generated_tokens.increment(u64::from(finished.completion_tokens));
        job.reply.finish(Completion {
            text: job.progress.text,
            reason: finished.reason,
            prompt_tokens: finished.prompt_tokens,
            completion_tokens: finished.completion_tokens,
            first_token_at: job.progress.first_token_at,
            boarding: job.boarding,
        });
    }

    /// Ends the members whose deadline has passed and for which the worker has not answered within the grace: with what
    /// there is, or with a failure where nothing was produced. The worker is told to stop them.
    fn expire(&mut self) -> Result<(), LinkError> {
        let Some(instant) = Instant::now().checked_sub(GRACE) else { return Ok(()) };
        for (batch, member, job) in self.inflight.expire(instant) {
            self.metrics.running.decrement(1.0);
            self.writer.put(&Frame::Cancel(batch, vec![member]))?;
            let Job { progress, reply, boarding, .. } = *job;
            if progress.produced.is_empty() {
                reply.fail(Failure::Deadline);
            } else {
                reply.finish(Completion {
                    text: progress.text,
                    reason: FinishReason::Deadline,
                    // The worker, which counts them, has not answered.
                    prompt_tokens: 0,
                    completion_tokens: u32::try_from(progress.produced.len()).unwrap_or(u32::MAX),
                    first_token_at: progress.first_token_at,
                    boarding,
                });
            }
        }
        Ok(())
    }

    /// All that clients wait for, with its batches where those were sent.
    fn take_all(&mut self) -> Vec<(Option<BatchId>, Box<Job>)> {
        let sent = self.inflight.drain();
        self.metrics.running.decrement(crate::metrics::count(sent.len()));
        let mut jobs: Vec<_> = sent.into_iter().map(|(batch, job)| (Some(batch), job)).collect();
        // What the batcher sent and no worker ever saw goes back with the rest.
        self.inbox.close();
        while let Ok(message) = self.inbox.try_recv() {
            if let ToLink::Batch(batch, _) = message {
                jobs.extend(batch.into_iter().map(|mut job| {
                    job.attempts = job.attempts.saturating_sub(1);
                    (None, job)
                }));
            }
        }
        info!(worker = self.worker.0, in_flight = jobs.len(), "the worker is gone");
        jobs
    }
}

/// A job as the worker sees it. The prompt is lent, so that no text is copied: it must go back.
fn member(job: &mut Job, now: Instant) -> Member {
    let left = job.deadline.saturating_duration_since(now).as_millis();
    let origin = job.origin.as_deref().cloned().unwrap_or_default();
    Member {
        prompt: std::mem::replace(&mut job.ask.prompt, Prompt::Ids(Vec::new())),
        max_new_tokens: job.ask.max_new_tokens,
        fit: job.ask.fit,
        min_new_tokens: job.ask.class.min_new_tokens(),
        stop: job.ask.stop.strings.clone(),
        stop_token_ids: job.ask.stop.token_ids.clone(),
        chat_template_kwargs: job.ask.chat_template_kwargs.map.clone(),
        deadline_ms: u64::try_from(left).unwrap_or(u64::MAX),
        stream: job.reply.is_stream(),
        produced: job.progress.produced.clone(),
        sent: job.progress.sent as u64,
        request_id: origin.request_id,
        traceparent: origin.traceparent,
    }
}
