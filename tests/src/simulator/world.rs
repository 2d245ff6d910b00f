//! The clock, and what happens at its instants.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use pillion_protocol::frame::{BatchCost, Hello, UnitCost};
use pillion_proxy::batcher::ToLink;
use pillion_proxy::batcher::workers::{WorkerId, Workers};
use pillion_proxy::link::inflight::Departure;
use pillion_proxy::policy::forecast::{Asked, Outcome};
use pillion_proxy::policy::{Decision, Policy, View};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Clients, Report};
use crate::random::SplitMix64;
use crate::simulated::Profile;

/// Tokens of every answer, and of every prompt.
const TOKENS: u32 = 10;
/// tokio's timers fire at the next millisecond.
const TICK: Duration = Duration::from_millis(1);

/// An engine: what a batch costs it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Engine {
    /// However few its members are.
    pub fixed: Duration,
    /// Each member more.
    pub member: Duration,
    /// Whether the worker has told the proxy so in its HELLO, from its warm-up.
    pub told: bool,
}

impl Engine {
    /// A batch of so many.
    pub fn time(&self, members: usize) -> Duration {
        self.fixed + self.member * u32::try_from(members).unwrap_or(u32::MAX)
    }
}

/// The rest of the machine: one processor for client, proxy, text and tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Host {
    /// Its time for a request, from the client's sending to its place in the queue.
    pub request: Duration,
    /// Its time for an answer, from the engine's end to the client.
    pub answer: Duration,
    /// From a batch's leaving to where an engine could begin it: wake-ups, and its text's tokens.
    pub handover: Duration,
    /// How long before a batch's end the worker grants the next credit.
    pub lead: Duration,
}

/// What decides when a batch leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Pillion's policy.
    Pillion,
    /// Whatever waits leaves as soon as there is credit.
    AtOnce,
    /// A full batch, or one whose oldest member has waited so long, and only into an idle engine: what home-made servers
    /// do.
    Timer(Duration),
}

/// All of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// Who asks.
    pub clients: Clients,
    /// One worker for each.
    pub engines: Vec<Engine>,
    /// The rest of the machine.
    pub host: Host,
    /// What decides.
    pub rule: Rule,
    /// The most members of a batch.
    pub max_batch_size: usize,
    /// For how long requests are sent.
    pub span: Duration,
    /// For all that is random.
    pub seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A client sends.
    Sent { client: usize },
    /// Its text is in the queue.
    Queued { client: usize, sent: Instant },
    /// A worker grants credit.
    Credit { worker: usize },
    /// A batch has reached its engine.
    Ready { worker: usize },
    /// An engine has ended a batch.
    Ended { worker: usize },
    /// A hold, or a timer, has run out.
    Wake,
    /// A client has its answer.
    Answered { client: usize, sent: Instant },
}

#[derive(Clone, Copy, Debug)]
struct Text {
    client: usize,
    sent: Instant,
    queued: Instant,
}

struct Site {
    engine: Engine,
    /// Batches on their way or waiting for the engine; the first may be in it.
    batches: VecDeque<(Vec<Text>, Departure, bool)>,
    runs: bool,
    idle_since: Instant,
    busy: Duration,
}

struct World<'a> {
    setting: &'a Setting,
    random: SplitMix64,
    start: Instant,
    now: Instant,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    order: u64,
    host_free: Instant,
    waiting: VecDeque<Text>,
    policy: Policy,
    workers: Workers,
    sites: Vec<Site>,
    /// By client: when it had its last answer.
    answered: Vec<Option<Instant>>,
    latencies: Vec<Duration>,
    batches: usize,
    held_since: Option<Instant>,
    longest_hold: Duration,
    _links: Vec<mpsc::Receiver<ToLink>>,
}

