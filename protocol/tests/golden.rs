//! The exact bytes of every frame, written by hand. A change of these bytes is a change of the protocol.

use bytes::BytesMut;
use pillion_protocol::frame::{
    Batch, BatchCost, FailureCode, FinishReason, Goodbye, GoodbyeReason, Heartbeat, Hello, Member, MemberFailed,
    MemberFinished, MemberTokens, Message, Options, Prompt, UnitCost, Welcome,
};
use pillion_protocol::{BatchId, Frame, codec};
use serde_json::{Map, json};

/// Checks that a frame is written as exactly `header` and `payload`, and that these bytes are read as that frame.
#[track_caller]
fn pinned(frame: &Frame, header: [u8; 16], payload: &[u8]) {
    let bytes = [&header[..], payload].concat();
    let mut wire = BytesMut::new();
    codec::encode(frame, &mut wire).unwrap();
    assert_eq!(wire, bytes, "written: {}", wire.escape_ascii());
    assert_eq!(codec::decode(&mut wire).unwrap().as_ref(), Some(frame));
    assert!(wire.is_empty(), "a frame is removed whole");
}

/// Checks that the bytes are read as `frame`, although this build writes the frame with other bytes.
#[track_caller]
fn understood(header: [u8; 16], payload: &[u8], frame: &Frame) {
    let mut wire = BytesMut::from(&[&header[..], payload].concat()[..]);
    assert_eq!(codec::decode(&mut wire).unwrap().as_ref(), Some(frame));
}

fn member(prompt: Prompt, max_new_tokens: u32, deadline_ms: u64) -> Member {
    Member {
        prompt,
        max_new_tokens,
        fit: false,
        min_new_tokens: 0,
        stop: Vec::new(),
        stop_token_ids: Vec::new(),
        chat_template_kwargs: Map::new(),
        deadline_ms,
        stream: false,
        produced: Vec::new(),
        sent: 0,
        request_id: String::new(),
        traceparent: String::new(),
    }
}

#[test]
fn hello() {
    let hello = Hello {
        versions: vec![1, 2],
        software: "w 1".into(),
        pid: 7,
        model: "m".into(),
        fingerprint: "ab".into(),
        positions: 512,
        vocabulary: 8192,
        max_batch_tokens: 4096,
        slots: 1,
        chat: false,
        cost: UnitCost::default(),
        age_ms: 0,
    };
    pinned(
        &Frame::Hello(hello.clone()),
        [0x50, 0x4c, 1, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 142],
        br#"{"versions":[1,2],"software":"w 1","pid":7,"model":"m","fingerprint":"ab","positions":512,"vocabulary":8192,"max_batch_tokens":4096,"slots":1}"#,
    );
    let cost = UnitCost { step_ns: 3, member_ns: 2, prompt_ns: 1 };
    pinned(
        &Frame::Hello(Hello { chat: true, cost, age_ms: 12, ..hello }),
        [0x50, 0x4c, 1, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 215],
        br#"{"versions":[1,2],"software":"w 1","pid":7,"model":"m","fingerprint":"ab","positions":512,"vocabulary":8192,"max_batch_tokens":4096,"slots":1,"chat":true,"cost":{"step_ns":3,"member_ns":2,"prompt_ns":1},"age_ms":12}"#,
    );
}

#[test]
fn welcome() {
    pinned(
        &Frame::Welcome(Welcome { version: 1, max_batch_size: 50 }),
        [0x50, 0x4c, 1, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 33],
        br#"{"version":1,"max_batch_size":50}"#,
    );
}

