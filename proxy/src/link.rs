//! Serves one worker's connection: it shakes hands, sends batches, and passes on what their members produce.
//!
//! A link never waits for a client: what members produce is kept with the job, or grows in the feed until the client
//! takes it. A link never stops reading in order to write, so that two full sockets cannot block each other.

mod error;
mod handshake;
pub mod inflight;
pub mod progress;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use pillion_protocol::connection::{FrameReader, FrameWriter};
use pillion_protocol::frame::{Batch, FinishReason, Frame, Goodbye, GoodbyeReason, Member, MemberFailed, Prompt};
use pillion_protocol::{BatchId, MemberIndex, Peer};
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{debug, error, info, warn};

use self::error::LinkError;
use self::handshake::shake_hands;
use self::inflight::InFlight;
use self::progress::Progress;
use crate::domain::{Failure, Job};
use crate::metrics::Metrics;
use crate::numbers::as_u32;
use crate::scheduler::batch::DispatchedBatch;
use crate::scheduler::{Handle, LinkCommand, LinkEvent, WorkerId};

/// How long after a member's deadline the worker may still end the member itself.
const GRACE: Duration = Duration::from_millis(500);
/// How often the members' deadlines and the worker's progress are checked.
const TICK: Duration = Duration::from_millis(100);
/// While this many bytes wait to be written, no further command is taken from the scheduler.
const HIGH_WATER: usize = 1024 * 1024;
/// The most credit that a worker may have. It bounds what waits for the link, and so the link's inbox.
const MOST_CREDIT: u32 = 1024;

/// How a connection ended that did not fail.
enum LinkEnd {
    /// The worker or the proxy sent GOODBYE.
    Goodbye,
    /// The worker closed the connection without GOODBYE.
    Closed,
    /// The proxy serves no more. The worker is to hear GOODBYE.
    Shutdown,
}

struct Link<I> {
    worker: WorkerId,
    reader: FrameReader<ReadHalf<I>>,
    writer: FrameWriter<WriteHalf<I>>,
    inbox: mpsc::UnboundedReceiver<LinkCommand>,
    /// The credit that the worker has granted and that no batch has spent.
    credit: u32,
    /// The members that the worker is to be told to stop.
    cancelled: BTreeMap<BatchId, Vec<MemberIndex>>,
    is_draining: bool,
    handle: Handle,
    metrics: Arc<Metrics>,
    inflight: InFlight,
    progress: Progress,
    fingerprint: Arc<str>,
}

/// What a link needs to serve a worker's connection. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Links {
    /// The most members of a batch, which WELCOME announces.
    pub max_batch_size: usize,
    /// The scheduler's handle for links.
    pub handle: Handle,
    /// The proxy's metrics.
    pub metrics: Arc<Metrics>,
}

