//! Reads and writes frames, with buffers, over any `AsyncRead` and `AsyncWrite`.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::Peer;
use crate::codec;
use crate::error::{EncodeError, ReadError};
use crate::frame::Frame;

/// A buffer whose capacity exceeds this number of bytes is freed when it is empty.
const KEEP: usize = 1024 * 1024;

/// The reading half of a connection.
#[derive(Debug)]
pub struct FrameReader<R> {
    io: R,
    wire: BytesMut,
    sender: Option<Peer>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Creates a reader of frames from `io`, whoever sends them.
    pub fn new(io: R) -> Self {
        Self { io, wire: BytesMut::with_capacity(16 * 1024), sender: None }
    }

    /// Creates a reader of the frames that `sender` sends. Any other frame is an error as soon as its header has come.
    pub fn of(sender: Peer, io: R) -> Self {
        Self { sender: Some(sender), ..Self::new(io) }
    }

    /// Waits for the next frame. Returns `None` if the stream ended between two frames. Dropping the future loses no bytes.
    ///
    /// # Errors
    /// The stream failed or ended within a frame, or the peer sent bytes that are no frame.
    pub async fn next(&mut self) -> Result<Option<Frame>, ReadError> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(Some(frame));
            }
            if self.io.read_buf(&mut self.wire).await? == 0 {
                return if self.wire.is_empty() {
                    Ok(None)
                } else {
                    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the stream ended within a frame").into())
                };
            }
        }
    }

    /// Returns the next frame if its bytes are in the buffer already, without waiting. So a caller can handle all frames
    /// that arrived together before it waits for more.
    ///
    /// # Errors
    /// The peer sent bytes that are no frame.
    pub fn buffered(&mut self) -> Result<Option<Frame>, ReadError> {
        let frame = codec::decode_from(self.sender, &mut self.wire)?;
        if self.wire.is_empty() && self.wire.capacity() > KEEP {
            self.wire = BytesMut::new();
        }
        Ok(frame)
    }
}

/// The writing half of a connection. Frames are collected in a buffer and sent together.
#[derive(Debug)]
pub struct FrameWriter<W> {
    io: W,
    wire: BytesMut,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Creates a writer of frames to `io`.
    pub fn new(io: W) -> Self {
        Self { io, wire: BytesMut::new() }
    }

    /// The stream below, without the bytes that are still in the buffer.
    pub fn into_inner(self) -> W {
        self.io
    }

    /// Appends a frame to the buffer, which [`flush`](Self::flush) sends.
    ///
    /// # Errors
    /// The frame is longer than its type's limit, or cannot be written as JSON. The buffer is then unchanged.
    pub fn put(&mut self, frame: &Frame) -> Result<(), EncodeError> {
        codec::encode(frame, &mut self.wire)
    }

    /// Returns the number of bytes in the buffer, which are not sent yet.
    pub fn pending(&self) -> usize {
        self.wire.len()
    }

    /// Sends all bytes in the buffer. If the future is dropped, a part may have been sent; the next call sends the rest.
    ///
    /// # Errors
    /// The stream failed.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.io.write_all_buf(&mut self.wire).await?;
        if self.wire.capacity() > KEEP {
            self.wire = BytesMut::new();
        }
        self.io.flush().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    #[test]
    fn frames_put_together_arrive_one_by_one() {
        runtime().block_on(async {
            let (near, far) = tokio::io::duplex(7);
            let frames = [Frame::Credit { grant: 2 }, Frame::Draining, Frame::Release];
            let send = async {
                let mut writer = FrameWriter::new(near);
                for frame in &frames {
                    writer.put(frame).unwrap();
                }
                writer.flush().await.unwrap();
            };
            let receive = async {
                let mut reader = FrameReader::new(far);
                let mut seen = Vec::new();
                while let Some(frame) = reader.next().await.unwrap() {
                    seen.push(frame);
                }
                seen
            };
            let ((), seen) = tokio::join!(send, receive);
            assert_eq!(seen, frames);
        });
    }

    #[test]
    fn an_end_within_a_frame_is_an_error() {
        runtime().block_on(async {
            let mut wire = BytesMut::new();
            codec::encode(&Frame::Credit { grant: 1 }, &mut wire).unwrap();
            for cut in 1..wire.len() {
                let mut reader = FrameReader::new(&wire[..cut]);
                let error = reader.next().await.unwrap_err();
                assert!(matches!(error, ReadError::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof), "cut at {cut}");
            }
        });
    }
}
