//! What will happen in a simulation. Plain data, from a seed.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fake_worker::{Fault, FaultKind, POISON, Profile};
use crate::random::SplitMix64;

/// Everything that will be done, in its order.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of what it was drawn.
    pub seed: u64,
    /// The proxy's.
    pub flags: Vec<String>,
    /// What is done, and how long after what came before.
    pub acts: Vec<(Duration, Act)>,
}

/// Something that is done.
#[derive(Clone, Debug)]
pub enum Act {
    /// A worker comes.
    Worker(Box<Profile>),
    /// The worker that came as this one, counted from 0, dies without a word.
    Kill(usize),
    /// It is told to leave.
    Drain(usize),
    /// A client asks.
    Ask(Request),
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its texts; more than one are asked as a list.
    pub texts: Vec<String>,
    /// The most new tokens.
    pub max: usize,
    /// The least.
    pub min: usize,
    /// Whether its options look back over the answer.
    pub looks_back: bool,
    /// Whether it is answered by events.
    pub is_stream: bool,
    /// How long it may take, where that is said.
    pub timeout: Option<Duration>,
    /// When its client goes away, if it does.
    pub leaves: Option<Duration>,
    /// The model that it names, if it names one. Then it is asked of the OpenAI API.
    pub model: Option<&'static str>,
    /// Over HTTP/2, the bytes of the answer that may be sent before the client reads them.
    pub window: Option<u32>,
}

impl Request {
    /// Where it is sent.
    pub fn path(&self) -> &'static str {
        match (self.model, self.is_stream) {
            (Some(_), _) => "/v1/completions",
            (None, true) => "/generate_stream",
            (None, false) => "/generate",
        }
    }

    /// As it is sent.
    pub fn body(&self) -> Value {
        if let Some(model) = self.model {
            let penalty = if self.looks_back { 1.3 } else { 1.0 };
            return json!({"model": model, "prompt": self.texts[0], "max_tokens": self.max, "min_tokens": self.min,
                "repetition_penalty": penalty});
        }
        let text = if self.texts.len() == 1 { json!(self.texts[0]) } else { json!(self.texts) };
        let mut body = json!({"text": text, "max_new_tokens": self.max, "min_new_tokens": self.min});
        if self.looks_back {
            body["repetition_penalty"] = json!(1.3);
        }
        if let Some(timeout) = self.timeout {
            body["timeout_ms"] = json!(timeout.as_millis());
        }
        body
    }

    /// Whether it kills workers.
    pub fn is_poison(&self) -> bool {
        self.texts.iter().any(|text| text.contains(POISON))
    }
}

struct Dice(SplitMix64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0.next() % n
    }

    fn count(&mut self, n: u64) -> usize {
        usize::try_from(self.below(n)).unwrap_or_default()
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn millis(&mut self, n: u64) -> Duration {
        Duration::from_millis(self.below(n))
    }
}

/// What goes wrong with a worker by itself.
const FAULTS: [FaultKind; 8] = [
    FaultKind::Abort,
    FaultKind::Close,
    FaultKind::HalfFrame,
    FaultKind::Garbage,
    FaultKind::AnswerTwice,
    FaultKind::UnknownMember,
    FaultKind::UnknownBatch,
    FaultKind::Stall,
];
/// Workers before the last two, which are sound.
const UNSOUND: u64 = 3;
const REQUESTS: u64 = 80;
/// The models that workers have where there are several.
const MODELS: [&str; 2] = ["simulated", "other"];

