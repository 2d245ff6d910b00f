//! Handles a request that generates text: reads and parses the body, submits the texts, and writes their outcomes.

use std::time::SystemTime;

use hyper::Request;
use hyper::body::Incoming;
use tokio::time::Instant;
use tracing::info;

use super::body;
use super::record::Record;
use super::response::{self, Answer};
use super::service::Service;
use super::streaming;
use crate::admission::{BODY_TIMEOUT, BodyBytes, Rejected};
use crate::api::call::{Call, Dialect, ParseContext};
use crate::api::error::ApiError;
use crate::domain::{CountGuard, RequestContext, prompt_bytes};
use crate::scheduler::Serving;

impl Service {
    /// Answers a request to an endpoint that generates text.
    pub(super) async fn generate(
        &self,
        dialect: &'static Dialect,
        request: Request<Incoming>,
        mut record: Record,
    ) -> Answer {
        let (call, reserved, arriving) = match self.parse(dialect, request, &mut record).await {
            Ok(parsed) => parsed,
            Err(error) => return record.refuse(&error),
        };
        let Call { requests, timeout, stream, renderer } = call;
        let now = Instant::now();
        record.admitted(requests.len(), stream, now);
        let log_texts = self.shared.log_prompts;
        if log_texts {
            let prompts: Vec<_> = requests.iter().map(|request| &request.prompt).collect();
            info!(request_id = record.request_id(), ?prompts, "received prompts");
        }
        let (origin, answered) = (record.origin(), record.take_answered());
        let context = RequestContext { origin, answered, now, deadline: now + timeout };
        let answers = match self.shared.handle.submit(requests, context, stream) {
            Ok(answers) => answers,
            Err(rejected) => return record.refuse(&rejected.into()),
        };
        drop(arriving);
        // The prompts are kept until the last text has ended: if a worker dies, the next one needs them.
        answers.hold(reserved);
        if stream {
            return streaming::answer(answers, renderer, record, log_texts).await;
        }
        let outcomes = answers.outcomes().await;
        if log_texts {
            info!(request_id = record.request_id(), answers = ?outcomes, "sending answers");
        }
        outcomes.iter().for_each(|outcome| record.ended(outcome));
        match renderer.whole(&outcomes) {
            Ok(body) => record.close(response::json(body)),
            Err(error) => record.refuse(&error),
        }
    }

    async fn parse(
        &self,
        dialect: &Dialect,
        request: Request<Incoming>,
        record: &mut Record,
    ) -> Result<(Call, BodyBytes, CountGuard), ApiError> {
        let (handle, limits) = (&self.shared.handle, &self.shared.limits);
        if self.is_draining() {
            self.shared.metrics.rejected_draining.increment(1);
            return Err(Rejected::Draining.into());
        }
        body::check_content_type(request.headers())?;
        let arriving = handle.admission().arriving().add();
        let timeout = BODY_TIMEOUT.min(limits.request_timeout);
        let (bytes, mut reserved) =
            body::read(request.into_body(), limits.body_bytes, record.started(), timeout, handle.admission()).await?;
        let (request_id, clock) = (record.request_id(), SystemTime::now);
        let call = handle.serving(|Serving { models, .. }| {
            (dialect.parse)(&bytes, &ParseContext { limits, models, request_id, clock })
        })?;
        // A prompt with several answers is kept several times.
        let prompts: usize = call.requests.iter().map(|request| prompt_bytes(&request.prompt)).sum();
        reserved.grow(prompts.saturating_sub(bytes.len()))?;
        Ok((call, reserved, arriving))
    }
}
