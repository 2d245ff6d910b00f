//! The handshake: the worker sends HELLO and the proxy answers with WELCOME.

use std::io;
use std::time::Duration;

use pillion_protocol::connection::{FrameReader, FrameWriter};
use pillion_protocol::frame::{Goodbye, GoodbyeReason, Hello};
use pillion_protocol::{Frame, ReadError, VERSIONS};
use tokio::io::{AsyncRead, AsyncWrite};

/// The longest that the proxy may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The proxy refused the worker.
    #[error("the proxy refused this worker: {}", .0.message)]
    Refused(Goodbye),
    /// The proxy chose a version that was not offered.
    #[error(
        "the proxy speaks protocol version {0}, but this worker speaks {VERSIONS:?}: run proxy and worker of one release"
    )]
    Version(u8),
    /// The proxy did not answer in time.
    #[error("the proxy did not answer within {} seconds", PATIENCE.as_secs())]
    Silence,
    /// The proxy answered with another frame, or with a batch size of 0.
    #[error("the proxy did not answer HELLO with a valid WELCOME")]
    Other,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The proxy's answer is not a frame, or is cut short.
    #[error("{0}")]
    Read(#[from] ReadError),
}

impl HandshakeError {
    /// Whether the versions do not match, so that trying again at once is pointless.
    pub fn is_about_versions(&self) -> bool {
        match self {
            Self::Refused(goodbye) => goodbye.reason == GoodbyeReason::Version,
            Self::Version(_) => true,
            _ => false,
        }
    }
}

/// Sends HELLO and waits for WELCOME.
pub(super) async fn greet<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    reader: &mut FrameReader<R>,
    writer: &mut FrameWriter<W>,
    hello: &Hello,
) -> Result<(), HandshakeError> {
    let exchange = async {
        writer.put(&Frame::Hello(hello.clone())).map_err(io::Error::other)?;
        writer.flush().await?;
        let (reason, message, error) = match reader.next().await {
            Ok(Some(Frame::Welcome(welcome))) if !VERSIONS.contains(&welcome.version) => {
                let message = format!("this worker speaks {VERSIONS:?}");
                (GoodbyeReason::Version, message, HandshakeError::Version(welcome.version))
            }
            Ok(Some(Frame::Welcome(welcome))) if welcome.max_batch_size > 0 => return Ok(()),
            Ok(Some(Frame::Goodbye(goodbye))) => return Err(HandshakeError::Refused(goodbye)),
            Ok(Some(_)) => (GoodbyeReason::Protocol, HandshakeError::Other.to_string(), HandshakeError::Other),
            Ok(None) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Err(ReadError::Io(error)) => return Err(error.into()),
            Err(error) => (GoodbyeReason::Protocol, error.to_string(), error.into()),
        };
        writer.put(&Frame::Goodbye(Goodbye { reason, message })).map_err(io::Error::other)?;
        writer.flush().await?;
        Err(error)
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap_or(Err(HandshakeError::Silence))
}