/// Runs a load to its end: until what was sent is answered.
pub fn simulate(setting: &Setting) -> Report {
    let start = Instant::now();
    let batch_timeout = if setting.rule == Rule::Pillion { Duration::from_millis(100) } else { Duration::ZERO };
    let mut workers = Workers::default();
    let mut links = Vec::new();
    for (id, engine) in (0..).zip(&setting.engines) {
        let (link, inbox) = mpsc::channel(16);
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let (step_ns, member_ns) = (nanos(engine.fixed / TOKENS), nanos(engine.member / TOKENS));
        let cost = if engine.told { UnitCost { step_ns, member_ns, prompt_ns: 0 } } else { UnitCost::default() };
        workers.add(WorkerId(id), Hello { cost, ..Profile::default().hello }, link, start);
        links.push(inbox);
    }
    let site = |engine: &Engine| Site {
        engine: *engine,
        batches: VecDeque::new(),
        runs: false,
        idle_since: start,
        busy: Duration::ZERO,
    };
    let mut world = World {
        setting,
        random: SplitMix64(setting.seed),
        start,
        now: start,
        events: BinaryHeap::new(),
        order: 0,
        host_free: start,
        waiting: VecDeque::new(),
        policy: Policy::new(setting.max_batch_size, batch_timeout),
        workers,
        sites: setting.engines.iter().map(site).collect(),
        answered: Vec::new(),
        latencies: Vec::new(),
        batches: 0,
        held_since: None,
        longest_hold: Duration::ZERO,
        _links: links,
    };
    world.begin();
    while let Some(Reverse((at, _, event))) = world.events.pop() {
        world.now = at;
        world.take(event);
        world.dispatch();
    }
    world.report()
}