#[test]
fn goodbye() {
    for (reason, header_length, payload) in [
        (GoodbyeReason::Version, 34, &br#"{"reason":"version","message":"x"}"#[..]),
        (GoodbyeReason::Drained, 34, br#"{"reason":"drained","message":"x"}"#),
        (GoodbyeReason::Protocol, 35, br#"{"reason":"protocol","message":"x"}"#),
        (GoodbyeReason::Internal, 35, br#"{"reason":"internal","message":"x"}"#),
        (GoodbyeReason::Other, 32, br#"{"reason":"other","message":"x"}"#),
    ] {
        pinned(
            &Frame::Goodbye(Goodbye { reason, message: "x".into() }),
            [0x50, 0x4c, 1, 0x03, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, header_length],
            payload,
        );
    }
}

#[test]
fn credit() {
    pinned(
        &Frame::Credit { grant: 4_294_967_295 },
        [0x50, 0x4c, 1, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 20],
        br#"{"grant":4294967295}"#,
    );
}

#[test]
fn batch_with_only_what_is_needed() {
    let batch = Batch { options: Options::default(), members: vec![member(Prompt::Text("2+3=".into()), 128, 60_000)] };
    pinned(
        &Frame::Batch(BatchId(0x0102_0304_0506_0708), batch),
        [0x50, 0x4c, 1, 0x11, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 208],
        br#"{"options":{"sampling_topk":1,"sampling_topp":1.0,"sampling_temperature":1.0,"repetition_penalty":1.0,"no_repeat_ngram_size":0},"members":[{"prompt":{"text":"2+3="},"max_new_tokens":128,"deadline_ms":60000}]}"#,
    );
}

#[test]
fn batch_with_a_chat() {
    let said = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let chat = Prompt::Chat(vec![said("system", "Be brief."), said("user", "2+3?")]);
    let batch = Batch { options: Options::default(), members: vec![member(chat, 8, 1)] };
    pinned(
        &Frame::Batch(BatchId(1), batch),
        [0x50, 0x4c, 1, 0x11, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 14],
        br#"{"options":{"sampling_topk":1,"sampling_topp":1.0,"sampling_temperature":1.0,"repetition_penalty":1.0,"no_repeat_ngram_size":0},"members":[{"prompt":{"chat":[{"role":"system","content":"Be brief."},{"role":"user","content":"2+3?"}]},"max_new_tokens":8,"deadline_ms":1}]}"#,
    );
}

#[test]
fn batch_with_everything() {
    let options = Options {
        sampling_topk: 40,
        sampling_topp: 0.9,
        sampling_temperature: 0.7,
        repetition_penalty: 1.2,
        no_repeat_ngram_size: 3,
    };
    let resumed = Member {
        min_new_tokens: 2,
        stop: vec!["\n".into(), "é".into()],
        stop_token_ids: vec![7],
        chat_template_kwargs: std::iter::once(("a".to_owned(), json!({"b": [true]}))).collect(),
        stream: true,
        produced: vec![10, 11],
        sent: 5,
        fit: true,
        request_id: "r1".into(),
        traceparent: "00-1-2-03".into(),
        ..member(Prompt::Ids(vec![2, 300]), 8, 1)
    };
    pinned(
        &Frame::Batch(BatchId(1), Batch { options, members: vec![resumed] }),
        [0x50, 0x4c, 1, 0x11, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0x91],
        "{\"options\":{\"sampling_topk\":40,\"sampling_topp\":0.9,\"sampling_temperature\":0.7,\"repetition_penalty\":1.2,\"no_repeat_ngram_size\":3},\"members\":[{\"prompt\":{\"ids\":[2,300]},\"max_new_tokens\":8,\"fit\":true,\"min_new_tokens\":2,\"stop\":[\"\\n\",\"é\"],\"stop_token_ids\":[7],\"chat_template_kwargs\":{\"a\":{\"b\":[true]}},\"deadline_ms\":1,\"stream\":true,\"produced\":[10,11],\"sent\":5,\"request_id\":\"r1\",\"traceparent\":\"00-1-2-03\"}]}"
            .as_bytes(),
    );
}

#[test]
fn tokens() {
    let members = vec![
        MemberTokens { member: 0, ids: vec![5, 0x0001_0000], text: "é".into() },
        MemberTokens { member: 258, ids: Vec::new(), text: "ab".into() },
        MemberTokens { member: 3, ids: vec![7], text: String::new() },
    ];
    pinned(
        &Frame::Tokens(BatchId(9), members),
        [0x50, 0x4c, 1, 0x20, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 56],
        b"\x00\x00\x00\x03\
          \x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x02\x00\x00\x00\x05\x00\x01\x00\x00\xc3\xa9\
          \x00\x00\x01\x02\x00\x00\x00\x00\x00\x00\x00\x02ab\
          \x00\x00\x00\x03\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x07",
    );
}

#[test]
fn finished() {
    for (reason, length, payload) in [
        (
            FinishReason::Stop,
            85,
            &br#"{"members":[{"member":2,"reason":"stop","prompt_tokens":12,"completion_tokens":345}]}"#[..],
        ),
        (
            FinishReason::Length,
            87,
            br#"{"members":[{"member":2,"reason":"length","prompt_tokens":12,"completion_tokens":345}]}"#,
        ),
        (
            FinishReason::Deadline,
            89,
            br#"{"members":[{"member":2,"reason":"deadline","prompt_tokens":12,"completion_tokens":345}]}"#,
        ),
        (
            FinishReason::Cancelled,
            90,
            br#"{"members":[{"member":2,"reason":"cancelled","prompt_tokens":12,"completion_tokens":345}]}"#,
        ),
    ] {
        let ended = MemberFinished { member: 2, reason, prompt_tokens: 12, completion_tokens: 345 };
        pinned(
            &Frame::Finished(BatchId(9), vec![ended]),
            [0x50, 0x4c, 1, 0x21, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, length],
            payload,
        );
    }
}

#[test]
fn failed() {
    for (code, length, payload) in [
        (FailureCode::EmptyPrompt, 65, &br#"{"members":[{"member":0,"code":"empty_prompt","message":"none"}]}"#[..]),
        (FailureCode::TooManyTokens, 68, br#"{"members":[{"member":0,"code":"too_many_tokens","message":"none"}]}"#),
        (FailureCode::InvalidRequest, 68, br#"{"members":[{"member":0,"code":"invalid_request","message":"none"}]}"#),
        (FailureCode::NotResumable, 66, br#"{"members":[{"member":0,"code":"not_resumable","message":"none"}]}"#),
        (FailureCode::Engine, 59, br#"{"members":[{"member":0,"code":"engine","message":"none"}]}"#),
        (FailureCode::Internal, 61, br#"{"members":[{"member":0,"code":"internal","message":"none"}]}"#),
        (FailureCode::Other, 58, br#"{"members":[{"member":0,"code":"other","message":"none"}]}"#),
    ] {
        pinned(
            &Frame::Failed(BatchId(9), vec![MemberFailed { member: 0, code, message: "none".into() }]),
            [0x50, 0x4c, 1, 0x22, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, length],
            payload,
        );
    }
}

#[test]
fn yielded_and_cancel() {
    let header = |kind| [0x50, 0x4c, 1, kind, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 17];
    pinned(&Frame::Yielded(BatchId(9), vec![0, 3]), header(0x23), br#"{"members":[0,3]}"#);
    pinned(&Frame::Cancel(BatchId(9), vec![0, 3]), header(0x30), br#"{"members":[0,3]}"#);
}

#[test]
fn done() {
    pinned(
        &Frame::Done(BatchId(9), BatchCost { engine_us: 1500, cohorts: 2, steps: 30, forced_steps: 4, idle_us: 70 }),
        [0x50, 0x4c, 1, 0x24, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 71],
        br#"{"engine_us":1500,"cohorts":2,"steps":30,"forced_steps":4,"idle_us":70}"#,
    );
}

#[test]
fn heartbeat() {
    pinned(
        &Frame::Heartbeat(Heartbeat { steps: 12, silence_ms: 5000 }),
        [0x50, 0x4c, 1, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 30],
        br#"{"steps":12,"silence_ms":5000}"#,
    );
}

#[test]
fn frames_without_payload() {
    pinned(&Frame::Yield(BatchId(9)), [0x50, 0x4c, 1, 0x31, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0], b"");
    pinned(&Frame::Draining, [0x50, 0x4c, 1, 0x41, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], b"");
    pinned(&Frame::Release, [0x50, 0x4c, 1, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], b"");
}

#[test]
fn fields_and_names_of_later_versions_are_tolerated() {
    understood(
        [0x50, 0x4c, 1, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 27],
        br#"{"grant":1,"colour":[1,{}]}"#,
        &Frame::Credit { grant: 1 },
    );
    understood(
        [0x50, 0x4c, 1, 0x03, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 31],
        br#"{"reason":"moon","message":"x"}"#,
        &Frame::Goodbye(Goodbye { reason: GoodbyeReason::Other, message: "x".into() }),
    );
    understood(
        [0x50, 0x4c, 1, 0x22, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 60],
        br#"{"members":[{"member":0,"code":"sunspot","message":"none"}]}"#,
        &Frame::Failed(BatchId(9), vec![MemberFailed { member: 0, code: FailureCode::Other, message: "none".into() }]),
    );
}

#[test]
fn the_batch_number_is_not_read_where_none_belongs() {
    understood([0x50, 0x4c, 1, 0x41, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0], b"", &Frame::Draining);
}
