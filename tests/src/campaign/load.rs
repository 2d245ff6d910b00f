//! Clients at a steady rate, each of whose answers is compared with what it must be.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::client::{Answer, Client};
use crate::events::Parser;
use crate::random::SplitMix64;

/// Something to ask, and what the answer must be.
#[derive(Clone, Debug)]
pub struct Question {
    /// The body.
    pub body: Value,
    /// The text of the answer.
    pub expected: String,
    /// Whether it is answered by events.
    pub is_stream: bool,
}

/// What became of all requests.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests.
    pub asked: usize,
    /// Of them, those for a stream.
    pub streams: usize,
    /// Those that got no answer or another status than 200: what they got.
    pub failed: Vec<String>,
    /// Those that got another text than theirs.
    pub wrong: Vec<String>,
    /// How long each took.
    took: Vec<Duration>,
}

impl Tally {
    /// Half took no longer than the first, in milliseconds, 99 in a hundred than the second, and all than the third.
    pub fn percentiles(&self) -> [f64; 3] {
        let mut took = self.took.clone();
        took.sort_unstable();
        let at = |hundredths: usize| {
            let place = (took.len() * hundredths / 100).min(took.len().saturating_sub(1));
            took.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        [at(50), at(99), at(100)]
    }

    /// Whether everybody got his own answer.
    pub fn is_clean(&self) -> bool {
        self.asked > 0 && self.failed.is_empty() && self.wrong.is_empty()
    }

    /// One more.
    pub(crate) fn add(&mut self, question: &Question, result: Result<String, String>, took: Duration) {
        self.asked += 1;
        self.streams += usize::from(question.is_stream);
        self.took.push(took);
        match result {
            Err(failure) => self.failed.push(failure),
            Ok(text) if text != question.expected => {
                self.wrong.push(format!("{text:?} is not {:?}, for {}", question.expected, question.body));
            }
            Ok(_) => {}
        }
    }
}

/// Clients that ask until they are told to stop.
#[derive(Debug)]
pub struct Load {
    stop: watch::Sender<bool>,
    counted: JoinHandle<Tally>,
}

impl Load {
    /// So many requests a second, at random (seeded), drawn from `questions`.
    ///
    /// # Panics
    /// There are no questions.
    pub fn start(address: SocketAddr, rate: f64, questions: Arc<[Question]>) -> Self {
        assert!(!questions.is_empty());
        let (stop, mut stopped) = watch::channel(false);
        let (results, mut counted) = mpsc::unbounded_channel();
        let client = Client::new(address);
        tokio::spawn(async move {
            let mut random = SplitMix64(1);
            let mut due = tokio::time::Instant::now();
            loop {
                due += random.exponential(Duration::from_secs_f64(1.0 / rate));
                tokio::select! {
                    () = tokio::time::sleep_until(due) => {}
                    _ = stopped.wait_for(|&stopped| stopped) => return,
                }
                let nth = usize::try_from(random.next() % questions.len() as u64).expect("few questions");
                let (client, questions, results) = (client.clone(), questions.clone(), results.clone());
                tokio::spawn(async move {
                    let begun = Instant::now();
                    let answer = ask(&client, &questions[nth]).await;
                    let _ = results.send((nth, answer, begun.elapsed(), questions));
                });
            }
        });
        let counted = tokio::spawn(async move {
            let mut tally = Tally::default();
            // Until nobody asks and everybody has been answered.
            while let Some((nth, answer, took, questions)) = counted.recv().await {
                tally.add(&questions[nth], answer, took);
            }
            tally
        });
        Self { stop, counted }
    }

    /// No more is asked. What became of everything, once it has been answered.
    ///
    /// # Panics
    /// A client panics.
    pub async fn stop(self) -> Tally {
        self.stop.send_replace(true);
        self.counted.await.expect("no client panics")
    }
}

/// The answer's text.
///
/// # Errors
/// There is none: what there is instead.
pub async fn ask(client: &Client, question: &Question) -> Result<String, String> {
    let path = if question.is_stream { "/generate_stream" } else { "/generate" };
    let headers = [("content-type", "application/json")];
    let answer = client.try_send(Method::POST, path, &headers, question.body.to_string().into()).await?;
    if answer.status != 200 {
        return Err(format!("{}: {}", answer.status, answer.text()));
    }
    if question.is_stream { streamed(&answer) } else { whole(&answer) }
}

fn whole(answer: &Answer) -> Result<String, String> {
    let value: Value = serde_json::from_slice(&answer.body).map_err(|error| format!("{error}: {}", answer.text()))?;
    value["text"].as_str().map(str::to_owned).ok_or(answer.text())
}

fn streamed(answer: &Answer) -> Result<String, String> {
    let (mut parser, mut events) = (Parser::default(), VecDeque::new());
    parser.push(&answer.body, &mut events);
    let mut text = String::new();
    let mut has_ended = false;
    for event in events.iter().filter(|event| !event.is_comment) {
        let value: Value = serde_json::from_str(&event.data).map_err(|error| error.to_string())?;
        if has_ended || event.name == "error" {
            return Err(format!("{event:?} after {text:?}"));
        }
        text.push_str(value["text"].as_str().unwrap_or_default());
        has_ended = value["finish_reason"].is_string();
    }
    if has_ended && parser.is_between() { Ok(text) } else { Err(format!("it broke off after {text:?}")) }
}
