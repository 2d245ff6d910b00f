//! The clock, and what happens at its instants.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use pillion_protocol::BatchId;
use pillion_protocol::frame::{BatchCost, Hello, Options, Prompt, UnitCost};
use pillion_proxy::batcher::ToLink;
use pillion_proxy::batcher::workers::{Worker, WorkerId, Workers};
use pillion_proxy::job::{Ask, Class, Job, JobId, ModelId, Progress, Reply};
use pillion_proxy::link::inflight::Departure;
use pillion_proxy::policy::company::Size;
use pillion_proxy::policy::forecast::{Asked, Outcome};
use pillion_proxy::policy::{Decision, Policy, View};
use pillion_proxy::queue::{Limits, Queue};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::report::Answer;
use super::setting::{Host, Rule, Setting};
use super::{Clients, Engine, Report};
use crate::load::mix::Draw;
use crate::random::SplitMix64;
use crate::simulated::Profile;

/// tokio's timers fire at the next millisecond.
const TICK: Duration = Duration::from_millis(1);
/// Bytes of a prompt's token.
const BYTES: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A client sends.
    Sent { client: usize },
    /// Its text is in the queue.
    Queued { client: usize, sent: Instant },
    /// A worker grants credit: its first, or the one for which a batch makes room.
    Credit { worker: usize, after: Option<u64> },
    /// A batch has reached its engine.
    Ready { worker: usize },
    /// Members of the batch that an engine runs have ended; the batch is done once all have.
    Ended { worker: usize, batch: u64, members: usize },
    /// An engine is told to give the rest of a batch back.
    Yield { worker: usize, batch: u64 },
    /// A hold, or a timer, has run out.
    Wake,
    /// A client has its answer.
    Answered { client: usize, sent: Instant, kind: usize },
}

/// Who asked for a job.
#[derive(Clone, Copy, Debug)]
struct Asker {
    client: usize,
    sent: Instant,
    kind: usize,
}

/// A batch on its way, waiting for the engine, or in it.
struct Batch {
    departure: Departure,
    /// Those that have not ended, in the order in which they will.
    jobs: VecDeque<Box<Job>>,
    /// The batch has reached the engine.
    is_ready: bool,
    /// The credit after it has been granted.
    made_room: bool,
    /// When it began, and when its members will end, counted from then.
    run: Option<(Instant, VecDeque<Duration>)>,
    prompt_tokens: u64,
    completion_tokens: u64,
}

struct Site {
    engine: Engine,
    /// The first may be in the engine.
    batches: VecDeque<Batch>,
    busy: Duration,
}

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
    /// By client: when it had its last answer.
    answered: Vec<Option<Instant>>,
    answers: Vec<Answer>,
    batches: usize,
    preempted: usize,
    held_since: Option<Instant>,
    longest_hold: Duration,
    longest_waits: Vec<Duration>,
    longest_passings: Vec<Duration>,
    _links: Vec<mpsc::Receiver<ToLink>>,
}

