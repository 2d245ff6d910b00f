//! An HTTP load generator with open and closed loops. It measures latencies from the *intended* start of each request.
//!
//! Some generators wait for an answer before they send the next request, or measure a request from when they actually
//! sent it. Such generators hide the waiting times that they should find (Gil Tene's "coordinated omission"). Here a
//! schedule, which does not depend on answers, says when each request starts. The request's latency is measured from
//! that instant, even if no connection was free then.
//!
//! - [`arrivals`]: the schedule, pure.
//! - [`pacer`]: the thread that follows the schedule.
//! - [`pool`]: connections, kept alive.
//! - [`target`]: the server, the requests, and what must be in the answers.
//! - [`mix`]: requests of several kinds, read from a file.
//! - [`tally`]: the counts, and the report.

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

/// The time after which a user of a closed loop asks again if the server did not answer. Without this pause, the
/// generator would spin while the server is not there.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

/// A plan for a load: the server, the requests, when they start, and for how long they are sent.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server and the kinds of requests.
    pub target: Target,
    /// What makes requests start.
    pub load: Load,
    /// The time at the start in which requests are sent but not counted.
    pub warm_up: Duration,
    /// The time after the warm-up in which requests are sent and counted.
    pub duration: Duration,
    /// How long the generator waits for answers after the end.
    pub grace: Duration,
    /// The most connections that may be open at once; at least 1.
    pub max_connections: u32,
    /// The seed from which the kinds of requests are drawn.
    pub seed: u64,
    /// Whether a client that is refused with `Retry-After` waits for that time and asks again, once, over the same
    /// connection.
    pub obey: bool,
}

/// What makes a request start.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// The clock alone makes requests start, however long answers take.
    Open(Arrivals),
    /// The answer to a user's last request makes the user's next request start.
    Closed {
        /// The number of users. Each has one request at a time.
        users: u32,
        /// How long a user waits between an answer and the next request.
        think: Duration,
    },
}

/// Carries a plan out, with one spawned task for each request. It is meant for a single-threaded runtime.
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
            // The counts show how many requests have no answer at the deadline.
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

/// The state that all requests share.
#[derive(Debug)]
struct Driver {
    pool: Arc<Pool>,
    target: Target,
    tally: Mutex<Tally>,
    draw: Mutex<Draw>,
    obey: bool,
}

impl Driver {
    /// Sends the requests that are due, until there are no more, and waits for the answers.
    ///
    /// A request gets its task only when it has a place in the pool. So there are never more tasks than connections,
    /// except for clients that wait to ask again. Requests without a place wait in the channel, in order.
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

    /// Acts as one user of a closed loop. The intended start of a request is when the user has finished thinking, by
    /// tokio's clock.
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

    /// Sends one request, for which `place` is held in the pool, waits for its answer and counts it.
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

    /// Locks the counts. The lock is held for a few instructions and never across an await.
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
