//! An HTTP load generator: open and closed loops, latencies timed from the *intended* start.
//!
//! A generator that waits for an answer before it sends the next request, or that times a request from when it got
//! round to sending it, hides just the waits that it is there to find (Gil Tene's "coordinated omission"). Here a
//! schedule that knows nothing of answers says when each request starts, and its latency runs from that instant,
//! whether or not a connection was free by then.
//!
//! - [`arrivals`]: the schedule, pure.
//! - [`pacer`]: the thread that lets it happen.
//! - [`pool`]: connections, kept alive.
//! - [`target`]: what is asked, and what must come back.
//! - [`mix`]: requests of several kinds, read from a file.
//! - [`tally`]: what is counted, and the report.

pub mod arrivals;
pub mod mix;
pub mod pacer;
pub mod pool;
pub mod tally;
pub mod target;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{UnboundedReceiver, channel};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout_at};

use self::arrivals::Arrivals;
use self::mix::Draw;
use self::pool::Pool;
use self::tally::{Outcome, Report, Tally, Window};
use self::target::Target;

/// A user of a closed loop whom nobody answers asks again after this time: a server that is not there must not make
/// the generator spin.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

/// What to do to whom, and for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Whom to ask what.
    pub target: Target,
    /// When to ask.
    pub load: Load,
    /// Time at the start in which requests are sent and not counted.
    pub warm_up: Duration,
    /// Time after it in which they are counted.
    pub duration: Duration,
    /// How long after the end an answer is still waited for.
    pub grace: Duration,
    /// Connections that may be open at once; at least 1.
    pub max_connections: u32,
    /// What the kinds of requests are drawn from.
    pub seed: u64,
    /// Whether a request that is refused with `Retry-After` asks again over the same connection, once, when that time is
    /// over.
    pub obey: bool,
}

/// What makes a request start.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// The clock alone, however long answers take.
    Open(Arrivals),
    /// The answer to the user's last request.
    Closed {
        /// Users, each with one request at a time.
        users: u32,
        /// How long a user waits between an answer and the next request.
        think: Duration,
    },
}

/// Carries a plan out. Meant for a single-threaded runtime; a request costs it one spawned task.
///
/// # Errors
/// The pacer's thread cannot be started.
pub async fn drive(plan: Plan) -> io::Result<Report> {
    let start = Instant::now();
    let window = Window { start: start + plan.warm_up, end: start + plan.warm_up + plan.duration };
    let deadline = (window.end + plan.grace).into();
    let pool = Pool::new(plan.target.address(), plan.max_connections);
    let tally = Mutex::new(Tally::new(window, plan.target.kinds().iter().map(|kind| &*kind.name)));
    let draw = Mutex::new(Draw::new(plan.target.kinds().iter().map(|kind| kind.weight), plan.seed));
    let driver = Arc::new(Driver { pool, target: plan.target, tally, draw, obey: plan.obey });
    match plan.load {
        Load::Open(arrivals) => {
            let mut due = pacer::pace(start, arrivals.until(plan.warm_up + plan.duration))?;
            // What is unanswered at the deadline is told by the counts.
            let _ = timeout_at(deadline, driver.clone().open(&mut due)).await;
            due.close();
            while let Ok(intended) = due.try_recv() {
                driver.tally().begin(intended);
            }
        }
        Load::Closed { users, think } => {
            let mut all = JoinSet::new();
            (0..users).for_each(|_| drop(all.spawn(driver.clone().user(think, window.end))));
            let _ = timeout_at(deadline, async { while all.join_next().await.is_some() {} }).await;
        }
    }
    Ok(driver.tally().report())
}

/// What all requests share.
#[derive(Debug)]
struct Driver {
    pool: Arc<Pool>,
    target: Target,
    tally: Mutex<Tally>,
    draw: Mutex<Draw>,
    obey: bool,
}

impl Driver {
    /// Sends what is due until no more will be, and waits for the answers.
    ///
    /// A request gets its task only with its place in the pool, so there are never more tasks than connections, beside
    /// those that wait to ask again; what has no place yet waits in the channel, in order.
    async fn open(self: Arc<Self>, due: &mut UnboundedReceiver<Instant>) {
        let (alive, mut all_over) = channel::<()>(1);
        while let Some(intended) = due.recv().await {
            self.tally().begin(intended);
            let place = self.pool.place().await;
            let (driver, alive) = (self.clone(), alive.clone());
            tokio::spawn(async move {
                driver.ask(intended, place).await;
                drop(alive);
            });
        }
        drop(alive);
        all_over.recv().await;
    }

    /// One user of a closed loop. Its requests are intended to start when it is done thinking, as tokio's clock has it.
    async fn user(self: Arc<Self>, think: Duration, end: Instant) {
        loop {
            let intended = Instant::now();
            if intended >= end {
                return;
            }
            self.tally().begin(intended);
            let place = self.pool.place().await;
            let pause = match self.ask(intended, place).await {
                Outcome::NoAnswer => think.max(AFTER_FAILURE),
                _ => think,
            };
            if !pause.is_zero() {
                sleep(pause).await;
            }
        }
    }

    /// One request, from its place in the pool to its place in the counts.
    async fn ask(&self, intended: Instant, place: OwnedSemaphorePermit) -> Outcome {
        let drawn = self.draw.lock().unwrap_or_else(PoisonError::into_inner).kind();
        let kind = &self.target.kinds()[drawn];
        let mut pieces = Vec::new();
        let (outcome, connection) = self.pool.ask(kind, None, &mut pieces).await;
        {
            let mut tally = self.tally();
            tally.end(intended, Instant::now(), outcome, &kind.name);
            tally.streamed(intended, &pieces);
        }
        drop(place);
        match (outcome, connection) {
            (Outcome::Refused { again_in: Some(again_in) }, over) if self.obey => {
                sleep(again_in).await;
                let place = self.pool.place().await;
                let (outcome, connection) = self.pool.ask(kind, over, &mut Vec::new()).await;
                self.tally().again(intended, outcome);
                connection.into_iter().for_each(|connection| self.pool.put(connection));
                drop(place);
            }
            (_, connection) => connection.into_iter().for_each(|connection| self.pool.put(connection)),
        }
        outcome
    }

    /// Held for a few instructions, never across an await.
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
