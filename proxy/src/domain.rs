//! The proxy's plain data: a request's texts, which of them can share a batch, what they demand of an engine, and how
//! each text ends. A job is one text of one request. Each job gets exactly one outcome.

mod batch_key;
mod count;
mod demand;
mod feed;
mod job;
mod outcome;
mod reply;
mod request;

pub use self::batch_key::{BatchKey, ModelFingerprint, ModelId, Quarantine, Target, WorkerModel};
pub use self::count::{Count, CountGuard};
pub use self::demand::Demand;
pub use self::feed::{Feed, StreamEvent};
pub use self::job::{Job, JobId, JobRange, Progress};
pub use self::outcome::{Completion, Dispatch, Failure, Outcome};
pub use self::reply::Reply;
pub use self::request::{Answered, GenerationRequest, Origin, RequestContext, Stops, TemplateKwargs, prompt_bytes};
