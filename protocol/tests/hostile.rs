//! The codec refuses the bytes of a broken or hostile peer and says why. It does this before it allocates the memory
//! that the bytes ask for.

use bytes::{BufMut, BytesMut};
use pillion_protocol::connection::FrameReader;
use pillion_protocol::frame::{Batch, Goodbye, GoodbyeReason, Options};
use pillion_protocol::{BatchId, DecodeError, EncodeError, Frame, Peer, ReadError, codec};

const TYPES: [u8; 15] = [0x01, 0x02, 0x03, 0x10, 0x11, 0x20, 0x21, 0x22, 0x23, 0x24, 0x30, 0x31, 0x40, 0x41, 0x42];
const JSON: [u8; 11] = [0x01, 0x02, 0x03, 0x10, 0x11, 0x21, 0x22, 0x23, 0x24, 0x30, 0x40];
const TOKENS: u8 = 0x20;

fn header(kind: u8, length: u32) -> BytesMut {
    let mut wire = BytesMut::new();
    wire.put_slice(&[b'P', b'L', 1, kind, 0, 0, 0, 0, 0, 0, 0, 0]);
    wire.put_u32(length);
    wire
}

fn decode(kind: u8, payload: &[u8]) -> Result<Option<Frame>, DecodeError> {
    let mut wire = header(kind, u32::try_from(payload.len()).unwrap());
    wire.put_slice(payload);
    codec::decode(&mut wire)
}

fn numbers(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

#[track_caller]
fn tokens_refused(payload: &[u8], why: &str) {
    match decode(TOKENS, payload) {
        Err(DecodeError::Tokens(reason)) => assert_eq!(reason, why),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_huge_length_is_refused_before_memory_is_taken() {
    for kind in TYPES {
        let mut wire = header(kind, u32::MAX);
        let before = wire.capacity();
        assert!(matches!(codec::decode(&mut wire), Err(DecodeError::TooLong { .. })), "type {kind:#04x}");
        assert_eq!(wire.capacity(), before, "type {kind:#04x}");
    }
}

/// The table of frames in `PROTOCOL.md`: each type, its name, who sends it, and the limit of its payload in bytes.
fn table() -> Vec<(u8, &'static str, Option<Peer>, u32)> {
    let rows = include_str!("../PROTOCOL.md").lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix("| `")?.strip_suffix(" |")?.split(" | ").collect();
        let [kind, name, from, _, _, limit] = cells[..] else { return None };
        let sender = match from {
            "proxy" => Some(Peer::Proxy),
            "worker" => Some(Peer::Worker),
            "either" => None,
            _ => return None,
        };
        let limit = match limit.split_once(' ') {
            Some((number, "KiB")) => number.parse::<u32>().ok()? << 10,
            Some((number, "MiB")) => number.parse::<u32>().ok()? << 20,
            _ => limit.parse().ok()?,
        };
        Some((u8::from_str_radix(kind.strip_suffix('`')?, 16).ok()?, name, sender, limit))
    });
    rows.collect()
}

#[test]
fn the_table_of_frames_says_who_sends_each_type_and_how_long_it_may_be() {
    let table = table();
    assert!(table.iter().map(|row| row.0).eq(TYPES), "{table:?}");
    for kind in 0..=u8::MAX {
        let is_known = !matches!(codec::decode(&mut header(kind, 0)), Err(DecodeError::Type(_)));
        assert_eq!(is_known, TYPES.contains(&kind), "type {kind:#04x}");
    }
    for (kind, name, sender, limit) in table {
        let over = codec::decode(&mut header(kind, limit + 1));
        assert!(matches!(over, Err(DecodeError::TooLong { kind, .. }) if kind == name), "{name}: {over:?}");
        let at = codec::decode(&mut header(kind, limit));
        assert!(at.is_ok(), "{name}: {at:?}");
        for peer in [Peer::Proxy, Peer::Worker] {
            let sent = codec::decode_from(Some(peer), &mut header(kind, limit));
            let is_refused = matches!(sent, Err(DecodeError::Direction { .. }));
            assert_eq!(is_refused, sender.is_some_and(|sender| sender != peer), "{name} from the {peer}: {sent:?}");
        }
    }
}

#[test]
fn unknown_types_magics_and_versions_are_refused_by_the_header_alone() {
    for kind in (0..=u8::MAX).filter(|kind| !TYPES.contains(kind)) {
        assert!(matches!(codec::decode(&mut header(kind, 0)), Err(DecodeError::Type(k)) if k == kind));
    }
    for version in (0..=u8::MAX).filter(|version| *version != 1) {
        let mut wire = header(0x41, 0);
        wire[2] = version;
        assert!(matches!(codec::decode(&mut wire), Err(DecodeError::Version(v)) if v == version));
    }
    let mut http = BytesMut::from("GET / HTTP/1.1\r\n\r\n");
    assert!(matches!(codec::decode(&mut http), Err(DecodeError::Magic(0x4745))));
}

#[test]
fn tokens_that_lie_are_refused() {
    tokens_refused(&[], "the count of members is missing");
    tokens_refused(&[0, 0, 0], "the count of members is missing");
    tokens_refused(&numbers(&[1]), "it counts more members than its bytes can hold");
    tokens_refused(&numbers(&[u32::MAX, 0, 0, 0]), "it counts more members than its bytes can hold");
    let one_more_id = numbers(&[1, 0, 2, 0, 7]);
    tokens_refused(&one_more_id, "the entry of a member promises more bytes than there are");
    tokens_refused(&numbers(&[1, 0, u32::MAX, 0, 7]), "the entry of a member promises more bytes than there are");
    tokens_refused(&numbers(&[1, 0, 1, 1, 7]), "the entry of a member promises more bytes than there are");
    tokens_refused(&numbers(&[1, 0, 0, u32::MAX]), "the entry of a member promises more bytes than there are");
    tokens_refused(&numbers(&[1, 0, u32::MAX, u32::MAX]), "the entry of a member promises more bytes than there are");
    let first_eats_the_second = numbers(&[2, 0, 2, 0, 1, 2, 3]);
    tokens_refused(&first_eats_the_second, "the entry of a member is cut short");
    tokens_refused(&numbers(&[0, 9]), "there are bytes left over");
    tokens_refused(&numbers(&[1, 0, 0, 0, 9]), "there are bytes left over");
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    for bad in [&b"\xff"[..], b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\xaf"] {
        let mut payload = numbers(&[1, 0, 0, u32::try_from(bad.len()).unwrap()]);
        payload.extend_from_slice(bad);
        tokens_refused(&payload, "a text is not UTF-8");
    }
    let split = [&numbers(&[2, 0, 0, 1])[..], b"\xc3", &numbers(&[1, 0, 1]), b"\xa9"].concat();
    tokens_refused(&split, "a text is not UTF-8");
    assert!(decode(0x03, b"{\"reason\":\"drained\",\"message\":\"\xff\"}").is_err());
}

#[test]
fn json_of_the_wrong_shape_is_refused() {
    let shapes: [&[u8]; 11] =
        [b"", b" ", b"{", b"null", b"7", b"\"text\"", b"{}", b"{\"members\":{}}", b"{\"grant\":-1}", b"\xff", b"{} {}"];
    for kind in JSON {
        for shape in shapes {
            let seen = decode(kind, shape);
            assert!(
                matches!(seen, Err(DecodeError::Json { .. })),
                "type {kind:#04x}, {}: {seen:?}",
                shape.escape_ascii()
            );
        }
    }
}

#[test]
fn out_of_range_numbers_leftover_bytes_and_duplicate_fields_are_refused() {
    for payload in ["4294967296", "-1", "1.5", "1e3", "\"1\"", "null", "true", "99999999999999999999999999"] {
        let json = format!("{{\"grant\":{payload}}}");
        assert!(decode(0x10, json.as_bytes()).is_err(), "{json}");
    }
    assert!(decode(0x10, b"{\"grant\":1}x").is_err());
    assert!(decode(0x10, b"{\"grant\":1,\"grant\":2}").is_err());
    assert!(
        decode(0x21, br#"{"members":[{"member":0,"reason":"bored","prompt_tokens":1,"completion_tokens":1}]}"#)
            .is_err()
    );
    assert!(decode(0x11, br#"{"options":{},"members":[]}"#).is_err());
}

#[test]
fn deep_nesting_does_not_reach_the_end_of_the_stack() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let depth = 8000;
        let nest = format!("{}1{}", open.repeat(depth), close.repeat(depth));
        for kind in JSON.into_iter().filter(|kind| !matches!(kind, 0x10 | 0x24 | 0x40)) {
            assert!(decode(kind, nest.as_bytes()).is_err(), "type {kind:#04x}");
            assert!(decode(kind, format!("{{\"members\":{nest}}}").as_bytes()).is_err(), "type {kind:#04x}");
            // A reader may skip an unknown field of such depth, or refuse it. It must not overflow the stack.
            let skipped = format!("{{\"reason\":\"drained\",\"message\":\"\",\"new\":{nest}}}");
            let _ = decode(kind, skipped.as_bytes());
        }
    }
}

#[test]
fn a_reader_tells_a_violation_from_an_end_within_a_frame() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let error = FrameReader::new(&b"garbage garbage garbage"[..]).next().await.unwrap_err();
        assert!(matches!(error, ReadError::Decode(DecodeError::Magic(_))));
        let error = FrameReader::new(&header(0x10, 20)[..]).next().await.unwrap_err();
        assert!(matches!(error, ReadError::Io(_)));
    });
}