/// Serves one worker's connection to its end. Then the jobs in flight go back to the scheduler.
pub async fn serve<I: AsyncRead + AsyncWrite>(io: I, Links { max_batch_size, handle, metrics }: Links) {
    let (reader, writer) = tokio::io::split(io);
    let (mut reader, mut writer) = (FrameReader::of(Peer::Worker, reader), FrameWriter::new(writer));
    let worker = handle.new_worker();
    let (outbox, inbox) = mpsc::unbounded_channel();
    let hello = match shake_hands(&mut reader, &mut writer, max_batch_size).await {
        Ok(hello) => hello,
        // Another proxy asks in this way whether one is there.
        Err(error @ LinkError::Silent) => return debug!(worker = worker.0, %error),
        Err(error) => {
            report_failure(worker, &error, &mut writer, &metrics).await;
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
    handle.on_link(worker, LinkEvent::Up(hello, outbox)).await;
    let inflight = InFlight::new(metrics.running.clone());
    let progress = Progress::new(Instant::now());
    let (credit, cancelled, is_draining) = (0, BTreeMap::new(), false);
    let mut link = Link {
        worker,
        reader,
        writer,
        inbox,
        credit,
        cancelled,
        is_draining,
        handle,
        metrics,
        inflight,
        progress,
        fingerprint,
    };
    // A bug in this task must not cost the jobs. What they have produced is plain data, which no panic leaves half changed.
    let ended = AssertUnwindSafe(link.run()).catch_unwind().await.unwrap_or(Err(LinkError::Panicked));
    let lost = match &ended {
        Ok(LinkEnd::Goodbye | LinkEnd::Shutdown) => None,
        Err(LinkError::Stuck(_)) => Some(&link.metrics.workers_lost_stuck),
        Err(LinkError::Panicked) => Some(&link.metrics.workers_lost_internal),
        Err(error) if error.is_violation() => Some(&link.metrics.workers_lost_protocol),
        Ok(LinkEnd::Closed) | Err(_) => Some(&link.metrics.workers_lost_closed),
    };
    if let Some(lost) = lost {
        lost.increment(1);
    }
    // The jobs go back first, so that they do not wait for a worker that reads nothing.
    let jobs = link.take_all();
    link.handle.on_link(worker, LinkEvent::Down(jobs)).await;
    match ended {
        Err(error) => report_failure(worker, &error, &mut link.writer, &link.metrics).await,
        Ok(LinkEnd::Shutdown) => {
            let message = "the proxy has drained and exits".into();
            say_goodbye(&mut link.writer, Goodbye { reason: GoodbyeReason::Drained, message }).await;
        }
        Ok(LinkEnd::Goodbye | LinkEnd::Closed) => {}
    }
}

/// Sends the last frame, if the worker reads it soon.
async fn say_goodbye<W: AsyncWrite + Unpin>(writer: &mut FrameWriter<W>, goodbye: Goodbye) {
    if writer.put(&Frame::Goodbye(goodbye)).is_ok() {
        let _ = timeout(Duration::from_secs(1), writer.flush()).await;
    }
}

/// Logs why the connection has failed, and sends the reason to the worker if it still reads.
async fn report_failure<W: AsyncWrite + Unpin>(
    worker: WorkerId,
    error: &LinkError,
    writer: &mut FrameWriter<W>,
    metrics: &Metrics,
) {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    let message = format!("{error}{cause}");
    warn!(worker = worker.0, error = message, "the worker's connection has failed");
    if error.is_violation() {
        metrics.protocol_errors.increment(1);
    }
    if matches!(error, LinkError::Panicked) {
        return;
    }
    say_goodbye(writer, Goodbye { reason: error.reason(), message }).await;
}

impl<I: AsyncRead + AsyncWrite> Link<I> {
    /// Runs until the worker leaves or fails, or the scheduler ends.
    async fn run(&mut self) -> Result<LinkEnd, LinkError> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let unwritten = self.writer.pending();
            tokio::select! {
                // In this order no branch starves: the first three are bounded by time, by the socket, and by credit.
                // The fixed order also makes simulations repeatable.
                biased;
                _ = tick.tick(), if !self.inflight.is_empty() => {
                    // While the worker reads nothing, no command is taken below, and the inbox's end would not be seen.
                    if self.inbox.is_closed() && self.inbox.is_empty() {
                        return Ok(LinkEnd::Shutdown);
                    }
                    self.check()?;
                }
                flushed = self.writer.flush(), if unwritten > 0 => flushed?,
                command = self.inbox.recv(), if unwritten < HIGH_WATER => {
                    let Some(command) = command else { return Ok(LinkEnd::Shutdown) };
                    self.on_command(command).await?;
                    // Whatever waits is handled together, so that thousands of cancellations cost few frames and writes.
                    while self.writer.pending() < HIGH_WATER
                        && let Ok(command) = self.inbox.try_recv()
                    {
                        self.on_command(command).await?;
                    }
                    for (batch, members) in std::mem::take(&mut self.cancelled) {
                        self.writer.put(&Frame::Cancel(batch, members))?;
                    }
                }
                frame = self.reader.next() => {
                    let mut next = frame?;
                    if next.is_none() {
                        return Ok(LinkEnd::Closed);
                    }
                    while let Some(frame) = next {
                        if let Frame::Goodbye(goodbye) = &frame {
                            info!(worker = self.worker.0, reason = ?goodbye.reason, "the worker leaves");
                            return Ok(LinkEnd::Goodbye);
                        }
                        self.on_frame(frame).await?;
                        next = self.reader.buffered()?;
                    }
                }
            }
        }
    }

    /// Checks what depends on time alone: the members' deadlines and the worker's progress.
    fn check(&mut self) -> Result<(), LinkError> {
        self.expire()?;
        self.progress.stuck(Instant::now()).map_or(Ok(()), |silent| Err(LinkError::Stuck(silent)))
    }

    async fn on_command(&mut self, command: LinkCommand) -> Result<(), LinkError> {
        match command {
            LinkCommand::Batch(jobs, dispatched) => {
                let batch = dispatched.batch;
                if !self.send_batch(jobs, dispatched) {
                    self.handle.on_link(self.worker, LinkEvent::Unsent(batch)).await;
                }
            }
            LinkCommand::Cancel(range) => {
                for (batch, member, _job) in self.inflight.cancel(&range) {
                    self.metrics.cancelled_running.increment(1);
                    self.cancelled.entry(batch).or_default().push(member);
                }
            }
            // The batch may have been completed meanwhile.
            LinkCommand::Yield(batch) if !self.inflight.holds(batch) => {}
            LinkCommand::Yield(batch) => self.writer.put(&Frame::Yield(batch))?,
            LinkCommand::Release => self.writer.put(&Frame::Release)?,
            LinkCommand::Dump => {
                for job in self.inflight.wanted() {
                    let (age, attempts, produced) = (job.admitted.elapsed(), job.attempts, job.progress.produced.len());
                    warn!(worker = self.worker.0, job = job.id.0, ?age, attempts, produced, "dump: in flight");
                }
            }
        }
        Ok(())
    }

    /// Sends a batch, and returns whether it could be sent. If not, its members have failed.
    fn send_batch(&mut self, mut jobs: Vec<Box<Job>>, dispatched: DispatchedBatch) -> bool {
        let id = dispatched.batch;
        let now = Instant::now();
        let Some(first) = jobs.first() else { return false };
        let options = first.request.key.options;
        let members = jobs.iter_mut().map(|job| member(job, now)).collect();
        let frame = Frame::Batch(id, Batch { options, members });
        debug!(worker = self.worker.0, batch = id.0, members = jobs.len(), "a batch leaves");
        let put = self.writer.put(&frame);
        if let Frame::Batch(_, batch) = frame {
            jobs.iter_mut().zip(batch.members).for_each(|(job, member)| job.request.prompt = member.prompt);
        }
        if let Err(error) = put {
            // The scheduler keeps batches below the limit. If one is too large nevertheless, its members fail.
            error!(worker = self.worker.0, batch = id.0, %error, "a batch cannot be sent, which is a bug");
            for job in jobs {
                job.reply.fail(Failure::Unsendable(error.to_string()));
            }
            return false;
        }
        self.credit = self.credit.saturating_sub(1);
        if self.inflight.is_empty() {
            self.progress.starts_work(now);
        }
        self.inflight.insert(jobs, dispatched, now);
        true
    }

    async fn on_frame(&mut self, frame: Frame) -> Result<(), LinkError> {
        if matches!(frame, Frame::Tokens(..) | Frame::Finished(..) | Frame::Failed(..) | Frame::Yielded(..)) {
            self.progress.on_output(Instant::now());
        }
        match frame {
            Frame::Credit { grant } => {
                self.credit = self.credit.saturating_add(grant);
                if grant == 0 || self.credit > MOST_CREDIT {
                    return Err(LinkError::Credit);
                }
                self.handle.on_link(self.worker, LinkEvent::Credit(grant)).await;
            }
            Frame::Tokens(batch, members) => {
                let now = Instant::now();
                for tokens in members {
                    self.inflight.tokens(batch, tokens, &self.fingerprint, now)?;
                }
            }
            Frame::Finished(batch, members) => {
                let (ended, mut answered) = (members.len(), 0);
                for finished in members {
                    if let Some(job) = self.inflight.finish(batch, &finished)? {
                        self.metrics.prompt_tokens.increment(u64::from(finished.prompt_tokens));
                        self.metrics.generated_tokens.increment(u64::from(finished.completion_tokens));
                        job.finish(finished.reason, finished.prompt_tokens, finished.completion_tokens);
                        answered += 1;
                    }
                }
                self.handle.on_link(self.worker, LinkEvent::Ended { batch, members: ended, answered }).await;
            }
            Frame::Failed(batch, members) => {
                let (ended, mut answered) = (members.len(), 0);
                for MemberFailed { member, code, message } in members {
                    if let Some(job) = self.inflight.end(batch, member)? {
                        job.reply.fail(Failure::Worker { code, message });
                        answered += 1;
                    }
                }
                self.handle.on_link(self.worker, LinkEvent::Ended { batch, members: ended, answered }).await;
            }
            Frame::Yielded(batch, members) => {
                let given_back = members.len();
                let mut jobs = Vec::new();
                for member in members {
                    jobs.extend(self.inflight.end(batch, member)?);
                }
                self.handle.on_link(self.worker, LinkEvent::Yielded(batch, given_back, jobs)).await;
            }
            Frame::Done(batch, cost) => {
                let completed = self.inflight.done(batch, cost)?;
                self.metrics.batch_duration.record(completed.since.elapsed().as_secs_f64());
                self.metrics.forced_steps.increment(cost.forced_steps);
                if cost.cohorts > 0 {
                    self.metrics.engine_busy.record(Duration::from_micros(cost.engine_us).as_secs_f64());
                    self.metrics.engine_idle.record(Duration::from_micros(cost.idle_us).as_secs_f64());
                }
                self.handle.on_link(self.worker, LinkEvent::Done(completed)).await;
            }
            Frame::Draining if self.is_draining => return Err(LinkError::Again("DRAINING")),
            Frame::Draining => {
                self.is_draining = true;
                self.handle.on_link(self.worker, LinkEvent::Draining).await;
            }
            Frame::Heartbeat(heartbeat) => self.progress.on_heartbeat(&heartbeat, Instant::now()),
            Frame::Hello(_) => return Err(LinkError::Again("HELLO")),
            // The caller has handled the first, and the reader refuses the others by their headers.
            Frame::Goodbye(_)
            | Frame::Welcome(_)
            | Frame::Batch(..)
            | Frame::Cancel(..)
            | Frame::Yield(_)
            | Frame::Release => {}
        }
        Ok(())
    }

    /// Ends the members that the worker has not ended within [`GRACE`] after their deadline: with what they have
    /// produced, or with a failure if that is nothing. The worker is told to stop them.
    fn expire(&mut self) -> Result<(), LinkError> {
        let Some(instant) = Instant::now().checked_sub(GRACE) else { return Ok(()) };
        for (batch, member, job) in self.inflight.expire(instant) {
            self.writer.put(&Frame::Cancel(batch, vec![member]))?;
            // The number of prompt tokens is not known, since the worker counts them.
            match job.progress.produced.len() {
                0 => job.reply.fail(Failure::Deadline),
                produced => job.finish(FinishReason::Deadline, 0, as_u32(produced)),
            }
        }
        Ok(())
    }

    /// Takes all jobs that clients wait for, each with its batch if that was sent.
    fn take_all(&mut self) -> Vec<(Option<BatchId>, Box<Job>)> {
        let sent = self.inflight.drain();
        let mut jobs: Vec<_> = sent.into_iter().map(|(batch, job)| (Some(batch), job)).collect();
        // Batches that were never sent to the worker go back too. They do not count as attempts.
        self.inbox.close();
        while let Ok(command) = self.inbox.try_recv() {
            if let LinkCommand::Batch(batch, _) = command {
                jobs.extend(batch.into_iter().map(|mut job| {
                    job.attempts = job.attempts.saturating_sub(1);
                    (None, job)
                }));
            }
        }
        info!(worker = self.worker.0, in_flight = jobs.len(), "a worker has disconnected");
        jobs
    }
}

/// A job as a member of a batch. The job's prompt is moved and not copied, so the caller must move it back.
fn member(job: &mut Job, now: Instant) -> Member {
    let left = job.deadline.saturating_duration_since(now).as_millis();
    let origin = job.origin.as_deref().cloned().unwrap_or_default();
    Member {
        prompt: std::mem::replace(&mut job.request.prompt, Prompt::Ids(Vec::new())),
        max_new_tokens: job.request.max_new_tokens,
        fit: job.request.fit,
        min_new_tokens: job.request.key.min_new_tokens,
        stop: job.request.stop.strings.clone(),
        stop_token_ids: job.request.stop.token_ids.clone(),
        chat_template_kwargs: job.request.chat_template_kwargs.map.clone(),
        deadline_ms: u64::try_from(left).unwrap_or(u64::MAX),
        stream: job.reply.is_stream(),
        produced: job.progress.produced.clone(),
        sent: job.progress.sent as u64,
        request_id: origin.request_id,
        traceparent: origin.traceparent,
    }
}