impl World<'_> {
    fn begin(&mut self) {
        (0..self.sites.len()).for_each(|worker| self.at(self.now, Event::Credit { worker }));
        match self.setting.clients {
            Clients::Closed { users, .. } => (0..users).for_each(|client| self.at(self.now, Event::Sent { client })),
            Clients::Open { .. } => self.at(self.now, Event::Sent { client: 0 }),
            Clients::Bursts { size, every } => {
                let mut at = self.now;
                while at < self.end() {
                    (0..size).for_each(|client| self.at(at, Event::Sent { client }));
                    at += every;
                }
            }
        }
    }

    fn end(&self) -> Instant {
        self.start + self.setting.span
    }

    fn at(&mut self, instant: Instant, event: Event) {
        self.order += 1;
        self.events.push(Reverse((instant, self.order, event)));
    }

    /// The host does something that takes it so long, after what it has to do already.
    fn host(&mut self, time: Duration) -> Instant {
        self.host_free = self.host_free.max(self.now) + time;
        self.host_free
    }

    fn take(&mut self, event: Event) {
        let Host { request, answer, lead, .. } = self.setting.host;
        match event {
            Event::Sent { client } => {
                let queued = self.host(request);
                self.at(queued, Event::Queued { client, sent: self.now });
                if let Clients::Open { rate } = self.setting.clients {
                    let next = self.now + self.random.exponential(Duration::from_secs_f64(1.0 / rate));
                    if next < self.end() {
                        self.at(next, Event::Sent { client: client + 1 });
                    }
                }
            }
            Event::Queued { client, sent } => {
                match self.answered.get_mut(client).and_then(Option::take) {
                    Some(answered) => self.policy.returns.returned(1, answered, self.now),
                    None => self.policy.returns.came(1, self.now),
                }
                self.waiting.push_back(Text { client, sent, queued: self.now });
            }
            Event::Credit { worker } => self.worker(worker).credit += 1,
            Event::Ready { worker } => {
                if let Some(batch) = self.sites[worker].batches.iter_mut().find(|batch| !batch.2) {
                    batch.2 = true;
                }
                self.run(worker, lead);
            }
            Event::Ended { worker } => self.ended(worker, lead, answer),
            Event::Wake => {}
            Event::Answered { client, sent } => {
                self.latencies.push(self.now - sent);
                if self.answered.len() <= client {
                    self.answered.resize(client + 1, None);
                }
                if !matches!(self.setting.clients, Clients::Open { .. }) {
                    self.answered[client] = Some(self.now);
                }
                if let Clients::Closed { think, .. } = self.setting.clients
                    && self.now < self.end()
                {
                    let next = self.now + self.random.exponential(think);
                    self.at(next, Event::Sent { client });
                }
            }
        }
    }

    fn worker(&mut self, worker: usize) -> &mut pillion_proxy::batcher::workers::Worker {
        self.workers.get_mut(WorkerId(worker as u64)).expect("no worker leaves")
    }

    /// The engine takes the next batch that has reached it, if it is free.
    fn run(&mut self, worker: usize, lead: Duration) {
        let now = self.now;
        let site = &mut self.sites[worker];
        let Some((texts, _, true)) = site.batches.front() else { return };
        if site.runs {
            return;
        }
        let time = site.engine.time(texts.len());
        site.runs = true;
        site.busy += time;
        self.at(now + time.saturating_sub(lead), Event::Credit { worker });
        self.at(now + time, Event::Ended { worker });
    }

    fn ended(&mut self, worker: usize, lead: Duration, answer: Duration) {
        let site = &mut self.sites[worker];
        let engine = site.engine;
        let Some((texts, departure, _)) = site.batches.pop_front() else { return };
        site.runs = false;
        site.idle_since = self.now;
        let n = texts.len();
        self.policy.returns.answered(n, self.now);
        self.policy.ended(n, self.now);
        let engine_us = u64::try_from(engine.time(n).as_micros()).unwrap_or(u64::MAX);
        let cost = BatchCost { engine_us, cohorts: 1, steps: u64::from(TOKENS), ..BatchCost::default() };
        let tokens = n as u64 * u64::from(TOKENS);
        let now = self.now;
        let ended = self.worker(worker);
        ended.members = ended.members.saturating_sub(n);
        ended.done(&departure, &Outcome { prompt_tokens: tokens, completion_tokens: tokens, cost }, now);
        for Text { client, sent, .. } in texts {
            let at = self.host(answer);
            self.at(at, Event::Answered { client, sent });
        }
        self.run(worker, lead);
    }

    /// As the batcher does it.
    fn dispatch(&mut self) {
        let most = self.setting.max_batch_size;
        while let Some(oldest) = self.waiting.front() {
            let queued = oldest.queued;
            let mut asked = Asked::default();
            asked.add(TOKENS as usize * 3, TOKENS);
            let asked = asked.times(self.waiting.len().min(most));
            let Some(id) = self.workers.soonest(&asked, self.now) else { return };
            let share = self.workers.share(&asked);
            let Some(worker) = self.workers.get_mut(id) else { return };
            let (ending, ends_in) = worker.ending(self.now);
            if let Rule::Timer(timer) = self.setting.rule {
                let due = queued + timer;
                if ending > 0 {
                    return;
                }
                if self.waiting.len() < most && self.now < due {
                    return self.at(due, Event::Wake);
                }
            }
            let (fixed_cost, member_cost) = worker.forecast.costs(&asked);
            let (waiting, arriving, engines) = (self.waiting.len(), 0, self.sites.len());
            let view = View { waiting, arriving, fixed_cost, member_cost, engines, ending, ends_in, slack: None };
            if let Decision::HoldUntil(until) = self.policy.decide(&view, self.now) {
                self.held_since.get_or_insert(self.now);
                return self.at(until + TICK, Event::Wake);
            }
            if let Some(since) = self.held_since.take() {
                self.longest_hold = self.longest_hold.max(self.now - since);
            }
            let members = self.waiting.len().min(most).min(share);
            let departure = worker.take(asked.part(members, asked.members), self.now);
            let texts = self.waiting.drain(..members).collect();
            let worker = usize::try_from(id.0).expect("few workers");
            self.sites[worker].batches.push_back((texts, departure, false));
            self.batches += 1;
            self.at(self.now + self.setting.host.handover, Event::Ready { worker });
        }
        self.policy.nobody_waits();
    }

    #[allow(clippy::cast_precision_loss, reason = "few engines")]
    fn report(self) -> Report {
        let span = self.now - self.start;
        let busy: Duration = self.sites.iter().map(|site| site.busy).sum();
        let idle = 1.0 - busy.as_secs_f64() / (span.as_secs_f64() * self.sites.len() as f64);
        Report::new(self.latencies, self.batches, span, idle, self.longest_hold)
    }
}
