//! The simulated loads on which the batching policy is judged.

use std::time::Duration;

use super::{Clients, Engine, Host, Request, Rule, Setting, simulate};

/// Models with a fixed time of 0.4 ms to 500 ms for each batch. A name has this time, and the time that each ordinary
/// request adds.
pub const MODELS: [(&str, Engine); 6] = [
    ("small, 0.4 + 0.11 ms", engine(400, 110)),
    ("2 + 0.2 ms", engine(2_000, 200)),
    ("10 + 0.6 ms", engine(10_000, 600)),
    ("OPT-125m, 135 + 6 ms", engine(135_000, 6_000)),
    ("GPU, 30 + 0.05 ms", engine(30_000, 50)),
    ("500 + 30 ms", engine(500_000, 30_000)),
];
/// The small model on one processor core, with measured times. Its steps take longer as answers grow.
const MEASURED: (&str, Engine) = (
    "small, as measured",
    Engine {
        step: Duration::from_micros(46),
        member: Duration::from_nanos(6_400),
        prompt: Duration::from_nanos(6_700),
        context: Duration::from_nanos(120),
        told: true,
    },
);

const SHORT: Request = Request::ORDINARY;
const LONG_ANSWER: Request = Request { answer: 200, ..SHORT };
const LONG_PROMPT: Request = Request { prompt: 200, ..SHORT };
/// A load lasts as long as an engine takes for this number of batches of forty ordinary requests.
const BATCHES: u32 = 200;
/// The same number for loads with requests of several kinds.
const MIXED_BATCHES: u32 = 300;

/// A load with its name.
#[derive(Clone, Debug)]
pub struct Load {
    /// Names the model and the clients in tables.
    pub name: String,
    /// The load's setting.
    pub setting: Setting,
}

const fn engine(fixed_us: u64, member_us: u64) -> Engine {
    Engine::of(Duration::from_micros(fixed_us), Duration::from_micros(member_us))
}

const fn users(users: usize) -> Clients {
    Clients::Closed { users, think: Duration::ZERO }
}

/// The kinds of clients, with names, that are tried with one engine and ordinary requests.
pub fn engine_loads(engine: &Engine) -> Vec<(&'static str, Clients)> {
    let capacity = 40.0 / engine.time(40).as_secs_f64();
    let think = engine.time(40);
    vec![
        ("1 user", users(1)),
        ("2 users", users(2)),
        ("40 users", users(40)),
        ("80 users", users(80)),
        ("40 users who think", Clients::Closed { users: 40, think }),
        ("open, 20 %", Clients::Open { rate: 0.2 * capacity }),
        ("open, 50 %", Clients::Open { rate: 0.5 * capacity }),
        ("open, 70 %", Clients::Open { rate: 0.7 * capacity }),
        ("open, 90 %", Clients::Open { rate: 0.9 * capacity }),
        ("bursts of 40", Clients::Bursts { size: 40, every: 3 * think }),
    ]
}

/// All loads: one engine with equal requests, one engine with different requests, several engines, and requests whose
/// bodies come late.
pub fn loads() -> Vec<Load> {
    let alike = MODELS.into_iter().flat_map(|(model, engine)| {
        let of = move |(name, clients)| load(format!("{model}: {name}"), clients, &[engine]);
        engine_loads(&engine).into_iter().map(of)
    });
    alike.chain(mixes()).chain(several_engines()).chain(late_bodies()).collect()
}

