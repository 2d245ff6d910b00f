//! A relay between workers and the proxy that records every frame. So tests see which requests shared a batch, and
//! which token ids the worker sent.

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

/// A recorded frame.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The number of the frame's connection. Connections are counted from 0, in the order in which workers dialled.
    pub connection: usize,
    /// The frame. Its type says who sent it.
    pub frame: Frame,
}

/// A recorded batch.
#[derive(Clone, Debug)]
pub struct Ride {
    /// The number of the batch's connection.
    pub connection: usize,
    /// The batch's number on this connection.
    pub id: BatchId,
    /// The batch that the proxy sent.
    pub batch: Batch,
    /// The results of the members, in the batch's order.
    pub ends: Vec<End>,
    /// The batch's cost, if the batch is done.
    pub cost: Option<BatchCost>,
}

/// The result of a member in one batch.
#[derive(Clone, Debug, Default)]
pub struct End {
    /// The token ids that the worker sent for the member in this batch.
    pub ids: Vec<u32>,
    /// The text that the worker sent for the member.
    pub text: String,
    /// Why the member finished, if it did.
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

    /// The socket that workers dial.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// All frames so far. Those of one connection and direction are in order.
    pub fn frames(&self) -> Vec<Seen> {
        lock(&self.frames).clone()
    }

    /// All batches so far, in the order in which the proxy sent them.
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
    /// The batch's members with their results.
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

/// Passes on all bytes, even those that are not frames, and records the frames. Ends when either side ends, and then
/// closes both.
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
        // A frame is recorded before it is passed on. So when an answer arrives, the frames that it depends on are
        // recorded.
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
