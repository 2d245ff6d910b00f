//! From a request's body to its answer: what every endpoint that generates has in common.

use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use pillion_protocol::frame::FinishReason;
use tokio::time::Instant;
use tracing::info;

use super::caller::Caller;
use super::openai::{chat, completions};
use super::record::Record;
use super::response::{Api, ApiError};
use super::{Answer, Service, body, events, request};
use crate::admission::{self, Arriving, Rejected};
use crate::batcher::{About, Stream, Ticket};
use crate::job::{Ask, Completion, End, Failure, News, prompt_bytes};

/// A valid request.
#[derive(Debug)]
pub(super) struct Call {
    /// One per text.
    pub asks: Vec<Ask>,
    /// How long it may take.
    pub timeout: Duration,
    /// Whether its answer is wanted as it is made.
    pub stream: bool,
    /// How its answer is written.
    pub shape: Box<dyn Shape>,
}

/// How an endpoint writes its answers.
pub(super) trait Shape: std::fmt::Debug + Send {
    /// The answer, when all of it is there.
    ///
    /// # Errors
    /// It is an error: so that no failure hides behind a 200.
    fn whole(&self, ends: &[End]) -> Result<Answer, ApiError>;
    /// Before the first event of a stream.
    fn begin(&mut self, _out: &mut Vec<u8>) {}
    /// What is new of a text, which has not failed.
    fn news(&mut self, text: usize, piece: &str, end: Option<&Completion>, out: &mut Vec<u8>);
    /// A text has failed.
    fn failed(&mut self, text: usize, error: ApiError, api: Api, request_id: &str, out: &mut Vec<u8>);
    /// After the last event.
    fn end(&mut self, _out: &mut Vec<u8>) {}
}

impl Service {
    /// Answers a request of an endpoint that generates.
    pub(super) async fn call(
        &self,
        api: Api,
        request: Request<Incoming>,
        caller: &Arc<Caller>,
        mut record: Record,
    ) -> Answer {
        let (call, reserved, arriving) = match self.read(api, request, &mut record).await {
            Ok(read) => read,
            Err(error) => return record.refuse(error, api),
        };
        let Call { asks, timeout, stream, shape } = call;
        let texts = asks.len();
        let now = Instant::now();
        record.admitted(texts, stream, now);
        if self.log_prompts {
            let prompts: Vec<_> = asks.iter().map(|ask| &ask.prompt).collect();
            info!(request_id = record.request_id(), ?prompts, "admitting");
        }
        let about = About { origin: record.origin(), answered: caller.answered(), now, deadline: now + timeout };
        if stream {
            match self.handle.stream(asks, about) {
                Ok(stream) => {
                    drop(arriving);
                    // The prompts are kept until the last text has ended, in case that a worker dies.
                    stream.hold(reserved);
                    let stream = Streaming { stream, caller: caller.clone(), is_refused: false };
                    events::answer(stream, shape, record, api, self.log_prompts).await
                }
                Err(refused) => record.refuse(refused.into(), api),
            }
        } else {
            let ends = match self.handle.submit(asks, about) {
                Ok(ticket) => {
                    drop(arriving);
                    collect(ticket, texts).await
                }
                Err(refused) => return record.refuse(refused.into(), api),
            };
            // The prompts were kept until here, in case that a worker died.
            drop(reserved);
            answered(caller, &ends);
            if self.log_prompts {
                info!(request_id = record.request_id(), answers = ?ends, "answering");
            }
            ends.iter().for_each(|end| record.heard(end));
            match shape.whole(&ends) {
                Ok(answer) => record.close(answer),
                Err(error) => record.refuse(error, api),
            }
        }
    }

    async fn read(
        &self,
        api: Api,
        request: Request<Incoming>,
        record: &mut Record,
    ) -> Result<(Call, admission::Bytes, Arriving), ApiError> {
        if self.is_draining() {
            self.metrics.rejected_draining.increment(1);
            return Err(Rejected::Draining.into());
        }
        body::check_content_type(request.headers())?;
        let arriving = self.handle.admission().arriving();
        let started = record.started();
        let until = started + admission::BODY_TIMEOUT.min(self.limits.request_timeout);
        let admission = self.handle.admission();
        let (bytes, mut reserved) =
            body::read(request.into_body(), self.limits.body_bytes, started, until, admission).await?;
        let call = match api {
            Api::Generate => request::parse(&bytes, &self.limits, false),
            Api::GenerateStream => request::parse(&bytes, &self.limits, true),
            Api::Completions => completions::parse(&bytes, &self.limits, &self.handle, record.request_id()),
            Api::Chat => chat::parse(&bytes, &self.limits, &self.handle, record.request_id()),
            Api::Models => Err(ApiError::Method { allow: "GET, HEAD" }),
        }?;
        // A prompt with several answers is there several times.
        let prompts: usize = call.asks.iter().map(|ask| prompt_bytes(&ask.prompt)).sum();
        reserved.grow(prompts.saturating_sub(bytes.len()))?;
        Ok((call, reserved, arriving))
    }
}

/// A request's answers as they are made.
#[derive(Debug)]
pub(super) struct Streaming {
    stream: Stream,
    caller: Arc<Caller>,
    /// It was not let in after all, so its client has had no answer.
    is_refused: bool,
}

impl Streaming {
    /// What is new; `None` once every text has ended. Safe to drop.
    pub(super) async fn news(&mut self) -> Option<Vec<News>> {
        let Some(mut news) = self.stream.news().await else {
            if !self.is_refused {
                self.caller.has_its_answer(Instant::now());
            }
            return None;
        };
        for news in &mut news {
            self.is_refused |= matches!(news.end, Some(Err(Failure::TooLate { .. })));
            news.end = news.end.take().map(|end| end.and_then(outcome));
        }
        Some(news)
    }
}

fn answered(caller: &Caller, ends: &[End]) {
    if !ends.iter().any(|end| matches!(end, Err(Failure::TooLate { .. }))) {
        caller.has_its_answer(Instant::now());
    }
}

/// Every text's end, in the request's order.
async fn collect(mut ticket: Ticket, texts: usize) -> Vec<End> {
    let mut ends = Vec::with_capacity(texts);
    while let Some(end) = ticket.next().await {
        ends.push(end.and_then(outcome));
    }
    ends
}

/// A deadline that passed before anything was produced is a failure, whoever noticed it.
fn outcome(completion: Completion) -> End {
    if completion.reason == FinishReason::Deadline && completion.completion_tokens == 0 {
        return Err(Failure::Deadline);
    }
    Ok(completion)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_with_nothing_produced_is_a_failure() {
        let completion = Completion {
            text: String::new(),
            reason: FinishReason::Deadline,
            prompt_tokens: 3,
            completion_tokens: 2,
            first_token_at: None,
            boarding: None,
        };
        assert!(outcome(completion.clone()).is_ok());
        assert_eq!(outcome(Completion { completion_tokens: 0, ..completion }), Err(Failure::Deadline));
    }
}
