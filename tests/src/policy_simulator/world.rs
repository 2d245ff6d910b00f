//! The state of a simulation, its clock, and what each event does.

mod engines;
mod scheduler;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use pillion_protocol::frame::{Hello, Options, UnitCost};
use pillion_proxy::domain::{BatchKey, GenerationRequest, Job, JobId, ModelId, Reply};
use pillion_proxy::policy::Policy;
use pillion_proxy::scheduler::LinkCommand;
use pillion_proxy::scheduler::WorkerId;
use pillion_proxy::scheduler::queue::Queue;
use pillion_proxy::scheduler::workers::Workers;
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::engines::Site;
use super::mechanism;
use super::report::Answer;
use super::setting::{Host, Rule, Setting};
use super::{Clients, Engine, Mechanism, Report};
use crate::fake_worker::Profile;
use crate::load::mix::Draw;
use crate::random::SplitMix64;

/// How much later than it was set for a timer may fire, since tokio's timers count milliseconds.
const TICK: Duration = Duration::from_millis(1);
/// The number of bytes in each token of a prompt.
const BYTES: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A client sends a request.
    Sent { client: usize },
    /// The head of a client's request has been read, and the body has not arrived yet.
    Head { client: usize, sent: Instant },
    /// A client's request enters the queue.
    Queued { client: usize, sent: Instant },
    /// A worker grants a credit: its first one, or the one that follows the batch `after`.
    Credit { worker: usize, after: Option<u64> },
    /// A batch has reached its engine.
    Ready { worker: usize },
    /// Members of the running batch end. When all members have ended, the batch is done.
    Ended { worker: usize, batch: u64, members: usize },
    /// An engine is told to give back the unfinished members of a batch.
    Yield { worker: usize, batch: u64 },
    /// The time of a hold or of a timer is over. The event counts only if no other time has been set since.
    Wake,
    /// A client receives its answer.
    Answered { client: usize, sent: Instant, kind: usize },
}

/// The client that waits for a job, when it sent the request, and the request's kind.
#[derive(Clone, Copy, Debug)]
struct Asker {
    client: usize,
    sent: Instant,
    kind: usize,
}

/// The state of a simulation.
pub(super) struct World<'a> {
    setting: &'a Setting,
    random: SplitMix64,
    kinds: Draw,
    start: Instant,
    now: Instant,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    order: u64,
    host_free: Instant,
    queue: Queue,
    askers: HashMap<JobId, Asker>,
    next_job: u64,
    policy: Policy,
    workers: Workers,
    sites: Vec<Site>,
    /// The number of requests whose bodies have not arrived yet.
    arriving: usize,
    /// When each client received its last answer, if it has not asked since.
    answered: Vec<Option<Instant>>,
    answers: Vec<Answer>,
    batches: usize,
    preempted: usize,
    /// When the hold or the timer that was set last is over.
    wakes: Option<Instant>,
    held_since: Option<Instant>,
    longest_hold: Duration,
    longest_waits: Vec<Duration>,
    longest_passings: Vec<Duration>,
    _links: Vec<mpsc::UnboundedReceiver<LinkCommand>>,
}

impl<'a> World<'a> {
    pub(super) fn new(setting: &'a Setting) -> Self {
        let start = Instant::now() + mechanism::LONG_AGO;
        let batch_timeout = if setting.rule == Rule::Pillion { Duration::from_millis(100) } else { Duration::ZERO };
        let mut workers = Workers::default();
        let mut links = Vec::new();
        for (id, engine) in (0..).zip(&setting.engines) {
            let (link, inbox) = mpsc::unbounded_channel();
            let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            let (step_ns, member_ns, prompt_ns) = (nanos(engine.step), nanos(engine.member), nanos(engine.prompt));
            let cost = if engine.told { UnitCost { step_ns, member_ns, prompt_ns } } else { UnitCost::default() };
            workers.add(WorkerId(id), Hello { cost, ..Profile::default().hello }, ModelId::new(1), link, start);
            links.push(inbox);
        }
        let site = |engine: &Engine| Site { engine: *engine, batches: VecDeque::new(), busy: Duration::ZERO };
        Self {
            setting,
            random: SplitMix64(setting.seed),
            kinds: Draw::new(setting.requests.iter().map(|request| request.weight), setting.seed),
            start,
            now: start,
            events: BinaryHeap::new(),
            order: 0,
            host_free: start,
            queue: Queue::default(),
            askers: HashMap::new(),
            next_job: 1,
            policy: Policy::new(setting.max_batch_size, batch_timeout),
            workers,
            sites: setting.engines.iter().map(site).collect(),
            arriving: 0,
            answered: Vec::new(),
            answers: Vec::new(),
            batches: 0,
            preempted: 0,
            wakes: None,
            held_since: None,
            longest_hold: Duration::ZERO,
            longest_waits: vec![Duration::ZERO; setting.requests.len()],
            longest_passings: vec![Duration::ZERO; setting.requests.len()],
            _links: links,
        }
    }

