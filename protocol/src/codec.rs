//! Turns frames into bytes and back. This module does no I/O.
//!
//! Every frame consists of a header of 16 bytes and a payload. Most payloads are JSON, because a reader can skip new JSON
//! fields. TOKENS is binary, because the worker sends it at every step. All numbers are big-endian.

use bytes::{Buf, BufMut, BytesMut};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::error::{DecodeError, EncodeError};
use crate::frame::{Batch, ButPrompt, Frame, MemberTokens, Prompt};
use crate::json::put_string;
use crate::{BatchId, HANDSHAKE_VERSION, MemberIndex, Peer, VERSIONS};

/// The first two bytes of every frame: "PL".
pub const MAGIC: u16 = 0x504c;

/// The length of a header in bytes.
pub const HEADER: usize = 16;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// A frame type: its byte in the header, its name, who sends it (both if `None`), and the most bytes of its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    byte: u8,
    name: &'static str,
    sender: Option<Peer>,
    limit: usize,
}

const fn proxys(byte: u8, name: &'static str, limit: usize) -> Kind {
    Kind { byte, name, sender: Some(Peer::Proxy), limit }
}

const fn workers(byte: u8, name: &'static str, limit: usize) -> Kind {
    Kind { byte, name, sender: Some(Peer::Worker), limit }
}

const HELLO: Kind = workers(0x01, "HELLO", 64 * KIB);
const WELCOME: Kind = proxys(0x02, "WELCOME", 64 * KIB);
const GOODBYE: Kind = Kind { sender: None, ..workers(0x03, "GOODBYE", 64 * KIB) };
const CREDIT: Kind = workers(0x10, "CREDIT", KIB);
const BATCH: Kind = proxys(0x11, "BATCH", 64 * MIB);
const TOKENS: Kind = workers(0x20, "TOKENS", 16 * MIB);
const FINISHED: Kind = workers(0x21, "FINISHED", 4 * MIB);
const FAILED: Kind = workers(0x22, "FAILED", 4 * MIB);
const YIELDED: Kind = workers(0x23, "YIELDED", 4 * MIB);
const DONE: Kind = workers(0x24, "DONE", KIB);
const CANCEL: Kind = proxys(0x30, "CANCEL", 4 * MIB);
const YIELD: Kind = proxys(0x31, "YIELD", 0);
const HEARTBEAT: Kind = workers(0x40, "HEARTBEAT", KIB);
const DRAINING: Kind = workers(0x41, "DRAINING", 0);
const RELEASE: Kind = proxys(0x42, "RELEASE", 0);

const KINDS: [Kind; 15] = [
    HELLO, WELCOME, GOODBYE, CREDIT, BATCH, TOKENS, FINISHED, FAILED, YIELDED, DONE, CANCEL, YIELD, HEARTBEAT,
    DRAINING, RELEASE,
];

/// The most bytes of prompts that a proxy may put into one BATCH. JSON writes a control character in six bytes, so the
/// payload of such a batch never exceeds its limit, whatever the texts contain.
pub const MAX_BATCH_TEXT: usize = 8 * MIB;

/// The most members of a batch.
pub const MAX_BATCH_MEMBERS: usize = 4096;

const _: () = assert!(MAX_BATCH_TEXT * 6 + MAX_BATCH_MEMBERS * KIB <= BATCH.limit);

#[derive(Serialize, Deserialize)]
struct Grant {
    grant: u32,
}

/// A list in an object. Later versions can add other fields beside the list.
#[derive(Serialize, Deserialize)]
struct Members<T> {
    members: T,
}

/// Removes one frame from the front of `wire` and returns it. Returns `None` if the frame is not complete yet.
///
/// The length in the header is checked against the limit of the frame's type before memory is reserved for the payload.
///
/// # Errors
/// The bytes are no frame. No further frame can then be read from `wire`.
pub fn decode(wire: &mut BytesMut) -> Result<Option<Frame>, DecodeError> {
    decode_from(None, wire)
}