/// Loads of short and long requests for one engine.
fn mixes() -> Vec<Load> {
    let weight = |weight, request| Request { weight, ..request };
    let few_long = || vec![weight(9.0, SHORT), LONG_ANSWER];
    let half_long = || vec![SHORT, LONG_ANSWER];
    let half_prompts = || vec![SHORT, LONG_PROMPT];
    let spread = || [5, 10, 20, 40, 60].map(|prompt| Request { prompt, ..SHORT }).to_vec();
    let [_, _, medium, opt, gpu, _] = MODELS;
    let with_prompts = |(model, engine): (_, Engine)| (model, Engine { prompt: engine.member / 2, ..engine });
    let models = [MEASURED, with_prompts(medium), with_prompts(opt), with_prompts(gpu)];
    models
        .into_iter()
        .flat_map(|(model, engine)| {
            let of = |name: &str, requests, clients| mixed(format!("{model}: {name}"), requests, clients, &[engine]);
            let open = |name: &str, requests: Vec<Request>, share| {
                let capacity = capacity(&of(name, requests.clone(), users(40)).setting);
                of(name, requests, Clients::Open { rate: share * capacity })
            };
            [
                of("1 in 10 answers long, 40 users", few_long(), users(40)),
                of("1 in 10 answers long, 80 users", few_long(), users(80)),
                open("1 in 10 answers long, open, 20 %", few_long(), 0.2),
                open("1 in 10 answers long, open, 50 %", few_long(), 0.5),
                open("1 in 10 answers long, open, 80 %", few_long(), 0.8),
                of("half of the answers long, 40 users", half_long(), users(40)),
                open("half of the answers long, open, 80 %", half_long(), 0.8),
                of("half of the prompts long, 40 users", half_prompts(), users(40)),
                open("half of the prompts long, open, 80 %", half_prompts(), 0.8),
                of("prompts of 5 to 60 tokens, 40 users", spread(), users(40)),
            ]
        })
        .collect()
}

/// Loads for several workers, which share the requests.
fn several_engines() -> Vec<Load> {
    let [small, _, medium, opt, gpu, _] = MODELS;
    let mut loads = Vec::new();
    for (model, engine) in [small, medium, opt, gpu] {
        let capacity = 2.0 * 40.0 / engine.time(40).as_secs_f64();
        let two = |name: &str, clients| load(format!("{model}, 2 engines: {name}"), clients, &[engine; 2]);
        let few_long = vec![Request { weight: 9.0, ..SHORT }, LONG_ANSWER];
        loads.extend([
            two("20 users", users(20)),
            two("40 users", users(40)),
            two("160 users", users(160)),
            two("open, 20 %", Clients::Open { rate: 0.2 * capacity }),
            two("open, 70 %", Clients::Open { rate: 0.7 * capacity }),
            two("bursts of 40", Clients::Bursts { size: 40, every: 3 * engine.time(40) }),
            mixed(format!("{model}, 2 engines: 1 in 10 answers long, 80 users"), few_long, users(80), &[engine; 2]),
            load(format!("{model}, 4 engines: 40 users"), users(40), &[engine; 4]),
        ]);
    }
    let (_, engine) = opt;
    let slow = Engine { step: 3 * engine.step, member: 3 * engine.member, ..engine };
    loads.push(load("OPT-125m beside one three times as slow: 160 users".to_owned(), users(160), &[engine, slow]));
    loads
}

/// Loads in which a request's body comes 5 ms after its head.
fn late_bodies() -> Vec<Load> {
    let [_, _, medium, opt, gpu, _] = MODELS;
    let mut loads = Vec::new();
    for (model, engine) in [medium, opt, gpu] {
        for (name, clients) in engine_loads(&engine) {
            if ["2 users", "40 users", "open, 50 %", "bursts of 40"].contains(&name) {
                let mut load = load(format!("{model}, bodies 5 ms late: {name}"), clients, &[engine]);
                load.setting.host.body = Duration::from_millis(5);
                loads.push(load);
            }
        }
    }
    loads
}

fn load(name: String, clients: Clients, engines: &[Engine]) -> Load {
    let micros = Duration::from_micros;
    let setting = Setting {
        clients,
        requests: vec![Request::ORDINARY],
        engines: engines.to_vec(),
        host: Host {
            request: micros(60),
            body: Duration::ZERO,
            answer: micros(60),
            handover: micros(500),
            lead: micros(500),
        },
        rule: Rule::Pillion,
        without: None,
        max_batch_size: 50,
        span: BATCHES * engines[0].time(40),
        seed: 1,
    };
    Load { name, setting }
}

fn mixed(name: String, requests: Vec<Request>, clients: Clients, engines: &[Engine]) -> Load {
    let Load { name, setting } = load(name, clients, engines);
    Load { name, setting: Setting { requests, span: MIXED_BATCHES * engines[0].time(40), ..setting } }
}

/// The number of requests a second that the whole policy serves in this closed loop.
fn capacity(setting: &Setting) -> f64 {
    simulate(setting).rate
}
