//! The credit and the ends of members, model-checked: every order in which a correct worker, its death, and two clients can
//! act, up to a depth, is tried against the real proxy.
//!
//! A state is reached by carrying its steps out anew, in a runtime with paused time; states that look alike from outside
//! are tried once (stateright's breadth-first search). So what is checked is the code itself, not a drawing of it.

use std::hash::{Hash, Hasher};
use std::time::Duration;

use pillion_protocol::connection::{FrameReader, FrameWriter};
use pillion_protocol::frame::{
    BatchCost, FailureCode, FinishReason, Frame, MemberFailed, MemberFinished, MemberTokens, Prompt,
};
use pillion_protocol::{BatchId, MemberIndex};
use pillion_tests::client::Answer;
use pillion_tests::fake_worker::Profile;
use pillion_tests::memory::Memory;
use serde_json::json;
use stateright::{Checker, Model, Property};
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Jobs: the first is asked whole, the second as a stream.
const JOBS: usize = 2;
/// Tokens of each.
const MOST: usize = 2;
/// Steps that are tried in every order.
const DEPTH: usize = 10;
const CONNECTIONS: u32 = 2;

/// What somebody does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A client asks for job so-and-so.
    Ask(usize),
    /// It goes away.
    Leave(usize),
    /// A worker connects.
    Connect,
    /// It grants one credit.
    Grant,
    /// The member that is this job gets a token.
    Token(usize),
    /// It ends well.
    Finish(usize),
    /// It fails.
    Fail(usize),
    /// All that a batch has left is given back.
    GiveBack(BatchId),
    /// The batch is done.
    Done(BatchId),
    /// The worker dies.
    Die,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Unasked,
    Waiting,
    /// With the worker.
    Aboard(BatchId, MemberIndex),
    Finished,
    Failed,
    /// Its client has gone, while it waited.
    Left,
    /// Its client has gone, and the worker has not ended it yet.
    Abandoned(BatchId, MemberIndex),
}

/// What can be told from outside, and what must hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Seen {
    connections: u32,
    connected: bool,
    credit: u32,
    places: [Place; JOBS],
    tokens: [usize; JOBS],
    /// Batches that are not done.
    batches: Vec<BatchId>,
    /// What must not be.
    wrong: Option<String>,
}

impl Seen {
    fn aboard(&self, job: usize) -> Option<(BatchId, MemberIndex)> {
        match self.places[job] {
            Place::Aboard(batch, member) | Place::Abandoned(batch, member) => Some((batch, member)),
            _ => None,
        }
    }
}

#[derive(Clone, Debug)]
struct State {
    steps: Vec<Step>,
    seen: Seen,
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.seen == other.seen
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.seen.hash(state);
    }
}

struct Proxy;

impl Model for Proxy {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![reach(Vec::new())]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        let seen = &state.seen;
        for job in 0..JOBS {
            match seen.places[job] {
                Place::Unasked if job == 0 || seen.places[job - 1] != Place::Unasked => steps.push(Step::Ask(job)),
                Place::Waiting | Place::Aboard(..) => steps.push(Step::Leave(job)),
                _ => {}
            }
            if seen.aboard(job).is_some() {
                if seen.tokens[job] < MOST {
                    steps.push(Step::Token(job));
                }
                steps.extend([Step::Finish(job), Step::Fail(job)]);
            }
        }
        if !seen.connected {
            if seen.connections < CONNECTIONS {
                steps.push(Step::Connect);
            }
            return;
        }
        if seen.credit as usize + seen.batches.len() < 3 {
            steps.push(Step::Grant);
        }
        for &batch in &seen.batches {
            let left = (0..JOBS).any(|job| seen.aboard(job).is_some_and(|(of, _)| of == batch));
            steps.push(if left { Step::GiveBack(batch) } else { Step::Done(batch) });
        }
        steps.push(Step::Die);
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut steps = last.steps.clone();
        steps.push(step);
        Some(reach(steps))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("credit is exact, and each job has exactly one end", |_, state: &State| {
                state.seen.wrong.is_none()
            }),
            Property::sometimes("a job goes on after its worker's death and is answered", |_, state: &State| {
                state.seen.connections == 2 && state.seen.places[0] == Place::Finished && state.seen.tokens[0] > 0
            }),
            Property::sometimes("a batch is given back and taken again", |_, state: &State| {
                state.steps.iter().any(|step| matches!(step, Step::GiveBack(_)))
                    && state.seen.places.iter().any(|place| matches!(place, Place::Aboard(batch, _) if batch.0 > 1))
            }),
        ]
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.steps.len() <= DEPTH
    }
}

