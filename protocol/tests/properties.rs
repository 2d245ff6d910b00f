//! Properties that hold for all frames and all bytes. A failure prints the case and its seed.

use bytes::{BufMut, BytesMut};
use pillion_protocol::frame::{
    Batch, BatchCost, FailureCode, FinishReason, Goodbye, GoodbyeReason, Heartbeat, Hello, Member, MemberFailed,
    MemberFinished, MemberTokens, Message, Options, Prompt, UnitCost, Welcome,
};
use pillion_protocol::{BatchId, Frame, MemberIndex, codec};
use proptest::collection::vec;
use proptest::prelude::*;

fn text() -> impl Strategy<Value = String> {
    prop_oneof![".{0,40}", vec(any::<char>(), 0..20).prop_map(String::from_iter)]
}

fn finite() -> impl Strategy<Value = f32> {
    prop_oneof![any::<f32>().prop_filter("JSON has no infinity", |x| x.is_finite()), 0.0f32..2.0]
}

fn options() -> impl Strategy<Value = Options> {
    (any::<u32>(), finite(), finite(), finite(), any::<u32>()).prop_map(
        |(sampling_topk, sampling_topp, sampling_temperature, repetition_penalty, no_repeat_ngram_size)| Options {
            sampling_topk,
            sampling_topp,
            sampling_temperature,
            repetition_penalty,
            no_repeat_ngram_size,
        },
    )
}

fn prompt() -> impl Strategy<Value = Prompt> {
    let message = (text(), text()).prop_map(|(role, content)| Message { role, content });
    prop_oneof![
        text().prop_map(Prompt::Text),
        vec(any::<u32>(), 0..8).prop_map(Prompt::Ids),
        vec(message, 0..3).prop_map(Prompt::Chat),
    ]
}

fn member() -> impl Strategy<Value = Member> {
    let limits = (any::<u32>(), any::<u32>(), any::<u64>());
    let resumed = (vec(any::<u32>(), 0..8), any::<u64>());
    let names = (text(), text());
    let stops = (vec(text(), 0..3), vec(any::<u32>(), 0..3), vec((text(), text()), 0..3));
    (prompt(), limits, stops, any::<[bool; 2]>(), resumed, names).prop_map(
        |(prompt, (max_new_tokens, min_new_tokens, deadline_ms), stops, [stream, fit], (produced, sent), names)| {
            Member {
                prompt,
                max_new_tokens,
                fit,
                min_new_tokens,
                stop: stops.0,
                stop_token_ids: stops.1,
                chat_template_kwargs: stops.2.into_iter().map(|(name, value)| (name, value.into())).collect(),
                deadline_ms,
                stream,
                produced,
                sent,
                request_id: names.0,
                traceparent: names.1,
            }
        },
    )
}

/// Whether the codec turns a batch into the same bytes as serde does. The codec writes a part of each batch without serde.
fn as_serde_writes(batch: &Batch) -> bool {
    let mut wire = BytesMut::new();
    codec::encode(&Frame::Batch(BatchId(1), batch.clone()), &mut wire).unwrap();
    wire[codec::HEADER..] == serde_json::to_vec(batch).unwrap()
}

fn hello() -> impl Strategy<Value = Hello> {
    let says = (text(), text(), text(), any::<bool>());
    (vec(any::<u8>(), 0..8), says, any::<[u32; 5]>(), any::<[u64; 4]>()).prop_map(
        |(versions, says, [pid, positions, vocabulary, max_batch_tokens, slots], times)| Hello {
            versions,
            software: says.0,
            pid,
            model: says.1,
            fingerprint: says.2,
            positions,
            vocabulary,
            max_batch_tokens,
            slots,
            chat: says.3,
            cost: UnitCost { step_ns: times[0], member_ns: times[1], prompt_ns: times[2] },
            age_ms: times[3],
        },
    )
}

fn goodbye() -> impl Strategy<Value = Goodbye> {
    use GoodbyeReason::{Drained, Internal, Other, Protocol, Version};
    (prop::sample::select(vec![Version, Drained, Protocol, Internal, Other]), text())
        .prop_map(|(reason, message)| Goodbye { reason, message })
}

fn tokens() -> impl Strategy<Value = MemberTokens> {
    (any::<MemberIndex>(), vec(any::<u32>(), 0..8), text()).prop_map(|(member, ids, text)| MemberTokens {
        member,
        ids,
        text,
    })
}

fn finished() -> impl Strategy<Value = MemberFinished> {
    use FinishReason::{Cancelled, Deadline, Length, Stop};
    (any::<[u32; 3]>(), prop::sample::select(vec![Stop, Length, Deadline, Cancelled])).prop_map(
        |([member, prompt_tokens, completion_tokens], reason)| MemberFinished {
            member,
            reason,
            prompt_tokens,
            completion_tokens,
        },
    )
}

