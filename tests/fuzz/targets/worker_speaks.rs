//! A worker that says anything: to a proxy with two clients, one of whom takes his answer as a stream. Whatever it says,
//! each client gets one answer that is whole, the proxy lives, and nothing is left over.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use pillion_fuzz::{Proxied, after};
use pillion_protocol::frame::{
    BatchCost, FailureCode, FinishReason, Frame, Goodbye, GoodbyeReason, Heartbeat, MemberFailed, MemberFinished,
    MemberTokens,
};
use pillion_protocol::{BatchId, codec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[derive(Arbitrary, Debug)]
enum Said {
    Raw(Vec<u8>),
    Credit(u8),
    Tokens(u8, Vec<(u8, Vec<u32>, String)>),
    Finished(u8, Vec<(u8, u8, u32, u32)>),
    Failed(u8, Vec<(u8, String)>),
    Yielded(u8, Vec<u8>),
    Done(u8, u32, u32, u32),
    Heartbeat(u32, u32),
    Draining,
    Goodbye,
    /// It waits for so many milliseconds.
    Pause(u16),
}

impl Said {
    fn frame(self) -> Option<Frame> {
        let id = |batch| BatchId(u64::from(batch) % 4);
        Some(match self {
            Self::Raw(_) | Self::Pause(_) => return None,
            Self::Credit(grant) => Frame::Credit { grant: grant.into() },
            Self::Tokens(batch, members) => Frame::Tokens(
                id(batch),
                members
                    .into_iter()
                    .map(|(member, ids, text)| MemberTokens { member: u32::from(member) % 3, ids, text })
                    .collect(),
            ),
            Self::Finished(batch, members) => Frame::Finished(
                id(batch),
                members
                    .into_iter()
                    .map(|(member, reason, prompt_tokens, completion_tokens)| MemberFinished {
                        member: u32::from(member) % 3,
                        reason: match reason % 4 {
                            0 => FinishReason::Stop,
                            1 => FinishReason::Length,
                            2 => FinishReason::Deadline,
                            _ => FinishReason::Cancelled,
                        },
                        prompt_tokens,
                        completion_tokens,
                    })
                    .collect(),
            ),
            Self::Failed(batch, members) => Frame::Failed(
                id(batch),
                members
                    .into_iter()
                    .map(|(member, message)| MemberFailed {
                        member: u32::from(member) % 3,
                        code: FailureCode::Engine,
                        message,
                    })
                    .collect(),
            ),
            Self::Yielded(batch, members) => {
                Frame::Yielded(id(batch), members.into_iter().map(|member| u32::from(member) % 3).collect())
            }
            Self::Done(batch, engine_us, cohorts, steps) => Frame::Done(
                id(batch),
                BatchCost { engine_us: engine_us.into(), cohorts, steps: steps.into(), ..BatchCost::default() },
            ),
            Self::Heartbeat(steps, silence_ms) => {
                Frame::Heartbeat(Heartbeat { steps: steps.into(), silence_ms: silence_ms.into() })
            }
            Self::Draining => Frame::Draining,
            Self::Goodbye => Frame::Goodbye(Goodbye { reason: GoodbyeReason::Internal, message: "so long".to_owned() }),
        })
    }
}

fuzz_target!(|said: Vec<Said>| {
    pillion_fuzz::run(async move {
        let proxied = Proxied::new();
        let mut worker = proxied.worker().await;
        let whole = proxied.ask("/generate", r#"{"text": "a b c", "timeout_ms": 3000}"#);
        let streamed = proxied.ask("/generate_stream", r#"{"text": ["d", "e"], "timeout_ms": 3000}"#);
        after(5).await;
        let (mut heard, mut says) = tokio::io::split(&mut worker);
        let speak = async {
            for said in said.into_iter().take(64) {
                let mut wire = BytesMut::new();
                match said {
                    Said::Pause(milliseconds) => after(u64::from(milliseconds) % 2000).await,
                    Said::Raw(bytes) => wire.extend_from_slice(&bytes),
                    other => {
                        if let Some(frame) = other.frame() {
                            // What has no room in a frame is not said.
                            let _ = codec::encode(&frame, &mut wire);
                        }
                    }
                }
                if says.write_all(&wire).await.is_err() {
                    return;
                }
                after(1).await;
            }
        };
        let hear = async {
            let mut buffer = [0; 4096];
            while heard.read(&mut buffer).await.is_ok_and(|bytes| bytes > 0) {}
        };
        tokio::select! { () = speak => {} () = hear => {} }
        drop(worker);
        for answer in [whole, streamed] {
            pillion_fuzz::is_whole(&answer.await.expect("no client panics"));
        }
        proxied.is_empty().await;
    });
});
