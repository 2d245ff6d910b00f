//! The handshake: a worker's HELLO and the proxy's WELCOME.

use std::time::Duration;

use pillion_protocol::connection::{FrameReader, FrameWriter};
use pillion_protocol::frame::{Frame, Hello, Welcome};
use pillion_protocol::negotiate;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::error::LinkError;
use crate::numbers::as_u32;

/// How long a worker may take to send HELLO. It has loaded its model before it dials.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the worker's HELLO, checks it, and answers with WELCOME.
pub(super) async fn shake_hands<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    reader: &mut FrameReader<R>,
    writer: &mut FrameWriter<W>,
    max_batch_size: usize,
) -> Result<Hello, LinkError> {
    let first = timeout(TIMEOUT, reader.next()).await.map_err(|_| LinkError::NoHello)??;
    let hello = match first {
        Some(Frame::Hello(hello)) => hello,
        Some(_) => return Err(LinkError::NotHello),
        None => return Err(LinkError::Silent),
    };
    let Some(version) = negotiate(&hello.versions) else {
        return Err(LinkError::Version { theirs: hello.versions });
    };
    if hello.model.is_empty() || hello.model.len() > 256 {
        return Err(LinkError::Hello("the model's name is empty or longer than 256 bytes"));
    }
    if hello.positions == 0 || hello.vocabulary == 0 || hello.max_batch_tokens == 0 || hello.slots == 0 {
        return Err(LinkError::Hello("positions, vocabulary, max_batch_tokens and slots must be at least 1"));
    }
    writer.put(&Frame::Welcome(Welcome { version, max_batch_size: as_u32(max_batch_size) }))?;
    writer.flush().await?;
    Ok(hello)
}