/// The same for frames that `sender` sends. A frame that it may not send is refused by its header.
///
/// # Errors
/// The bytes are no frame, or one that only the other end sends. No further frame can then be read from `wire`.
pub fn decode_from(sender: Option<Peer>, wire: &mut BytesMut) -> Result<Option<Frame>, DecodeError> {
    let Some(header) = wire.first_chunk::<HEADER>() else { return Ok(None) };
    let mut header = &header[..];
    let magic = header.get_u16();
    if magic != MAGIC {
        return Err(DecodeError::Magic(magic));
    }
    let version = header.get_u8();
    if version != HANDSHAKE_VERSION && !VERSIONS.contains(&version) {
        return Err(DecodeError::Version(version));
    }
    let byte = header.get_u8();
    let kind = KINDS.into_iter().find(|kind| kind.byte == byte).ok_or(DecodeError::Type(byte))?;
    if let (Some(sender), Some(right)) = (sender, kind.sender)
        && sender != right
    {
        return Err(DecodeError::Direction { kind: kind.name, sender: right });
    }
    let batch = BatchId(header.get_u64());
    let length = header.get_u32() as usize;
    if length > kind.limit {
        return Err(DecodeError::TooLong { kind: kind.name, length, limit: kind.limit });
    }
    if wire.len() < HEADER + length {
        wire.reserve(HEADER + length - wire.len());
        return Ok(None);
    }
    wire.advance(HEADER);
    let payload = wire.split_to(length);
    read_payload(kind, batch, &payload).map(Some)
}

fn read_payload(kind: Kind, batch: BatchId, payload: &[u8]) -> Result<Frame, DecodeError> {
    Ok(match kind {
        HELLO => Frame::Hello(from_json(kind, payload)?),
        WELCOME => Frame::Welcome(from_json(kind, payload)?),
        GOODBYE => Frame::Goodbye(from_json(kind, payload)?),
        CREDIT => Frame::Credit { grant: from_json::<Grant>(kind, payload)?.grant },
        BATCH => Frame::Batch(batch, from_json(kind, payload)?),
        TOKENS => Frame::Tokens(batch, read_tokens(payload)?),
        FINISHED => Frame::Finished(batch, from_json::<Members<_>>(kind, payload)?.members),
        FAILED => Frame::Failed(batch, from_json::<Members<_>>(kind, payload)?.members),
        YIELDED => Frame::Yielded(batch, from_json::<Members<_>>(kind, payload)?.members),
        DONE => Frame::Done(batch, from_json(kind, payload)?),
        CANCEL => Frame::Cancel(batch, from_json::<Members<_>>(kind, payload)?.members),
        YIELD => Frame::Yield(batch),
        HEARTBEAT => Frame::Heartbeat(from_json(kind, payload)?),
        DRAINING => Frame::Draining,
        RELEASE => Frame::Release,
        Kind { byte, .. } => return Err(DecodeError::Type(byte)),
    })
}

fn from_json<T: DeserializeOwned>(kind: Kind, payload: &[u8]) -> Result<T, DecodeError> {
    serde_json::from_slice(payload).map_err(|source| DecodeError::Json { kind: kind.name, source })
}

fn read_tokens(mut payload: &[u8]) -> Result<Vec<MemberTokens>, DecodeError> {
    const ENTRY: usize = 12;
    let count = payload.try_get_u32().map_err(|_| DecodeError::Tokens("the count of members is missing"))? as usize;
    if count > payload.len() / ENTRY {
        return Err(DecodeError::Tokens("it counts more members than its bytes can hold"));
    }
    let mut members = Vec::with_capacity(count);
    for _ in 0..count {
        if payload.len() < ENTRY {
            return Err(DecodeError::Tokens("the entry of a member is cut short"));
        }
        let member = payload.get_u32();
        let ids = payload.get_u32() as usize;
        let text = payload.get_u32() as usize;
        if payload.len() / 4 < ids || payload.len() - 4 * ids < text {
            return Err(DecodeError::Tokens("the entry of a member promises more bytes than there are"));
        }
        let ids = (0..ids).map(|_| payload.get_u32()).collect();
        let (bytes, rest) = payload.split_at(text);
        payload = rest;
        let text = std::str::from_utf8(bytes).map_err(|_| DecodeError::Tokens("a text is not UTF-8"))?.to_owned();
        members.push(MemberTokens { member, ids, text });
    }
    if payload.is_empty() { Ok(members) } else { Err(DecodeError::Tokens("there are bytes left over")) }
}

