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
use crate::domain::{Failure, RequestContext, prompt_bytes};

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
        let answers = match self.shared.handle.submit(requests, context, stream) {
            Ok(answers) => answers,
            Err(rejected) => return record.refuse(&rejected.into()),
        };
        drop(arriving);
        // The prompts are kept until the last text has ended, in case that a worker dies.
        answers.hold(reserved);
        let mut events = Events::new(answers, client.clone());
        if stream {
            return streaming::answer(events, renderer, record, log_texts).await;
        }
        let mut outcomes = vec![Err(Failure::Internal); record.texts()];
        while let Some(new) = events.next().await {
            new.into_iter().for_each(|event| outcomes[event.text] = event.outcome.unwrap_or(Err(Failure::Internal)));
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
