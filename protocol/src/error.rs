//! What can be wrong with bytes that claim to be frames.

use std::io;

/// Bytes that are no frame of this protocol. The connection they came on cannot be trusted any further.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The first two bytes are not the protocol's magic number.
    #[error("not a Pillion frame: it begins with {0:#06x}")]
    Magic(u16),
    /// The header's version is none that this build speaks.
    #[error("protocol version {0} is not spoken here")]
    Version(u8),
    /// The header's type is unknown.
    #[error("unknown frame type {0:#04x}")]
    Type(u8),
    /// The header promises more bytes than a frame of its type may have. Nothing was allocated for it.
    #[error("a {kind} frame of {length} bytes is over its limit of {limit}")]
    TooLong {
        /// The frame's type.
        kind: &'static str,
        /// The promised length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A JSON payload does not have the form that its type asks for.
    #[error("malformed {kind} frame")]
    Json {
        /// The frame's type.
        kind: &'static str,
        /// What the JSON reader found.
        #[source]
        source: serde_json::Error,
    },
    /// A TOKENS payload contradicts itself.
    #[error("malformed TOKENS frame: {0}")]
    Tokens(&'static str),
}

/// A frame that must not be sent.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// Its payload would be over the limit of its type; the peer would close the connection.
    #[error("a {kind} frame of {length} bytes is over its limit of {limit}")]
    TooLong {
        /// The frame's type.
        kind: &'static str,
        /// The payload's length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A payload could not be written as JSON.
    #[error("cannot write a {kind} frame")]
    Json {
        /// The frame's type.
        kind: &'static str,
        /// What the JSON writer found.
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
    /// The peer sent something that is no frame.
    #[error("the peer broke the protocol")]
    Decode(#[from] DecodeError),
}