impl<'a> World<'a> {
    pub(super) fn new(setting: &'a Setting) -> Self {
        let start = Instant::now();
        let batch_timeout = if setting.rule == Rule::Pillion { Duration::from_millis(100) } else { Duration::ZERO };
        let mut workers = Workers::default();
        let mut links = Vec::new();
        for (id, engine) in (0..).zip(&setting.engines) {
            let (link, inbox) = mpsc::channel(16);
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
            answered: Vec::new(),
            answers: Vec::new(),
            batches: 0,
            preempted: 0,
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
            self.take(event);
            self.dispatch();
            if self.setting.preempts && self.setting.rule == Rule::Pillion {
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
        let Host { request, .. } = self.setting.host;
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
        self.queue.push(Box::new(Job {
            id,
            ask: Ask {
                prompt: Prompt::Text("x".repeat(request.prompt as usize * BYTES)),
                class: Class::new(&Options::default(), 0),
                max_new_tokens: request.answer,
                fit: false,
                stop: Arc::new([]),
            },
            origin: None,
            admitted: self.now,
            waits_since: self.now,
            deadline: self.now + Duration::from_secs(1 << 30),
            progress: Progress::default(),
            boarding: None,
            attempts: 0,
            strikes: 0,
            had: 0,
            gave_way: 0,
            slot: None,
            reply: Reply::new().0,
        }));
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

    /// A batch makes room once.
    fn grant(&mut self, worker: usize, after: Option<u64>) {
        let batches = &mut self.sites[worker].batches;
        let due = after.is_none_or(|id| {
            let batch = batches.iter_mut().find(|batch| batch.departure.batch.0 == id);
            batch.is_some_and(|batch| !std::mem::replace(&mut batch.made_room, true))
        });
        self.worker(worker).credit += u32::from(due);
    }

    fn worker(&mut self, worker: usize) -> &mut Worker {
        self.workers.get_mut(WorkerId(worker as u64)).expect("no worker leaves")
    }

    /// The engine takes the next batch that has reached it, if it is free.
    fn start(&mut self, worker: usize) {
        let (now, lead) = (self.now, self.setting.host.lead);
        let site = &mut self.sites[worker];
        let Some(batch) = site.batches.front_mut().filter(|batch| batch.is_ready && batch.run.is_none()) else {
            return;
        };
        let asks: Vec<(u32, u32)> = batch.jobs.iter().map(|job| fed_and_left(job)).collect();
        let mut ends: Vec<(Duration, usize)> = site.engine.ends(&asks).into_iter().zip(0..).collect();
        ends.sort_unstable();
        let mut jobs: Vec<_> = batch.jobs.drain(..).map(Some).collect();
        batch.jobs = ends.iter().filter_map(|&(_, nth)| jobs[nth].take()).collect();
        let ends: VecDeque<Duration> = ends.into_iter().map(|(end, _)| end).collect();
        let whole = ends.back().copied().unwrap_or_default();
        let id = batch.departure.batch.0;
        let groups: Vec<Duration> = ends.iter().copied().collect();
        batch.run = Some((now, ends));
        self.at(now + whole.saturating_sub(lead), Event::Credit { worker, after: Some(id) });
        for group in groups.chunk_by(|a, b| a == b) {
            self.at(now + group[0], Event::Ended { worker, batch: id, members: group.len() });
        }
    }

    fn ended(&mut self, worker: usize, id: u64, members: usize) {
        let Some(batch) = self.sites[worker].batches.front_mut().filter(|batch| batch.departure.batch.0 == id) else {
            return;
        };
        let ended: Vec<_> = batch.jobs.drain(..members.min(batch.jobs.len())).collect();
        if let Some((_, ends)) = &mut batch.run {
            ends.drain(..ended.len());
        }
        batch.completion_tokens += ended.iter().map(|job| u64::from(job.ask.max_new_tokens)).sum::<u64>();
        batch.prompt_tokens += ended.iter().map(|job| (job.ask.bytes() / BYTES) as u64).sum::<u64>();
        self.policy.returns.answered(ended.len(), self.now);
        self.worker(worker).ended(BatchId(id), ended.len());
        for job in ended {
            let at = self.host(self.setting.host.answer);
            if let Some(Asker { client, sent, kind }) = self.askers.remove(&job.id) {
                self.at(at, Event::Answered { client, sent, kind });
            }
        }
        if self.sites[worker].batches.front().is_some_and(|batch| batch.jobs.is_empty()) {
            self.done(worker);
        }
    }

    /// The rest of a batch comes back, unless it has ended meanwhile, with what it has produced.
    fn give_back(&mut self, worker: usize, id: u64) {
        let now = self.now;
        let Some(batch) = self.sites[worker].batches.front_mut().filter(|batch| batch.departure.batch.0 == id) else {
            return;
        };
        let Some((since, ends)) = &batch.run else { return };
        let ran = now - *since;
        let mut back: Vec<_> = batch.jobs.drain(..).collect();
        for (job, end) in back.iter_mut().zip(ends) {
            let (_, left) = fed_and_left(job);
            // Decoding is taken to be even; the first half of a step is none.
            let done = f64::from(left) * ran.div_duration_f64(*end);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count, and a guess")]
            let done = (done as usize).min(left.saturating_sub(1) as usize);
            job.progress.produced.extend(std::iter::repeat_n(0, done));
            job.gave_way += 1;
            job.waits_since = now;
        }
        self.preempted += back.len();
        self.worker(worker).ended(BatchId(id), back.len());
        back.into_iter().for_each(|job| self.queue.push(job));
        self.grant(worker, Some(id));
        self.done(worker);
    }

    fn done(&mut self, worker: usize) {
        let now = self.now;
        let Some(batch) = self.sites[worker].batches.pop_front() else { return };
        let Some((since, _)) = batch.run else { return };
        let ran = now - since;
        self.sites[worker].busy += ran;
        let Batch { departure, prompt_tokens, completion_tokens, .. } = batch;
        let engine_us = u64::try_from(ran.as_micros()).unwrap_or(u64::MAX);
        let cost = BatchCost { engine_us, cohorts: 1, steps: departure.asked.longest.into(), ..BatchCost::default() };
        self.policy.ended(departure.asked.members, now);
        self.policy.preemption.worked(ran);
        self.worker(worker).done(&departure, &Outcome { prompt_tokens, completion_tokens, cost }, now);
        self.start(worker);
    }

    /// As the batcher does it.
    fn dispatch(&mut self) {
        let most = self.setting.max_batch_size;
        while !self.queue.is_empty() {
            if !self.workers.have_credit() {
                return;
            }
            let cells = self.queue.cells();
            let oldest = cells.iter().map(|cell| cell.since).min().unwrap_or(self.now);
            // Where nobody is expected to come, all ride together.
            let rate = if self.setting.rule == Rule::Pillion { self.policy.texts_per_second(self.now) } else { 0.0 };
            let Some((id, company)) = self.workers.next(&cells, most, rate, self.now) else { return };
            let Some(worker) = self.workers.get_mut(id) else { return };
            let kind = worker.kind;
            let (ending, ends_in) = worker.ending(self.now);
            if let Rule::Timer(timer) = self.setting.rule {
                let due = oldest + timer;
                if ending > 0 {
                    return;
                }
                if self.queue.len() < most && self.now < due {
                    return self.at(due, Event::Wake);
                }
            }
            let (fixed_cost, member_cost) = worker.forecast.costs(&company.asked);
            let (waiting, arriving, engines) = (company.waiting, 0, self.sites.len());
            let (time, is_due, latest) = (company.time, company.is_due(self.now), worker.latest_costs());
            let view = View {
                waiting,
                arriving,
                fixed_cost,
                member_cost,
                engines,
                ending,
                ends_in,
                time,
                is_due,
                latest,
                slack: None,
            };
            if let Decision::HoldUntil(until) = self.policy.decide(&view, self.now) {
                self.held_since.get_or_insert(self.now);
                return self.at(until + TICK, Event::Wake);
            }
            if let Some(since) = self.held_since.take() {
                self.longest_hold = self.longest_hold.max(self.now - since);
            }
            let share = self.workers.share(&company.asked, kind);
            let limits = Limits { members: most.min(share), tokens: u64::MAX, bytes: usize::MAX };
            let (jobs, _) = self.queue.take_batch(&company.cells, &limits);
            self.watch_the_oldest(&jobs);
            self.depart(id, jobs, is_due);
        }
        self.policy.nobody_waits();
    }

    /// For how long the oldest has waited, where younger ones go before it.
    fn watch_the_oldest(&mut self, leaving: &[Box<Job>]) {
        let Some(oldest) = self.queue.cells().into_iter().min_by_key(|cell| cell.since) else { return };
        if leaving.iter().any(|job| job.waits_since <= oldest.since) {
            return;
        }
        for (request, longest) in self.setting.requests.iter().zip(&mut self.longest_passings) {
            let mut asked = Asked::default();
            asked.add(request.prompt as usize * BYTES, request.answer, 0);
            if Size::of(&asked) == oldest.size {
                *longest = (*longest).max(self.now - oldest.since);
            }
        }
    }

    fn depart(&mut self, id: WorkerId, mut jobs: Vec<Box<Job>>, is_due: bool) {
        let Some(worker) = self.workers.get_mut(id) else { return };
        let resumable_before =
            jobs.iter().map(|job| job.deadline).min().filter(|_| !is_due && jobs.iter().all(|job| job.may_give_way()));
        let mut asked = Asked::default();
        for job in &mut jobs {
            job.leave_queue(&worker.fingerprint, 1, self.now).expect("nothing streams");
            asked = asked.and(&job.asked());
            if let Some(Asker { kind, .. }) = self.askers.get(&job.id) {
                self.longest_waits[*kind] = self.longest_waits[*kind].max(self.now - job.waits_since);
            }
        }
        let departure = worker.take(asked, resumable_before, self.now);
        let worker = usize::try_from(id.0).expect("few workers");
        self.sites[worker].batches.push_back(Batch {
            departure,
            jobs: jobs.into(),
            is_ready: false,
            made_room: false,
            run: None,
            prompt_tokens: 0,
            completion_tokens: 0,
        });
        self.batches += 1;
        self.at(self.now + self.setting.host.handover, Event::Ready { worker });
    }

    /// As the batcher does it.
    fn preempt(&mut self) {
        let (cells, most) = (self.queue.cells(), self.setting.max_batch_size);
        let told = self.workers.should_give_way(&cells, most, &self.policy, self.now);
        if let Some((id, batch, remains)) = told {
            self.workers.get_mut(id).expect("no worker leaves").give_way(batch);
            self.policy.preemption.spend(&remains);
            let worker = usize::try_from(id.0).expect("few workers");
            self.at(self.now + self.setting.host.handover / 2, Event::Yield { worker, batch: batch.0 });
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

/// Tokens that are fed for a job, and tokens that it is yet to get.
fn fed_and_left(job: &Job) -> (u32, u32) {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let produced = count(job.progress.produced.len());
    (count(job.ask.bytes() / BYTES) + produced, job.ask.max_new_tokens.saturating_sub(produced).max(1))
}
