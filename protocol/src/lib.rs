//! The framed protocol that Pillion's proxy and its workers speak over a Unix-domain socket.
//!
//! `PROTOCOL.md` beside this crate gives every byte, the order of frames and the meaning of credit; this crate is its
//! implementation, shared by both ends. It knows nothing of HTTP, of models or of configuration.
//!
//! - [`frame`]: the values that cross the socket.
//! - [`codec`]: bytes in, frames out, and back. It does no I/O.
//! - [`connection`]: buffered frames over any `AsyncRead` and `AsyncWrite`.
//! - [`service_time`]: how long an engine takes, learned from the costs that frames tell.
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
pub mod service_time;
mod socket_path;

pub use error::{DecodeError, EncodeError, ReadError};
pub use frame::Frame;
pub use id::{BatchId, MemberIndex};
pub use socket_path::default_socket_path;

/// The protocol versions this build speaks, lowest first.
pub const VERSIONS: &[u8] = &[1];

/// The version in which HELLO, WELCOME and GOODBYE are written, whatever is negotiated afterwards.
pub const HANDSHAKE_VERSION: u8 = 1;

/// The highest version that both this build and the peer speak, if there is one.
///
/// ```
/// assert_eq!(pillion_protocol::negotiate(&[1, 7]), Some(1));
/// assert_eq!(pillion_protocol::negotiate(&[9]), None);
/// ```
pub fn negotiate(theirs: &[u8]) -> Option<u8> {
    VERSIONS.iter().rev().copied().find(|version| theirs.contains(version))
}