/// Appends `frame` to `wire`.
///
/// # Errors
/// The payload is longer than its type's limit, or cannot be written as JSON. `wire` is then unchanged.
pub fn encode(frame: &Frame, wire: &mut BytesMut) -> Result<(), EncodeError> {
    match frame {
        Frame::Hello(hello) => put_json(HELLO, BatchId(0), hello, wire),
        Frame::Welcome(welcome) => put_json(WELCOME, BatchId(0), welcome, wire),
        Frame::Goodbye(goodbye) => put_json(GOODBYE, BatchId(0), goodbye, wire),
        Frame::Credit { grant } => put_json(CREDIT, BatchId(0), &Grant { grant: *grant }, wire),
        Frame::Batch(id, batch) => put(BATCH, *id, wire, |wire| put_batch(batch, wire)),
        Frame::Tokens(id, members) => put(TOKENS, *id, wire, |wire| {
            put_tokens(members, wire);
            Ok(())
        }),
        Frame::Finished(id, members) => put_json(FINISHED, *id, &Members { members }, wire),
        Frame::Failed(id, members) => put_json(FAILED, *id, &Members { members }, wire),
        Frame::Yielded(id, members) => put_members(YIELDED, *id, members, wire),
        Frame::Done(id, cost) => put_json(DONE, *id, cost, wire),
        Frame::Cancel(id, members) => put_members(CANCEL, *id, members, wire),
        Frame::Yield(id) => put(YIELD, *id, wire, |_| Ok(())),
        Frame::Heartbeat(heartbeat) => put_json(HEARTBEAT, BatchId(0), heartbeat, wire),
        Frame::Draining => put(DRAINING, BatchId(0), wire, |_| Ok(())),
        Frame::Release => put(RELEASE, BatchId(0), wire, |_| Ok(())),
    }
}

fn put_members(kind: Kind, id: BatchId, members: &[MemberIndex], wire: &mut BytesMut) -> Result<(), EncodeError> {
    put_json(kind, id, &Members { members }, wire)
}

fn put_json(kind: Kind, id: BatchId, value: &impl Serialize, wire: &mut BytesMut) -> Result<(), EncodeError> {
    put(kind, id, wire, |wire| {
        serde_json::to_writer(wire.writer(), value).map_err(|source| EncodeError::Json { kind: kind.name, source })
    })
}

/// Writes a batch as JSON, with the same bytes that serde would write. The prompts' texts are long and mostly need no
/// escapes, so [`put_string`] writes them, which is faster.
fn put_batch(Batch { options, members }: &Batch, wire: &mut BytesMut) -> Result<(), EncodeError> {
    let fault = |source| EncodeError::Json { kind: BATCH.name, source };
    wire.put_slice(b"{\"options\":");
    serde_json::to_writer(wire.writer(), options).map_err(fault)?;
    wire.put_slice(b",\"members\":[");
    for (place, member) in members.iter().enumerate() {
        if place > 0 {
            wire.put_u8(b',');
        }
        let Prompt::Text(text) = &member.prompt else {
            serde_json::to_writer(wire.writer(), member).map_err(fault)?;
            continue;
        };
        wire.put_slice(b"{\"prompt\":{\"text\":");
        put_string(text, wire);
        wire.put_u8(b'}');
        // The other fields are written as an object of their own. Its opening brace is then replaced by a comma.
        let others = wire.len();
        serde_json::to_writer(wire.writer(), &ButPrompt::of(member)).map_err(fault)?;
        wire[others] = b',';
    }
    wire.put_slice(b"]}");
    Ok(())
}

/// Writes the header and the payload, and then writes the payload's length into the header.
fn put(
    kind: Kind,
    id: BatchId,
    wire: &mut BytesMut,
    payload: impl FnOnce(&mut BytesMut) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    let start = wire.len();
    wire.put_u16(MAGIC);
    wire.put_u8(HANDSHAKE_VERSION);
    wire.put_u8(kind.byte);
    wire.put_u64(id.0);
    wire.put_u32(0);
    let length = match payload(wire) {
        Ok(()) => wire.len() - start - HEADER,
        Err(error) => {
            wire.truncate(start);
            return Err(error);
        }
    };
    match u32::try_from(length) {
        Ok(written) if length <= kind.limit => {
            wire[start + HEADER - 4..start + HEADER].copy_from_slice(&written.to_be_bytes());
            Ok(())
        }
        _ => {
            wire.truncate(start);
            Err(EncodeError::TooLong { kind: kind.name, length, limit: kind.limit })
        }
    }
}

fn put_tokens(members: &[MemberTokens], wire: &mut BytesMut) {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    wire.put_u32(count(members.len()));
    for MemberTokens { member, ids, text } in members {
        wire.put_u32(*member);
        wire.put_u32(count(ids.len()));
        wire.put_u32(count(text.len()));
        for id in ids {
            wire.put_u32(*id);
        }
        wire.put_slice(text.as_bytes());
    }
}
