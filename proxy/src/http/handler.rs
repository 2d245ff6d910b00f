//! Handles a request that generates text: reads and parses the body, submits the texts, and writes their outcomes.

use std::fmt::Display;
use std::time::SystemTime;

use bytes::Bytes;
use hyper::Request;
use hyper::body::Body;
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tracing::info;

use super::body;
use super::record::Record;
use super::response::{self, Answer};
use super::service::Service;
use super::streaming;
use crate::admission::{BODY_TIMEOUT, BodyBytes, Rejected};
use crate::api::call::{Call, Dialect, Limits, ParseContext};
use crate::api::error::ApiError;
use crate::domain::{CountGuard, Failure, RequestContext, prompt_bytes};
use crate::scheduler::models::Models;

/// Bodies of this many bytes and more are parsed on another thread, so that nobody else waits for it.
const LARGE: usize = 64 * 1024;

fn parse(dialect: &Dialect, body: &[u8], limits: &Limits, models: &Models, request_id: &str) -> Result<Call, ApiError> {
    (dialect.parse)(body, &ParseContext { limits, models, request_id, clock: SystemTime::now })
}

impl Service {
    /// Answers a request to an endpoint that generates text.
    pub(super) async fn generate<B>(&self, dialect: &'static Dialect, request: Request<B>, mut record: Record) -> Answer
    where
        B: Body<Data = Bytes, Error: Display> + Unpin,
    {
        let (call, reserved, arriving) = match self.parse(dialect, request, &mut record).await {
            Ok(parsed) => parsed,
            Err(error) => return record.refuse(&error),
        };
        let Call { requests, timeout, stream, renderer } = call;
        let now = Instant::now();
        record.admitted(&requests, stream, now);
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

    async fn parse<B>(
        &self,
        dialect: &'static Dialect,
        request: Request<B>,
        record: &mut Record,
    ) -> Result<(Call, BodyBytes, CountGuard), ApiError>
    where
        B: Body<Data = Bytes, Error: Display> + Unpin,
    {
        let (handle, limits) = (&self.shared.handle, &self.shared.limits);
        self.refuse_if_draining()?;
        body::check_content_type(request.headers())?;
        let arriving = handle.admission().arriving().add();
        let timeout = BODY_TIMEOUT.min(limits.request_timeout);
        let (bytes, mut reserved) =
            body::read(request.into_body(), limits.body_bytes, record.started(), timeout, handle.admission()).await?;
        let body_bytes = bytes.len();
        let call = if body_bytes < LARGE {
            handle.serving(|serving| parse(dialect, &bytes, limits, &serving.models, record.request_id()))?
        } else {
            let (limits, models) = (*limits, handle.serving(|serving| serving.models.clone()));
            let request_id = record.request_id().to_owned();
            // The memory stays reserved while the body is parsed, even if the client leaves meanwhile.
            let parse = move || (parse(dialect, &bytes, &limits, &models, &request_id), reserved);
            // An error means that parsing has panicked, or that the process ends.
            let parsed = spawn_blocking(parse).await.map_err(|_| ApiError::Failed(Failure::Internal))?;
            reserved = parsed.1;
            parsed.0?
        };
        // A prompt with several answers is kept several times.
        let prompts: usize = call.requests.iter().map(|request| prompt_bytes(&request.prompt)).sum();
        reserved.grow(prompts.saturating_sub(body_bytes))?;
        // The drain may have begun while the body arrived.
        self.refuse_if_draining()?;
        Ok((call, reserved, arriving))
    }

    fn refuse_if_draining(&self) -> Result<(), ApiError> {
        if !self.is_draining() {
            return Ok(());
        }
        self.shared.metrics.rejected_draining.increment(1);
        Err(Rejected::Draining.into())
    }
}