/// Carries the steps out, and says what is seen then.
fn reach(steps: Vec<Step>) -> State {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let seen = runtime.block_on(async {
        let mut system = System::new();
        for &step in &steps {
            system.step(step).await;
            system.listen().await;
        }
        // Those before were looked at when they were the last.
        system.look().await;
        system.seen
    });
    State { steps, seen }
}

struct Worker {
    reader: FrameReader<ReadHalf<DuplexStream>>,
    writer: FrameWriter<WriteHalf<DuplexStream>>,
}

struct System {
    memory: Memory,
    worker: Option<Worker>,
    clients: [Option<JoinHandle<Answer>>; JOBS],
    seen: Seen,
}

/// The `k`th token's text.
fn token(job: usize, k: usize) -> String {
    format!("j{job}t{k} ")
}

fn text(job: usize, tokens: usize) -> String {
    (0..tokens).map(|k| token(job, k)).collect()
}

impl System {
    fn new() -> Self {
        // So many attempts that none ends by them.
        let memory = Memory::start(&["--max-batch-size", "2", "--max-attempts", "20", "--worker-wait", "60s"]);
        let seen = Seen {
            connections: 0,
            connected: false,
            credit: 0,
            places: [Place::Unasked; JOBS],
            tokens: [0; JOBS],
            batches: Vec::new(),
            wrong: None,
        };
        Self { memory, worker: None, clients: [const { None }; JOBS], seen }
    }

    fn wrong(&mut self, what: String) {
        self.seen.wrong.get_or_insert(what);
    }

    async fn tell(&mut self, frame: Frame) {
        let worker = self.worker.as_mut().expect("only a connected worker acts");
        worker.writer.put(&frame).unwrap();
        worker.writer.flush().await.unwrap();
    }

