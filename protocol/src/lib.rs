//! The framed protocol that Pillion's proxy and its workers speak over a Unix-domain socket.
//!
//! `PROTOCOL.md` in this crate's folder specifies every byte, the order of frames and the meaning of credit. This crate
//! implements it for both ends. The crate knows nothing about HTTP, models or configuration.
//!
//! - [`frame`]: the frames as values.
//! - [`codec`]: turns frames into bytes and back. It does no I/O.
//! - [`connection`]: reads and writes frames, with buffers, over any `AsyncRead` and `AsyncWrite`.
//! - [`json`]: writes texts as JSON strings.
//!
//! ```
//! use bytes::BytesMut;
//! use pillion_protocol::{Frame, codec};
//!
//! let mut wire = BytesMut::new();
//! codec::encode(&Frame::Credit { grant: 1 }, &mut wire).unwrap();
//! assert_eq!(codec::decode(&mut wire).unwrap(), Some(Frame::Credit { grant: 1 }));
//! ```

pub mod codec;
pub mod connection;
mod error;
pub mod frame;
mod id;
pub mod json;
mod peer;

pub use error::{DecodeError, EncodeError, ReadError};
pub use frame::Frame;
pub use id::{BatchId, MemberIndex};
pub use peer::Peer;

/// The protocol versions that this build speaks, lowest first.
pub const VERSIONS: &[u8] = &[1];

/// The version in the headers of HELLO, WELCOME and GOODBYE, whatever version the two ends agree on.
pub const HANDSHAKE_VERSION: u8 = 1;

/// Returns the highest version that both this build and the peer speak, if there is one.
///
/// ```
/// assert_eq!(pillion_protocol::negotiate(&[1, 7]), Some(1));
/// assert_eq!(pillion_protocol::negotiate(&[9]), None);
/// ```
pub fn negotiate(theirs: &[u8]) -> Option<u8> {
    VERSIONS.iter().rev().copied().find(|version| theirs.contains(version))
}
