//! A relay between workers and the proxy that records every frame, so that tests see which requests rode together and
//! which token ids came of them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use pillion_protocol::frame::{Batch, BatchCost, FinishReason, Member};
use pillion_protocol::{BatchId, Frame, MemberIndex, codec};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::AbortHandle;

/// A recording relay. Workers dial [`socket`](Self::socket) instead of the proxy's. Dropping it stops it.
#[derive(Debug)]
pub struct Tap {
    socket: PathBuf,
    frames: Frames,
    task: AbortHandle,
}

type Frames = Arc<Mutex<Vec<Seen>>>;

/// A frame that went by.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The connection, counted from 0 in the order of dialling.
    pub connection: usize,
    /// The frame. Its type says which way it went.
    pub frame: Frame,
}

/// A batch as it went by.
#[derive(Clone, Debug)]
pub struct Ride {
    /// The connection that it went over.
    pub connection: usize,
    /// Its number there.
    pub id: BatchId,
    /// What the proxy sent.
    pub batch: Batch,
    /// What came of each member, in the batch's order.
    pub ends: Vec<End>,
    /// What it cost, once it is done.
    pub cost: Option<BatchCost>,
}

/// What came of a member in one batch.
#[derive(Clone, Debug, Default)]
pub struct End {
    /// The ids that it produced in this batch.
    pub ids: Vec<u32>,
    /// The text that was sent of it.
    pub text: String,
    /// Why it finished, if it did.
    pub reason: Option<FinishReason>,
}

impl Tap {
    /// Listens on `socket` and relays each connection to the proxy's. Needs a runtime.
    ///
    /// # Panics
    /// The socket cannot be bound.
    pub fn between(socket: &Path, proxy: &Path) -> Self {
        let listener = UnixListener::bind(socket).expect("the folder of the socket can be written");
        let frames = Frames::default();
        let task = tokio::spawn(accept(listener, proxy.to_owned(), Arc::clone(&frames))).abort_handle();
        Self { socket: socket.to_owned(), frames, task }
    }

    /// Where workers dial.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// All frames so far, each connection's and direction's in order.
    pub fn frames(&self) -> Vec<Seen> {
        lock(&self.frames).clone()
    }

    /// All batches so far, in the order in which they went by.
    pub fn rides(&self) -> Vec<Ride> {
        let mut rides: Vec<Ride> = Vec::new();
        for Seen { connection, frame } in self.frames() {
            if let Frame::Batch(id, batch) = frame {
                let ends = vec![End::default(); batch.members.len()];
                rides.push(Ride { connection, id, batch, ends, cost: None });
            } else if let Some(id) = batch_of(&frame) {
                let ride = rides.iter_mut().rev().find(|ride| ride.connection == connection && ride.id == id);
                ride.into_iter().for_each(|ride| ride.note(&frame));
            }
        }
        rides
    }
}

impl Ride {
    /// Its members with what came of each.
    pub fn members(&self) -> impl Iterator<Item = (&Member, &End)> {
        self.batch.members.iter().zip(&self.ends)
    }

    fn note(&mut self, frame: &Frame) {
        match frame {
            Frame::Tokens(_, tokens) => tokens.iter().for_each(|part| {
                if let Some(end) = self.end(part.member) {
                    end.ids.extend(&part.ids);
                    end.text.push_str(&part.text);
                }
            }),
            Frame::Finished(_, members) => members.iter().for_each(|finished| {
                if let Some(end) = self.end(finished.member) {
                    end.reason = Some(finished.reason);
                }
            }),
            Frame::Done(_, cost) => self.cost = Some(*cost),
            _ => {}
        }
    }

    fn end(&mut self, member: MemberIndex) -> Option<&mut End> {
        self.ends.get_mut(member as usize)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn batch_of(frame: &Frame) -> Option<BatchId> {
    match frame {
        Frame::Tokens(id, _) | Frame::Finished(id, _) | Frame::Done(id, _) => Some(*id),
        _ => None,
    }
}

async fn accept(listener: UnixListener, proxy: PathBuf, frames: Frames) {
    let mut connections = tokio::task::JoinSet::new();
    for connection in 0.. {
        let Ok((worker, _)) = listener.accept().await else { return };
        let Ok(proxy) = UnixStream::connect(&proxy).await else { continue };
        let (from_worker, to_worker) = worker.into_split();
        let (from_proxy, to_proxy) = proxy.into_split();
        connections.spawn(relay(from_worker, to_proxy, connection, Arc::clone(&frames)));
        connections.spawn(relay(from_proxy, to_worker, connection, Arc::clone(&frames)));
    }
}

/// Passes on what comes, frame or not, and records the frames. Ends with either side; the halves close on drop.
async fn relay(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    connection: usize,
    frames: Frames,
) -> std::io::Result<()> {
    let mut wire = BytesMut::new();
    let mut chunk = BytesMut::with_capacity(64 * 1024);
    while from.read_buf(&mut chunk).await? > 0 {
        wire.extend_from_slice(&chunk);
        // Before it is passed on, so that what an answer depends on is recorded before the answer is there.
        while let Ok(Some(frame)) = codec::decode(&mut wire) {
            lock(&frames).push(Seen { connection, frame });
        }
        to.write_all_buf(&mut chunk).await?;
    }
    to.shutdown().await
}

fn lock(frames: &Frames) -> MutexGuard<'_, Vec<Seen>> {
    frames.lock().unwrap_or_else(PoisonError::into_inner)
}
