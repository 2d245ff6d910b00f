//! HTTP/1.1 or HTTP/2: told from a connection's first bytes (RFC 9113, section 3.3: prior knowledge).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::activity::Activity;

/// What a client that speaks HTTP/2 sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Most requests arrive whole in as much.
const READ: usize = 4096;

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

/// A stream of which something has been read already, which is read again first.
#[derive(Debug)]
pub(super) struct Opened<I> {
    read: Bytes,
    io: I,
    /// That of HTTP/1.1, where any byte is a part of a request or of an answer.
    activity: Option<Arc<Activity>>,
}

/// Reads until it is clear what the client speaks. One that closes at once is taken for HTTP/1.1, which then finds so.
pub(super) async fn open<I>(mut io: I, activity: &Arc<Activity>) -> io::Result<(Version, Opened<I>)>
where
    I: AsyncRead + Unpin,
{
    let mut read = BytesMut::with_capacity(READ);
    let version = loop {
        let seen = read.len().min(PREFACE.len());
        if read[..seen] != PREFACE[..seen] {
            break Version::Http1;
        }
        if seen == PREFACE.len() {
            break Version::Http2;
        }
        if io.read_buf(&mut read).await? == 0 {
            break Version::Http1;
        }
        activity.heard();
    };
    let activity = match version {
        Version::Http1 => Some(activity.clone()),
        Version::Http2 => {
            activity.head_ended();
            None
        }
    };
    Ok((version, Opened { read: read.freeze(), io, activity }))
}

impl<I> Opened<I> {
    fn written(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let (Some(activity), Poll::Ready(Ok(1..))) = (&self.activity, &polled) {
            activity.took();
        }
        polled
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Opened<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            let read = buffer.filled().len();
            let polled = Pin::new(&mut self.io).poll_read(context, buffer);
            if let Some(activity) = self.activity.as_ref().filter(|_| buffer.filled().len() > read) {
                activity.heard();
            }
            return polled;
        }
        let bytes = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read[..bytes]);
        self.read.advance(bytes);
        if self.read.is_empty() {
            // So that its memory is given back.
            self.read = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Opened<I> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(context, bytes);
        self.written(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(context, slices);
        self.written(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};
    use tokio::time::Instant;

    use super::*;

    /// What is found, and all that is read then, of a client that sends these one after the other.
    async fn opened(pieces: &[&[u8]]) -> (Version, Vec<u8>) {
        let (mut client, server) = duplex(8);
        let sent = async {
            for piece in pieces {
                client.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(client);
        };
        let read = async {
            let activity = Arc::new(Activity::new(Instant::now()));
            let (version, mut io) = open(server, &activity).await.unwrap();
            let mut all = Vec::new();
            io.read_to_end(&mut all).await.unwrap();
            (version, all)
        };
        tokio::join!(sent, read).1
    }

    #[tokio::test]
    async fn the_version_is_told_however_the_bytes_arrive_and_none_is_lost() {
        let http2 = [PREFACE, b"frames"].concat();
        for cut in 0..http2.len() {
            assert_eq!(opened(&[&http2[..cut], &http2[cut..]]).await, (Version::Http2, http2.clone()));
        }
        for http1 in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PRI * HTTP/1.1\r\n\r\n", b"PRI", b"P", b""] {
            assert_eq!(opened(&[http1]).await, (Version::Http1, http1.to_vec()));
        }
    }
}