fn failed() -> impl Strategy<Value = MemberFailed> {
    use FailureCode::{EmptyPrompt, Engine, InvalidRequest, NotResumable, Other, TooManyTokens};
    let codes = vec![EmptyPrompt, TooManyTokens, InvalidRequest, NotResumable, Engine, Other];
    (any::<u32>(), prop::sample::select(codes), text()).prop_map(|(member, code, message)| MemberFailed {
        member,
        code,
        message,
    })
}

fn frame() -> impl Strategy<Value = Frame> {
    let id = || any::<u64>().prop_map(BatchId);
    prop_oneof![
        hello().prop_map(Frame::Hello),
        (any::<u8>(), any::<u32>())
            .prop_map(|(version, max_batch_size)| Frame::Welcome(Welcome { version, max_batch_size })),
        goodbye().prop_map(Frame::Goodbye),
        any::<u32>().prop_map(|grant| Frame::Credit { grant }),
        (id(), options(), vec(member(), 0..4))
            .prop_map(|(id, options, members)| Frame::Batch(id, Batch { options, members })),
        (id(), vec(tokens(), 0..5)).prop_map(|(id, members)| Frame::Tokens(id, members)),
        (id(), vec(finished(), 0..5)).prop_map(|(id, members)| Frame::Finished(id, members)),
        (id(), vec(failed(), 0..5)).prop_map(|(id, members)| Frame::Failed(id, members)),
        (id(), vec(any::<u32>(), 0..9)).prop_map(|(id, members)| Frame::Yielded(id, members)),
        (id(), any::<[u64; 4]>(), any::<u32>()).prop_map(|(id, [engine_us, steps, forced_steps, idle_us], cohorts)| {
            Frame::Done(id, BatchCost { engine_us, cohorts, steps, forced_steps, idle_us })
        }),
        (id(), vec(any::<u32>(), 0..9)).prop_map(|(id, members)| Frame::Cancel(id, members)),
        id().prop_map(Frame::Yield),
        any::<[u64; 2]>().prop_map(|[steps, silence_ms]| Frame::Heartbeat(Heartbeat { steps, silence_ms })),
        Just(Frame::Draining),
        Just(Frame::Release),
    ]
}

/// Decodes frames until the bytes are used up, incomplete or refused. Returns the number of frames.
fn drain(wire: &mut BytesMut) -> usize {
    std::iter::from_fn(|| codec::decode(wire).ok().flatten()).count()
}

/// A header whose length may be wrong and whose other fields are right, and any payload.
fn nearly_a_frame() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop::sample::select(vec![
        0x01u8, 0x02, 0x03, 0x10, 0x11, 0x20, 0x20, 0x20, 0x21, 0x22, 0x23, 0x24, 0x30, 0x31, 0x40, 0x41, 0x42,
    ]);
    let small = vec(prop_oneof![Just(0u8), 0u8..4, any::<u8>()], 0..64);
    (kind, small, prop::option::weighted(0.2, any::<u32>())).prop_map(|(kind, payload, lie)| {
        let mut wire = vec![b'P', b'L', 1, kind, 0, 0, 0, 0, 0, 0, 0, 1];
        wire.put_u32(lie.unwrap_or_else(|| u32::try_from(payload.len()).unwrap()));
        wire.extend_from_slice(&payload);
        wire
    })
}

/// The most bytes that a buffer may take: twice the longest frame, since the buffer's growth rounds up.
const MOST: usize = 2 * (64 * 1024 * 1024 + codec::HEADER);

proptest! {
    #[test]
    fn what_is_written_is_read_back(frames in vec(frame(), 1..4)) {
        let mut wire = BytesMut::new();
        for frame in &frames {
            codec::encode(frame, &mut wire).unwrap();
        }
        for frame in &frames {
            let read = codec::decode(&mut wire).unwrap();
            prop_assert_eq!(read.as_ref(), Some(frame));
        }
        prop_assert!(wire.is_empty());
    }

    #[test]
    fn a_batch_is_written_as_serde_writes_it(options in options(), members in vec(member(), 0..4)) {
        let batch = Batch { options, members };
        prop_assert!(as_serde_writes(&batch));
    }

    #[test]
    fn any_bytes_are_read_or_refused_without_a_panic(bytes in vec(any::<u8>(), 0..200)) {
        let mut wire = BytesMut::from(&bytes[..]);
        drain(&mut wire);
        prop_assert!(wire.capacity() <= MOST);
    }

    #[test]
    fn any_payload_is_read_or_refused_without_a_panic(bytes in nearly_a_frame()) {
        let mut wire = BytesMut::from(&bytes[..]);
        drain(&mut wire);
        prop_assert!(wire.capacity() <= MOST);
    }

    #[test]
    fn a_frame_with_a_changed_byte_is_read_or_refused_without_a_panic(
        frame in frame(), at in any::<prop::sample::Index>(), to in any::<u8>(),
    ) {
        let mut wire = BytesMut::new();
        codec::encode(&frame, &mut wire).unwrap();
        let at = at.index(wire.len());
        wire[at] = to;
        drain(&mut wire);
        prop_assert!(wire.capacity() <= MOST);
    }
}
