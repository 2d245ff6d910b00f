//! `POST /generate`: one text or a list, one answer when all of it is there.

use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use pillion_protocol::frame::FinishReason;
use serde::Serialize;
use tokio::time::Instant;
use tracing::info;

use super::request::{self, GenerateRequest};
use super::response::{ApiError, ErrorBody, ok};
use super::{Answer, Caller, Service, body};
use crate::admission::{Promise, Rejected};
use crate::batcher::Ticket;
use crate::job::{Completion, End, Failure};

/// The longest that a body may take to arrive, whatever the request's own timeout is.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The answer, for one text or for a list.
#[derive(Debug, Serialize)]
struct Generated<'a> {
    text: OneOrMany<Option<&'a str>>,
    finish_reason: OneOrMany<&'static str>,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<Vec<Option<ErrorBody>>>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

#[derive(Debug, Default, Serialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl Service {
    pub(super) async fn generate(
        &self,
        request: Request<Incoming>,
        request_id: &HeaderValue,
        started: Instant,
        caller: &Caller,
    ) -> Result<Answer, ApiError> {
        if self.is_draining() {
            self.metrics.rejected_draining.increment(1);
            return Err(Rejected::Draining.into());
        }
        body::check_content_type(request.headers())?;
        let arriving = self.handle.admission().arriving();
        let until = started + BODY_TIMEOUT.min(self.limits.request_timeout);
        let admission = self.handle.admission();
        let (bytes, reserved) =
            body::read(request.into_body(), self.limits.body_bytes, started, until, admission).await?;
        let GenerateRequest { asks, is_list, timeout } = request::parse(&bytes, &self.limits)?;
        drop(bytes);
        if self.log_prompts {
            info!(?request_id, prompts = ?asks.iter().map(|ask| &ask.prompt).collect::<Vec<_>>(), "admitting");
        }
        let texts = asks.len();
        let now = Instant::now();
        let ticket = self.handle.submit(asks, caller.past(), now, now + timeout).inspect_err(|refused| {
            if let Rejected::QueueFull { retry_after } = refused {
                caller.is_to_come_back(Promise { due: now + *retry_after, texts });
            }
        })?;
        drop(arriving);
        let ends = collect(ticket, texts).await;
        if !ends.iter().any(|end| matches!(end, Err(Failure::TooLate { .. }))) {
            caller.has_its_answer(Instant::now());
        }
        // The prompts were kept until here, in case that a worker died.
        drop(reserved);
        self.measure(&ends, now);
        if self.log_prompts {
            info!(?request_id, answers = ?ends, "answering");
        }
        respond(&ends, is_list)
    }

    fn measure(&self, ends: &[End], admitted: Instant) {
        for completion in ends.iter().flatten() {
            let Some(first) = completion.first_token_at else { continue };
            self.metrics.time_to_first_token.record((first - admitted).as_secs_f64());
            if completion.completion_tokens > 0 {
                let each = admitted.elapsed().as_secs_f64() / f64::from(completion.completion_tokens);
                self.metrics.time_per_output_token.record(each);
            }
        }
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

/// The answer: an error where nothing of the request went well, so that no failure hides behind a 200.
fn respond(ends: &[End], is_list: bool) -> Result<Answer, ApiError> {
    if let Some(Err(first)) = ends.first()
        && ends.iter().all(Result::is_err)
    {
        return Err(first.clone().into());
    }
    let mut usage = Usage::default();
    for completion in ends.iter().flatten() {
        usage.prompt_tokens += u64::from(completion.prompt_tokens);
        usage.completion_tokens += u64::from(completion.completion_tokens);
    }
    let reason = |end: &End| end.as_ref().map_or("error", |c| name(c.reason));
    let error = |end: &End| end.as_ref().err().map(|failure| ApiError::Failed(failure.clone()).body(None));
    Ok(ok(&match ends {
        [end] if !is_list => Generated {
            text: OneOrMany::One(text(end)),
            finish_reason: OneOrMany::One(reason(end)),
            usage,
            errors: None,
        },
        _ => Generated {
            text: OneOrMany::Many(ends.iter().map(text).collect()),
            finish_reason: OneOrMany::Many(ends.iter().map(reason).collect()),
            usage,
            errors: ends.iter().any(Result::is_err).then(|| ends.iter().map(error).collect()),
        },
    }))
}

fn text(end: &End) -> Option<&str> {
    end.as_ref().ok().map(|completion| &*completion.text)
}

fn name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Deadline => "deadline",
        FinishReason::Cancelled => "cancelled",
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;

    fn well(text: &str) -> Completion {
        Completion {
            text: text.into(),
            reason: FinishReason::Length,
            prompt_tokens: 3,
            completion_tokens: 2,
            first_token_at: None,
        }
    }

    async fn body(answer: Answer) -> Value {
        serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap()
    }

    #[tokio::test]
    async fn one_text_gets_one_answer() {
        let answer = respond(&[Ok(well("a"))], false).unwrap();
        let expected =
            json!({"text": "a", "finish_reason": "length", "usage": {"prompt_tokens": 3, "completion_tokens": 2}});
        assert_eq!(body(answer).await, expected);
    }

    #[tokio::test]
    async fn a_list_keeps_its_order_and_a_member_that_failed_has_its_error() {
        let answer = respond(&[Ok(well("a")), Err(Failure::NoWorker), Ok(well("b"))], true).unwrap();
        let body = body(answer).await;
        assert_eq!(body["text"], json!(["a", null, "b"]));
        assert_eq!(body["finish_reason"], json!(["length", "error", "length"]));
        assert_eq!(body["usage"], json!({"prompt_tokens": 6, "completion_tokens": 4}));
        assert_eq!(body["errors"][1]["code"], "no_worker");
        assert_eq!(body["errors"][0], Value::Null);
    }

    #[test]
    fn a_list_of_which_nothing_went_well_is_an_error() {
        let ends = [Err(Failure::Deadline), Err(Failure::NoWorker)];
        assert_eq!(respond(&ends, true).unwrap_err(), ApiError::Failed(Failure::Deadline));
    }

    #[test]
    fn a_deadline_with_nothing_produced_is_a_failure() {
        let mut completion = well("");
        completion.reason = FinishReason::Deadline;
        assert!(outcome(completion.clone()).is_ok());
        completion.completion_tokens = 0;
        assert_eq!(outcome(completion), Err(Failure::Deadline));
    }
}