#[test]
fn a_frame_over_its_limit_is_not_written_and_leaves_what_was_there() {
    let mut wire = BytesMut::new();
    codec::encode(&Frame::Draining, &mut wire).unwrap();
    let before = wire.clone();
    let long = Frame::Goodbye(Goodbye { reason: GoodbyeReason::Internal, message: "x".repeat(64 * 1024) });
    assert!(matches!(codec::encode(&long, &mut wire), Err(EncodeError::TooLong { kind: "GOODBYE", .. })));
    assert_eq!(wire, before);
}

#[test]
fn a_number_that_json_cannot_say_is_not_written() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for options in [
            Options { sampling_topp: bad, ..Options::default() },
            Options { sampling_temperature: bad, ..Options::default() },
            Options { repetition_penalty: bad, ..Options::default() },
        ] {
            let mut wire = BytesMut::new();
            let batch = Frame::Batch(BatchId(1), Batch { options, members: Vec::new() });
            assert!(matches!(codec::encode(&batch, &mut wire), Err(EncodeError::Json { kind: "BATCH", .. })));
            assert!(wire.is_empty());
        }
    }
}

#[test]
fn a_number_that_is_too_large_is_not_read() {
    for field in ["sampling_topp", "sampling_temperature", "repetition_penalty"] {
        let mut options = serde_json::to_value(Options::default()).unwrap();
        for (number, reads) in [("1e38", true), ("1e39", false), ("-1e39", false)] {
            options[field] = serde_json::from_str(number).unwrap();
            let read: Result<Options, _> = serde_json::from_value(options.clone());
            assert_eq!(read.is_ok(), reads, "{field} {number}");
        }
    }
}