    /// The job's member ends; the worker may not have heard that its client has gone.
    fn end(&mut self, job: usize, how: Place) -> (BatchId, MemberIndex) {
        let at = self.seen.aboard(job).expect("it is with the worker");
        let was_abandoned = matches!(self.seen.places[job], Place::Abandoned(..));
        self.seen.places[job] = if was_abandoned { Place::Left } else { how };
        at
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Ask(job) => {
                let path = if job == 0 { "/generate" } else { "/generate_stream" };
                let body = json!({"text": format!("job {job}"), "max_new_tokens": MOST});
                self.clients[job] = Some(tokio::spawn(self.memory.post(path, &body)));
                self.seen.places[job] = Place::Waiting;
            }
            Step::Leave(job) => {
                self.clients[job].take().expect("it has asked").abort();
                self.seen.places[job] = match self.seen.places[job] {
                    Place::Aboard(batch, member) => Place::Abandoned(batch, member),
                    _ => Place::Left,
                };
            }
            Step::Connect => {
                let (reader, writer) = tokio::io::split(self.memory.dial());
                self.worker = Some(Worker { reader: FrameReader::new(reader), writer: FrameWriter::new(writer) });
                self.tell(Frame::Hello(Profile::default().hello)).await;
                (self.seen.connected, self.seen.connections) = (true, self.seen.connections + 1);
            }
            Step::Grant => {
                self.seen.credit += 1;
                self.tell(Frame::Credit { grant: 1 }).await;
            }
            Step::Token(job) => {
                let (batch, member) = self.seen.aboard(job).expect("it is with the worker");
                let k = self.seen.tokens[job];
                let said = MemberTokens { member, ids: vec![u32::try_from(k).unwrap()], text: token(job, k) };
                self.seen.tokens[job] += 1;
                self.tell(Frame::Tokens(batch, vec![said])).await;
            }
            Step::Finish(job) => {
                let (batch, member) = self.end(job, Place::Finished);
                let completion_tokens = u32::try_from(self.seen.tokens[job]).unwrap();
                let reason = FinishReason::Stop;
                let finished = MemberFinished { member, reason, prompt_tokens: 2, completion_tokens };
                self.tell(Frame::Finished(batch, vec![finished])).await;
            }
            Step::Fail(job) => {
                let (batch, member) = self.end(job, Place::Failed);
                let failed = MemberFailed { member, code: FailureCode::Engine, message: "it failed".into() };
                self.tell(Frame::Failed(batch, vec![failed])).await;
            }
            Step::GiveBack(batch) => {
                let left = (0..JOBS).filter(|&job| self.seen.aboard(job).is_some_and(|(of, _)| of == batch));
                let left: Vec<usize> = left.collect();
                let back = left.into_iter().map(|job| self.end(job, Place::Waiting).1).collect();
                self.tell(Frame::Yielded(batch, back)).await;
            }
            Step::Done(batch) => {
                self.seen.batches.retain(|other| *other != batch);
                self.tell(Frame::Done(batch, BatchCost::default())).await;
            }
            Step::Die => {
                self.worker = None;
                (self.seen.connected, self.seen.credit) = (false, 0);
                self.seen.batches.clear();
                for job in 0..JOBS {
                    if self.seen.aboard(job).is_some() {
                        self.end(job, Place::Waiting);
                    }
                }
            }
        }
    }

    /// Lets everything happen that follows.
    async fn listen(&mut self) {
        sleep(Duration::from_millis(5)).await;
        while let Some(worker) = &mut self.worker
            && let Ok(Ok(Some(frame))) = timeout(Duration::from_millis(1), worker.reader.next()).await
        {
            self.hear(frame);
        }
    }

    /// Whether everything is as it must be.
    async fn look(&mut self) {
        let waits = self.seen.places.contains(&Place::Waiting);
        if self.seen.connected && self.seen.credit > 0 && waits {
            self.wrong("a job waits though there is credit".into());
        }
        let count = |wanted: fn(&Place) -> bool| self.seen.places.iter().filter(|place| wanted(place)).count();
        let expected = [count(|place| *place == Place::Waiting), count(|place| matches!(place, Place::Aboard(..)))];
        let metrics = self.memory.metrics();
        let counted =
            ["pillion_queue_depth", "pillion_running"].map(|name| usize::try_from(metrics.sum(name)).unwrap());
        if counted != expected {
            self.wrong(format!("waiting and running are counted as {counted:?} and are {expected:?}"));
        }
        for job in 0..JOBS {
            self.look_at(job).await;
        }
    }

    fn hear(&mut self, frame: Frame) {
        let Frame::Batch(id, batch) = frame else { return };
        match self.seen.credit.checked_sub(1) {
            Some(credit) => self.seen.credit = credit,
            None => self.wrong("a batch without credit".into()),
        }
        self.seen.batches.push(id);
        for (member, index) in batch.members.into_iter().zip(0..) {
            let Prompt::Text(text) = &member.prompt else { panic!("texts were asked") };
            let job = usize::from(!text.ends_with('0'));
            if self.seen.places[job] != Place::Waiting {
                self.wrong(format!("job {job} is sent while it is {:?}", self.seen.places[job]));
            }
            self.seen.places[job] = Place::Aboard(id, index);
            let had = (member.produced.len(), usize::try_from(member.sent).unwrap());
            let has = (self.seen.tokens[job], self::text(job, self.seen.tokens[job]).len());
            if had != has {
                self.wrong(format!("job {job} goes on after {had:?} tokens and bytes, not {has:?}"));
            }
        }
    }

    /// The client has its answer if the job has ended, and only then, and it is its own.
    async fn look_at(&mut self, job: usize) {
        let has_ended = matches!(self.seen.places[job], Place::Finished | Place::Failed);
        let Some(client) = &mut self.clients[job] else { return };
        if client.is_finished() != has_ended {
            let place = self.seen.places[job];
            return self.wrong(format!("job {job} is {place:?}; that its client has been answered: {}", !has_ended));
        }
        if !has_ended {
            return;
        }
        let answer = self.clients[job].take().expect("it has asked").await.unwrap();
        let (whole, said) = (text(job, self.seen.tokens[job]), answer.text());
        let finished = self.seen.places[job] == Place::Finished;
        let pieces: String = if job == 0 {
            let value: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            value["text"].as_str().unwrap_or_default().to_owned()
        } else {
            let events = said.lines().filter_map(|line| line.strip_prefix("data: "));
            let values = events.map(|data| serde_json::from_str::<serde_json::Value>(data).unwrap_or_default());
            values.filter_map(|value| value["text"].as_str().map(str::to_owned)).collect()
        };
        let ends = said.matches("finish_reason").count() + said.matches("\"error\":").count();
        let is_own = if finished { answer.status == 200 && pieces == whole } else { whole.starts_with(&pieces) };
        if !is_own || ends != 1 {
            self.wrong(format!("job {job} is {:?} with {whole:?}, and its client got {said}", self.seen.places[job]));
        }
    }
}

#[test]
fn in_every_order_of_events_credit_is_exact_and_each_job_has_one_end() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checked = Proxy.checker().threads(threads).spawn_bfs().join();
    let told = format!(
        "{} states, {} of them different, to depth {DEPTH}",
        checked.state_count(),
        checked.unique_state_count()
    );
    pillion_tests::say(&told);
    for (property, path) in checked.discoveries() {
        if property.starts_with("credit") {
            let last = path.last_state();
            panic!("{:?} by {:?}", last.seen.wrong, last.steps);
        }
    }
    checked.assert_properties();
    assert!(checked.unique_state_count() > 500, "{told}");
}
