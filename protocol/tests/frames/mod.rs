//! A frame of every type, for tests that try all types.

use pillion_protocol::frame::{
    Batch, BatchCost, FailureCode, FinishReason, Goodbye, GoodbyeReason, Heartbeat, Hello, Member, MemberFailed,
    MemberFinished, MemberTokens, Options, Prompt, UnitCost, Welcome,
};
use pillion_protocol::{BatchId, Frame};

/// Short frames of every type, in the order of their type bytes.
pub(crate) fn one_of_each() -> Vec<Frame> {
    let id = BatchId(u64::MAX);
    vec![
        Frame::Hello(Hello {
            versions: vec![1],
            software: "a worker".into(),
            pid: 0,
            model: "größe".into(),
            fingerprint: "00ff".into(),
            positions: 64,
            vocabulary: 100,
            max_batch_tokens: 640,
            slots: 2,
            chat: true,
            cost: UnitCost { step_ns: 3, member_ns: 2, prompt_ns: 1 },
            age_ms: 1500,
        }),
        Frame::Welcome(Welcome { version: 1, max_batch_size: 50 }),
        Frame::Goodbye(Goodbye { reason: GoodbyeReason::Drained, message: "\u{0}\"\\".into() }),
        Frame::Credit { grant: 1 },
        Frame::Batch(
            id,
            Batch {
                options: Options { sampling_topp: 0.1, ..Options::default() },
                members: vec![Member {
                    prompt: Prompt::Text("𝄞".into()),
                    max_new_tokens: 1,
                    fit: true,
                    min_new_tokens: 1,
                    stop: vec!["END".into()],
                    stop_token_ids: vec![u32::MAX],
                    chat_template_kwargs: std::iter::once(("é".to_owned(), serde_json::json!([null, 0.5]))).collect(),
                    deadline_ms: u64::MAX,
                    stream: true,
                    produced: vec![u32::MAX],
                    sent: 3,
                    request_id: "r".into(),
                    traceparent: "t".into(),
                }],
            },
        ),
        Frame::Tokens(id, vec![MemberTokens { member: 1, ids: vec![2, 3], text: "é𝄞".into() }]),
        Frame::Finished(
            id,
            vec![MemberFinished { member: 0, reason: FinishReason::Stop, prompt_tokens: 1, completion_tokens: 0 }],
        ),
        Frame::Failed(id, vec![MemberFailed { member: 0, code: FailureCode::Engine, message: "no".into() }]),
        Frame::Yielded(id, vec![0, u32::MAX]),
        Frame::Done(id, BatchCost { engine_us: 1, cohorts: 1, steps: 2, forced_steps: 0, idle_us: 0 }),
        Frame::Cancel(id, Vec::new()),
        Frame::Yield(id),
        Frame::Heartbeat(Heartbeat { steps: 0, silence_ms: 1000 }),
        Frame::Draining,
        Frame::Release,
    ]
}