impl Plan {
    /// Drawn from a seed.
    ///
    /// One plan in eight has a prompt that kills, and no other fault, so that who fails is known beforehand. One in three
    /// has a newer model of the same name come, while the workers with the older one are told to leave. Of the others, one in
    /// three has workers with another model beside the first.
    pub fn of(seed: u64) -> Self {
        let mut dice = Dice(SplitMix64(seed));
        let is_poisoned = dice.one_in(8);
        let swaps = !is_poisoned && dice.one_in(3);
        let models = if !is_poisoned && !swaps && dice.one_in(3) { 2 } else { 1 };
        let most = 1 + dice.below(12);
        let attempts = if is_poisoned { 2 + dice.below(3) } else { 20 };
        let flags =
            format!("--max-batch-size {most} --max-attempts {attempts} --request-timeout 60s --worker-wait 30s");
        let mut acts = Vec::new();
        let unsound = if is_poisoned { 0 } else { dice.count(UNSOUND + 1) };
        let mut workers = 0;
        for _ in 0..unsound {
            let fault = Some(Fault { kind: FAULTS[dice.count(8)], batch: 1 + dice.below(9), step: dice.below(4) });
            let model = MODELS[dice.count(models)];
            acts.push((dice.millis(20), Act::Worker(Box::new(Profile { fault, ..worker(&mut dice, model, "a") }))));
            workers += 1;
        }
        let requests = 1 + dice.count(REQUESTS);
        let (sound_at, swap_at) = (dice.count(requests as u64), requests / 2 + dice.count(1 + requests as u64 / 2));
        let poison_at = is_poisoned.then(|| dice.count(requests as u64));
        for number in 0..requests {
            if number == sound_at {
                let fingerprint = if swaps && number > swap_at { "b" } else { "a" };
                for model in &MODELS[..usize::try_from(models).unwrap_or(1)] {
                    acts.push((Duration::ZERO, Act::Worker(Box::new(worker(&mut dice, model, fingerprint)))));
                    workers += 1;
                }
            }
            if swaps && number == swap_at {
                acts.push((Duration::ZERO, Act::Worker(Box::new(worker(&mut dice, MODELS[0], "b")))));
                (0..workers).for_each(|old| acts.push((Duration::from_millis(1), Act::Drain(old))));
                workers += 1;
            }
            if workers > 0 && !is_poisoned && dice.one_in(40) {
                // Whoever is left at the end is sound: the last one stays.
                let victim = dice.count(workers as u64);
                if victim < unsound {
                    acts.push((dice.millis(10), if dice.one_in(2) { Act::Kill(victim) } else { Act::Drain(victim) }));
                }
            }
            let mut request = request(&mut dice, seed, number, poison_at == Some(number));
            // A model can be named once its workers have said its name.
            let is_plain = request.texts.len() == 1 && !request.is_stream && request.timeout.is_none();
            if models > 1 && is_plain && number >= sound_at && dice.one_in(2) {
                request.model = Some(MODELS[dice.count(models)]);
            }
            acts.push((Duration::from_millis(1) + dice.millis(12), Act::Ask(request)));
        }
        if swap_at >= requests || !swaps {
            acts.push((Duration::ZERO, Act::Worker(Box::new(worker(&mut dice, MODELS[0], "a")))));
        }
        let flags = flags.split(' ').map(str::to_owned).collect();
        Self { seed, flags, acts }
    }
}

fn worker(dice: &mut Dice, model: &str, fingerprint: &str) -> Profile {
    let mut profile = Profile {
        batch_cost: dice.millis(30),
        step_cost: Duration::from_millis(1) + dice.millis(4),
        eager: dice.one_in(2),
        silence: Duration::from_millis(200) + dice.millis(3000),
        ..Profile::default()
    };
    fingerprint.clone_into(&mut profile.hello.fingerprint);
    model.clone_into(&mut profile.hello.model);
    profile.hello.slots = if dice.one_in(3) { 2 } else { 1 };
    profile
}

fn request(dice: &mut Dice, seed: u64, number: usize, is_poison: bool) -> Request {
    let mut text = |part: usize| {
        let words = "and on ".repeat(dice.count(12));
        let poison = if is_poison { POISON } else { "" };
        format!("seed {seed} rider {number} {part} {words} {poison}")
    };
    let is_list = number % 7 == 3 && !is_poison;
    let texts = (0..if is_list { 3 } else { 1 }).map(&mut text).collect();
    let is_stream = !is_list && dice.one_in(3);
    let max = 1 + dice.count(20);
    Request {
        texts,
        max,
        min: if dice.one_in(5) { dice.count(max as u64 + 1) } else { 0 },
        looks_back: dice.one_in(6),
        is_stream,
        timeout: (!is_list && !is_poison && dice.one_in(10)).then(|| Duration::from_millis(1) + dice.millis(500)),
        leaves: (!is_poison && dice.one_in(8)).then(|| dice.millis(60)),
        model: None,
        window: dice.one_in(5).then(|| u32::try_from(1 + dice.below(100)).unwrap_or(1)),
    }
}
