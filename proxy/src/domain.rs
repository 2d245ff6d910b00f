//! What travels through the proxy, as plain data: a request's texts, what they ask of an engine, which of them can share a
//! batch, and how each ends. A job is one text of one request, on its way to exactly one outcome.

mod batch_key;
mod demand;
mod feed;
mod job;
mod outcome;
mod queue_slot;
mod reply;
mod request;

pub use self::batch_key::{BatchKey, ModelFingerprint, ModelId, OptionBits, Quarantine, WorkerModel};
pub use self::demand::Demand;
pub use self::feed::{Feed, StreamEvent};
pub use self::job::{Job, JobId, JobRange, Progress};
pub use self::outcome::{Completion, Dispatch, Failure, Outcome};
pub use self::queue_slot::{QueueDepth, QueueSlot};
pub use self::reply::Reply;
pub use self::request::{GenerationRequest, Origin, RequestContext, Stops, TemplateKwargs, prompt_bytes};