    pub(super) fn run(mut self) -> Report {
        self.begin();
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            self.now = at;
            if event == Event::Wake && self.wakes != Some(at) {
                continue;
            }
            self.take(event);
            self.dispatch();
            if self.has(Mechanism::Preemption) && self.setting.rule == Rule::Pillion {
                self.preempt();
            }
        }
        self.report()
    }

    fn begin(&mut self) {
        (0..self.sites.len()).for_each(|worker| self.at(self.now, Event::Credit { worker, after: None }));
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

    /// Whether a part of the policy is switched on.
    fn has(&self, mechanism: Mechanism) -> bool {
        self.setting.without != Some(mechanism)
    }

    fn end(&self) -> Instant {
        self.start + self.setting.span
    }

    fn at(&mut self, instant: Instant, event: Event) {
        self.order += 1;
        self.events.push(Reverse((instant, self.order, event)));
    }

    /// Gives the host's processor work of this length, after the work that it already has. Returns when the work is
    /// done.
    fn host(&mut self, time: Duration) -> Instant {
        self.host_free = self.host_free.max(self.now) + time;
        self.host_free
    }

    fn take(&mut self, event: Event) {
        let Host { request, body, .. } = self.setting.host;
        match event {
            Event::Sent { client } => {
                let read = self.host(request);
                let sent = self.now;
                self.at(
                    read,
                    if body.is_zero() { Event::Queued { client, sent } } else { Event::Head { client, sent } },
                );
                if let Clients::Open { rate } = self.setting.clients {
                    let next = self.now + self.random.exponential(Duration::from_secs_f64(1.0 / rate));
                    if next < self.end() {
                        self.at(next, Event::Sent { client: client + 1 });
                    }
                }
            }
            Event::Head { client, sent } => {
                self.arriving += 1;
                self.at(self.now + body, Event::Queued { client, sent });
            }
            Event::Queued { client, sent } => {
                self.arriving -= usize::from(!body.is_zero());
                let answered = self.answered.get_mut(client).and_then(Option::take);
                match answered.filter(|_| self.has(Mechanism::Returns)) {
                    Some(answered) => self.policy.returns.returned(1, answered, self.now),
                    None => self.policy.returns.came(1, self.now),
                }
                self.admit(client, sent);
            }
            Event::Credit { worker, after } => self.grant(worker, after),
            Event::Ready { worker } => {
                if let Some(batch) = self.sites[worker].batches.iter_mut().find(|batch| !batch.is_ready) {
                    batch.is_ready = true;
                }
                self.start(worker);
            }
            Event::Ended { worker, batch, members } => self.ended(worker, batch, members),
            Event::Yield { worker, batch } => self.give_back(worker, batch),
            Event::Wake => {}
            Event::Answered { client, sent, kind } => self.answered(client, sent, kind),
        }
    }

    fn admit(&mut self, client: usize, sent: Instant) {
        let kind = self.kinds.kind();
        let request = self.setting.requests[kind];
        let id = JobId(self.next_job);
        self.next_job += 1;
        self.askers.insert(id, Asker { client, sent, kind });
        let text = "x".repeat(request.prompt as usize * BYTES);
        let request = GenerationRequest::text(&text, BatchKey::new(Options::default(), 0), request.answer);
        let never = self.now + Duration::from_secs(1 << 30);
        self.queue.push(Box::new(Job::new(id, request, self.now, never, Reply::unheard())));
    }

    fn answered(&mut self, client: usize, sent: Instant, kind: usize) {
        self.answers.push(Answer { latency: self.now - sent, kind });
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

    #[allow(clippy::cast_precision_loss, reason = "few engines")]
    fn report(self) -> Report {
        let span = self.now - self.start;
        let busy: Duration = self.sites.iter().map(|site| site.busy).sum();
        let idle = 1.0 - busy.as_secs_f64() / (span.as_secs_f64() * self.sites.len() as f64);
        Report {
            idle,
            longest_hold: self.longest_hold,
            longest_waits: self.longest_waits,
            longest_passings: self.longest_passings,
            preempted: self.preempted,
            ..Report::new(&self.answers, &self.setting.requests, self.batches, span)
        }
    }
}
