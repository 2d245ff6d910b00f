//! Errors of reading and writing frames.

use std::io;

use crate::Peer;

/// The bytes are no frame of this protocol. The receiver must close the connection.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The first two bytes are not the protocol's magic number.
    #[error("not a Pillion frame: it begins with {0:#06x}")]
    Magic(u16),
    /// This build does not speak the header's version.
    #[error("protocol version {0} is not supported")]
    Version(u8),
    /// The header's type is unknown.
    #[error("unknown frame type {0:#04x}")]
    Type(u8),
    /// The frame is one that only the other end sends.
    #[error("a {kind}, which only a {sender} sends")]
    Direction {
        /// The frame's type.
        kind: &'static str,
        /// Who may send it.
        sender: Peer,
    },
    /// The header promises more bytes than a frame of its type may have. No memory was allocated for the payload.
    #[error("a {kind} frame of {length} bytes is over its limit of {limit}")]
    TooLong {
        /// The frame's type.
        kind: &'static str,
        /// The promised length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A JSON payload does not have the form that its frame type requires.
    #[error("malformed {kind} frame")]
    Json {
        /// The frame's type.
        kind: &'static str,
        /// The error of the JSON reader.
        #[source]
        source: serde_json::Error,
    },
    /// A TOKENS payload contradicts itself.
    #[error("malformed TOKENS frame: {0}")]
    Tokens(&'static str),
}

/// The frame cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The payload is longer than the limit of its type. The peer would close the connection.
    #[error("a {kind} frame of {length} bytes is over its limit of {limit}")]
    TooLong {
        /// The frame's type.
        kind: &'static str,
        /// The payload's length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The payload cannot be written as JSON.
    #[error("cannot write a {kind} frame")]
    Json {
        /// The frame's type.
        kind: &'static str,
        /// The error of the JSON writer.
        #[source]
        source: serde_json::Error,
    },
}

/// Why no further frame can be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The stream failed, or ended in the middle of a frame (`UnexpectedEof`).
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The peer sent bytes that are no frame.
    #[error("the peer broke the protocol")]
    Decode(#[from] DecodeError),
}
