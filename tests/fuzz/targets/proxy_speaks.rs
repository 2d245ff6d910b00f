//! A proxy that says anything: to a worker with an engine that ends every member after a few tokens. Whatever it says, the
//! session ends in good order, and the engine's threads too.

#![no_main]

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use pillion_protocol::frame::{Batch, Frame, Goodbye, GoodbyeReason, Member, Message, Options, Prompt, Welcome};
use pillion_protocol::{BatchId, VERSIONS, codec};
use pillion_worker::budget::Budget;
use pillion_worker::check::Health;
use pillion_worker::engine::{Call, Engine, EngineFailed, EnginePool, NewToken};
use pillion_worker::liveness::Liveness;
use pillion_worker::memory::{Allowance, Need};
use pillion_worker::model::{Model, Overrides};
use pillion_worker::pace::Pace;
use pillion_worker::session::{self, Worker};
use pillion_worker::shared::{Limits, Shared, THREADS_PER_SLOT};
use pillion_worker::tokens::Tokens;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::sync::{Semaphore, mpsc};

/// Gives every member the same few tokens.
struct Brief;

impl Engine for Brief {
    fn generate(
        &self,
        call: &Call<'_>,
        on_token: &mut (dyn FnMut(NewToken) -> bool + Send),
    ) -> Result<(), EngineFailed> {
        let mut ended = vec![false; call.prompts.len()];
        for step in 0..u64::from(call.most.min(3)) {
            for (member, ended) in ended.iter_mut().enumerate().filter(|(_, ended)| !**ended) {
                *ended = on_token(NewToken { step, member, id: 40 });
            }
        }
        Ok(())
    }
}

#[derive(Arbitrary, Debug)]
enum Said<'a> {
    Raw(&'a [u8]),
    Batch(u8, u8, u16, u16, Vec<Rider>),
    Cancel(u8, Vec<u8>),
    Yield(u8),
    Release,
    Goodbye,
}

#[derive(Arbitrary, Debug)]
struct Rider {
    prompt: Asked,
    max: u16,
    min: u16,
    stop: Vec<String>,
    stop_token_ids: Vec<u16>,
    kwargs: Vec<(String, String)>,
    deadline_ms: u16,
    stream: bool,
    produced: Vec<u16>,
    sent: u16,
}

#[derive(Arbitrary, Debug)]
enum Asked {
    Text(String),
    Ids(Vec<u16>),
    Chat(Vec<(bool, String)>),
}

impl Rider {
    fn member(self) -> Member {
        let prompt = match self.prompt {
            Asked::Text(text) => Prompt::Text(text),
            Asked::Ids(ids) => Prompt::Ids(ids.into_iter().map(u32::from).collect()),
            Asked::Chat(said) => Prompt::Chat(
                said.into_iter()
                    .map(|(user, content)| Message {
                        role: if user { "user" } else { "assistant" }.to_owned(),
                        content,
                    })
                    .collect(),
            ),
        };
        Member {
            prompt,
            max_new_tokens: self.max.into(),
            fit: false,
            min_new_tokens: self.min.into(),
            stop: self.stop,
            stop_token_ids: self.stop_token_ids.into_iter().map(u32::from).collect(),
            chat_template_kwargs: self.kwargs.into_iter().map(|(name, value)| (name, value.into())).collect(),
            deadline_ms: self.deadline_ms.into(),
            stream: self.stream,
            produced: self.produced.into_iter().map(u32::from).collect(),
            sent: self.sent.into(),
            request_id: String::new(),
            traceparent: String::new(),
        }
    }
}

impl Said<'_> {
    fn put(self, wire: &mut BytesMut) {
        let id = |batch| BatchId(u64::from(batch) % 4);
        let frame = match self {
            Self::Raw(bytes) => return wire.extend_from_slice(bytes),
            Self::Batch(batch, topk, topp, penalty, members) => Frame::Batch(
                id(batch),
                Batch {
                    options: Options {
                        sampling_topk: topk.into(),
                        sampling_topp: f32::from(topp) / 1000.0,
                        repetition_penalty: f32::from(penalty) / 1000.0,
                        ..Options::default()
                    },
                    members: members.into_iter().take(8).map(Rider::member).collect(),
                },
            ),
            Self::Cancel(batch, members) => Frame::Cancel(id(batch), members.into_iter().map(u32::from).collect()),
            Self::Yield(batch) => Frame::Yield(id(batch)),
            Self::Release => Frame::Release,
            Self::Goodbye => Frame::Goodbye(Goodbye { reason: GoodbyeReason::Drained, message: String::new() }),
        };
        let _ = codec::encode(&frame, wire);
    }
}

fn shared() -> Arc<Shared> {
    static MODEL: OnceLock<Model> = OnceLock::new();
    let model = MODEL.get_or_init(|| {
        let builtin = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/models/builtin");
        Model::open(&builtin, &Overrides::default()).expect("the built-in model")
    });
    static SHARED: OnceLock<Arc<Shared>> = OnceLock::new();
    Arc::clone(SHARED.get_or_init(|| {
        Arc::new(Shared {
            tokens: Tokens::load(model).expect("its tokenizer"),
            pace: Pace::default(),
            liveness: Liveness::new(THREADS_PER_SLOT, 1, Instant::now()),
            limits: Limits {
                positions: model.positions,
                slots: 1,
                top_p_candidates: 100,
                allowance: Allowance { need: Need::of(&model.description, 4), bytes: 1 << 26 },
                window: 0,
            },
            memory: AtomicU64::new(1 << 26),
            is_on_processor: false,
            budget: Budget::new(10_000),
            held_back: Duration::from_secs(60),
        })
    }))
}

fuzz_target!(|said: Vec<Said<'_>>| {
    let mut wire = BytesMut::new();
    let welcome = Welcome { version: VERSIONS[0], max_batch_size: 50 };
    codec::encode(&Frame::Welcome(welcome), &mut wire).expect("a frame");
    said.into_iter().take(32).for_each(|said| said.put(&mut wire));
    let shared = shared();
    let engine: Arc<dyn Engine> = Arc::new(Brief);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let worker = Worker {
            hello: pillion_fuzz::hello(shared.limits.positions, shared.tokens.vocabulary(), 1),
            loaded: tokio::time::Instant::now(),
            health: Health::default(),
            engines: EnginePool::start(&engine, &shared).expect("threads"),
            shared,
            places: Arc::new(Semaphore::new(2)),
            drain_timeout: Duration::from_secs(1),
            log_prompts: false,
        };
        let (proxy, end) = duplex(64 * 1024);
        let (reader, writer) = tokio::io::split(end);
        let (_stay, mut controls) = mpsc::channel(1);
        let (mut heard, mut says) = tokio::io::split(proxy);
        let talk = async {
            if says.write_all(&wire).await.is_ok() {
                // What it has begun may take a moment; then the proxy is gone.
                tokio::time::sleep(Duration::from_millis(1)).await;
                let _ = says.shutdown().await;
            }
        };
        let hear = async {
            let mut buffer = vec![0; 65536];
            while heard.read(&mut buffer).await.is_ok_and(|bytes| bytes > 0) {}
        };
        let session = async {
            let ended = session::run(reader, writer, &worker, &mut controls).await;
            assert!(ended.is_ok(), "the handshake was as it should be");
        };
        let all = async { tokio::join!(session, talk, hear) };
        tokio::time::timeout(Duration::from_secs(20), all).await.expect("the session ends");
    });
});
