//! Tests of a session between a simulated proxy, over an in-memory pipe, and real engine threads with a scripted engine.

use std::sync::Arc;
use std::time::Duration;

use pillion_protocol::VERSIONS;
use pillion_protocol::connection::{FrameReader, FrameWriter};
use pillion_protocol::frame::{
    Batch, FinishReason, Hello, Member, MemberFailed, MemberFinished, MemberTokens, Options, UnitCost, Welcome,
};
use pillion_protocol::{BatchId, Frame};
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, mpsc};

use super::*;
use crate::check::Health;
use crate::engine::script::Script;
use crate::engine::{Engine, EnginePool};
use crate::shared::Shared;
use crate::shared::tests::shared;
use crate::tokens::samples::byte_tokens;
use crate::tokens::tests::member as sample;

mod credit;
mod ending;
mod members;

/// A worker with a scripted engine.
pub(crate) fn worker(engine: &Arc<Script>, slots: u32) -> Worker {
    let shared = Arc::new(shared(slots as usize));
    let engine: Arc<dyn Engine> = Arc::<Script>::clone(engine);
    Worker {
        hello: Hello {
            versions: VERSIONS.to_vec(),
            software: "test".to_owned(),
            pid: 0,
            model: "script".to_owned(),
            fingerprint: "f".to_owned(),
            positions: 1000,
            vocabulary: 257,
            max_batch_tokens: 10_000,
            slots,
            chat: true,
            cost: UnitCost::default(),
            age_ms: 0,
        },
        loaded: Instant::now(),
        health: Health::default(),
        engines: EnginePool::start(&engine, &shared).unwrap(),
        shared,
        places: Arc::new(Semaphore::new(2 * slots as usize)),
        drain_timeout: Duration::from_secs(5),
        log_prompts: false,
    }
}

/// The proxy's end of the connection.
pub(crate) struct Proxy {
    pub(crate) reader: FrameReader<ReadHalf<DuplexStream>>,
    pub(crate) writer: FrameWriter<WriteHalf<DuplexStream>>,
    pub(crate) controls: mpsc::Sender<Control>,
}

/// The result of one batch.
#[derive(Debug, Default)]
struct Outcome {
    text: Vec<String>,
    ids: Vec<Vec<u32>>,
    finished: Vec<MemberFinished>,
    failed: Vec<MemberFailed>,
    yielded: Vec<u32>,
    frames: Vec<Frame>,
}

impl Proxy {
    /// Answers the first frame, HELLO, with WELCOME.
    pub(crate) async fn welcome(&mut self) {
        assert!(matches!(self.next().await, Frame::Hello(_)));
        self.send(&Frame::Welcome(Welcome { version: 1, max_batch_size: 50 })).await;
    }

    pub(crate) async fn send(&mut self, frame: &Frame) {
        self.writer.put(frame).unwrap();
        self.writer.flush().await.unwrap();
    }

    async fn batch(&mut self, id: u64, options: Options, members: Vec<Member>) {
        self.send(&Frame::Batch(BatchId(id), Batch { options, members })).await;
    }

    /// The next frame that is not a heartbeat.
    pub(crate) async fn next(&mut self) -> Frame {
        loop {
            match self.reader.next().await.unwrap().expect("the worker closed the connection") {
                Frame::Heartbeat(_) => {}
                frame => return frame,
            }
        }
    }

    /// The next frame that is neither a heartbeat nor a credit.
    async fn answer(&mut self) -> Frame {
        loop {
            match self.next().await {
                Frame::Credit { .. } => {}
                frame => return frame,
            }
        }
    }

    async fn expect_credit(&mut self, grant: u32) {
        assert_eq!(self.next().await, Frame::Credit { grant });
    }

    /// Collects the frames of a batch. Checks that every member ends once, after its TOKENS, and that DONE comes last.
    async fn outcome(&mut self, id: u64, members: usize) -> Outcome {
        let mut outcome =
            Outcome { text: vec![String::new(); members], ids: vec![Vec::new(); members], ..Outcome::default() };
        let mut ended = vec![false; members];
        let mut end =
            |member: u32| assert!(!std::mem::replace(&mut ended[member as usize], true), "{member} ended twice");
        loop {
            let frame = self.next().await;
            match frame.clone() {
                Frame::Credit { .. } => {}
                Frame::Tokens(batch, tokens) => {
                    assert_eq!(batch, BatchId(id));
                    for MemberTokens { member, ids, text } in tokens {
                        outcome.text[member as usize].push_str(&text);
                        outcome.ids[member as usize].extend(ids);
                    }
                }
                Frame::Finished(_, members) => {
                    members.iter().for_each(|member| end(member.member));
                    outcome.finished.extend(members);
                }
                Frame::Failed(_, members) => {
                    members.iter().for_each(|member| end(member.member));
                    outcome.failed.extend(members);
                }
                Frame::Yielded(_, members) => {
                    members.iter().for_each(|&member| end(member));
                    outcome.yielded.extend(members);
                }
                Frame::Done(batch, _) => {
                    assert_eq!(batch, BatchId(id));
                    assert!(ended.iter().all(|ended| *ended), "DONE before every member's end");
                    outcome.frames.push(frame);
                    outcome.finished.sort_by_key(|member| member.member);
                    return outcome;
                }
                other => panic!("{other:?}"),
            }
            outcome.frames.push(frame);
        }
    }
}

/// The two ends of a pipe: the worker's halves, and a proxy with the worker's controls.
pub(crate) fn pipe() -> ((ReadHalf<DuplexStream>, WriteHalf<DuplexStream>), Proxy, mpsc::Receiver<Control>) {
    let (near, far) = tokio::io::duplex(1 << 20);
    let (reader, writer) = tokio::io::split(far);
    let (controls, receiver) = mpsc::channel(8);
    let proxy = Proxy { reader: FrameReader::new(reader), writer: FrameWriter::new(writer), controls };
    (tokio::io::split(near), proxy, receiver)
}

/// Runs a session with a simulated proxy after the handshake. Returns how the session ended.
fn play(worker: &Worker, proxy: impl AsyncFnOnce(Proxy)) -> End {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let ((reader, writer), mut far, mut controls) = pipe();
        let session = run(reader, writer, worker, &mut controls);
        let far = async {
            far.welcome().await;
            proxy(far).await;
        };
        let both = async { tokio::join!(session, far) };
        let (end, ()) = tokio::time::timeout(Duration::from_secs(20), both).await.expect("the test takes too long");
        end.unwrap()
    })
}

/// Runs a test while no engine is at work, so that time can be paused.
pub(crate) fn paused<T>(body: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(body)
}

fn member(text: &str, max_new_tokens: u32) -> Member {
    Member { max_new_tokens, ..sample(text) }
}

fn reasons(outcome: &Outcome) -> Vec<(FinishReason, u32)> {
    outcome.finished.iter().map(|member| (member.reason, member.completion_tokens)).collect()
}
