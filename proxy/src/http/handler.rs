//! The way of a request that generates: its body is read and parsed, its texts are admitted, and their outcomes are written.

use std::sync::Arc;
use std::time::SystemTime;

use hyper::Request;
use hyper::body::Incoming;
use tokio::time::Instant;
use tracing::info;

use super::body;
use super::client_history::ClientHistory;
use super::record::Record;
use super::response::{self, Answer};
use super::service::Service;
use super::streaming::{self, Events};
use crate::admission::{Arriving, BODY_TIMEOUT, BodyBytes, Rejected};
use crate::api::call::{Call, Dialect, ParseContext};
use crate::api::error::ApiError;
use crate::domain::{Completion, Outcome, RequestContext, is_refusal, prompt_bytes};
use crate::scheduler::Ticket;

impl Service {
    /// Answers a request of an endpoint that generates.
    pub(super) async fn call(
        &self,
        dialect: &'static Dialect,
        request: Request<Incoming>,
        client: &Arc<ClientHistory>,
        mut record: Record,
    ) -> Answer {
        let (call, reserved, arriving) = match self.read(dialect, request, &mut record).await {
            Ok(read) => read,
            Err(error) => return record.refuse(&error),
        };
        let Call { requests, timeout, stream, renderer } = call;
        let now = Instant::now();
        record.admitted(requests.len(), stream, now);
        let log_texts = self.shared.log_prompts;
        if log_texts {
            let prompts: Vec<_> = requests.iter().map(|request| &request.prompt).collect();
            info!(request_id = record.request_id(), ?prompts, "admitting");
        }
        let (origin, answered) = (record.origin(), client.take_answered());
        let context = RequestContext { origin, answered, now, deadline: now + timeout };
        let handle = &self.shared.handle;
        if stream {
            let stream = match handle.stream(requests, context) {
                Ok(stream) => stream,
                Err(rejected) => return record.refuse(&rejected.into()),
            };
            drop(arriving);
            // The prompts are kept until the last text has ended, in case that a worker dies.
            stream.hold(reserved);
            let events = Events::new(stream, client.clone());
            return streaming::answer(events, renderer, record, log_texts).await;
        }
        let outcomes = match handle.submit(requests, context) {
            Ok(ticket) => {
                drop(arriving);
                collect(ticket).await
            }
            Err(rejected) => return record.refuse(&rejected.into()),
        };
        // The prompts were kept until here, in case that a worker died.
        drop(reserved);
        if !outcomes.iter().any(is_refusal) {
            client.answered(Instant::now());
        }
        if log_texts {
            info!(request_id = record.request_id(), answers = ?outcomes, "answering");
        }
        outcomes.iter().for_each(|outcome| record.ended(outcome));
        match renderer.whole(&outcomes) {
            Ok(body) => record.close(response::json(body)),
            Err(error) => record.refuse(&error),
        }
    }

    async fn read(
        &self,
        dialect: &Dialect,
        request: Request<Incoming>,
        record: &mut Record,
    ) -> Result<(Call, BodyBytes, Arriving), ApiError> {
        let (handle, limits) = (&self.shared.handle, &self.shared.limits);
        if self.is_draining() {
            self.shared.metrics.rejected_draining.increment(1);
            return Err(Rejected::Draining.into());
        }
        body::check_content_type(request.headers())?;
        let arriving = handle.admission().arriving();
        let timeout = BODY_TIMEOUT.min(limits.request_timeout);
        let (bytes, mut reserved) =
            body::read(request.into_body(), limits.body_bytes, record.started(), timeout, handle.admission()).await?;
        let (request_id, now) = (record.request_id(), SystemTime::now());
        let call =
            handle.with_models(|models| (dialect.parse)(&bytes, &ParseContext { limits, models, request_id, now }))?;
        // A prompt with several answers is there several times.
        let prompts: usize = call.requests.iter().map(|request| prompt_bytes(&request.prompt)).sum();
        reserved.grow(prompts.saturating_sub(bytes.len()))?;
        Ok((call, reserved, arriving))
    }
}

/// Every text's outcome, in the request's order.
async fn collect(mut ticket: Ticket) -> Vec<Outcome> {
    let mut outcomes = Vec::with_capacity(1);
    while let Some(outcome) = ticket.next().await {
        outcomes.push(outcome.and_then(Completion::checked));
    }
    outcomes
}
