//! Clients with a connection each, that ask now and then, and somebody who asks whether the proxy is alive.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until, timeout};

use crate::campaign::load::{Question, Tally, ask};
use crate::client::Client;

/// How often each of them asks.
const EVERY: Duration = Duration::from_secs(5);
/// How long a probe may take: Kubernetes' default is a second.
const PROBE: Duration = Duration::from_secs(1);

/// Clients that keep their connections from one watch to the next.
#[derive(Debug)]
pub struct Honest {
    clients: Vec<Client>,
    questions: Arc<[Question]>,
}

impl Honest {
    /// So many of them.
    pub fn new(address: SocketAddr, clients: usize, questions: Arc<[Question]>) -> Self {
        Self { clients: (0..clients).map(|_| Client::new(address)).collect(), questions }
    }

    /// They ask for so long, evenly spread. Times are taken from when a request was to be made.
    ///
    /// # Panics
    /// A client panics.
    pub async fn watch(&self, watch: Duration) -> Tally {
        let start = tokio::time::Instant::now();
        let (results, mut counted) = mpsc::unbounded_channel();
        let step = EVERY / u32::try_from(self.clients.len()).expect("not so many");
        for (nth, client) in self.clients.iter().enumerate() {
            let (client, questions, results) = (client.clone(), self.questions.clone(), results.clone());
            tokio::spawn(async move {
                let mut due = start + step * u32::try_from(nth).expect("not so many");
                let mut turn = nth;
                while due < start + watch {
                    sleep_until(due).await;
                    let question = turn % questions.len();
                    let answer = ask(&client, &questions[question]).await;
                    let _ = results.send((question, answer, due.elapsed()));
                    (due, turn) = (due + EVERY, turn + 7);
                }
            });
        }
        drop(results);
        let mut tally = Tally::default();
        while let Some((question, answer, took)) = counted.recv().await {
            tally.add(&self.questions[question], answer, took);
        }
        tally
    }
}

/// Asks `/livez` ten times a second, over a new connection each time.
#[derive(Debug)]
pub struct Prober {
    stop: watch::Sender<bool>,
    probing: JoinHandle<Probed>,
}

/// What it heard.
#[derive(Clone, Copy, Debug, Default)]
pub struct Probed {
    /// How often it asked.
    pub asked: usize,
    /// How often there was no 200 within a second.
    pub failed: usize,
    /// The longest time to a 200.
    pub longest: Duration,
}

impl Prober {
    /// Begins.
    pub fn start(address: SocketAddr) -> Self {
        let (stop, stopped) = watch::channel(false);
        let probing = tokio::spawn(async move {
            let mut probed = Probed::default();
            while !*stopped.borrow() {
                let begun = Instant::now();
                let answer = timeout(PROBE, Client::new(address).try_get("/livez")).await.ok().flatten();
                probed.asked += 1;
                if answer.is_some_and(|answer| answer.status == 200) {
                    probed.longest = probed.longest.max(begun.elapsed());
                } else {
                    probed.failed += 1;
                }
                sleep(Duration::from_millis(100)).await;
            }
            probed
        });
        Self { stop, probing }
    }

    /// Ends it.
    ///
    /// # Panics
    /// It panics.
    pub async fn stop(self) -> Probed {
        self.stop.send_replace(true);
        self.probing.await.expect("it does not panic")
    }
}
