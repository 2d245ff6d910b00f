//! The HTTP API's dialects: bytes of a body become a [`Call`](call::Call), what comes of it becomes bytes again. No hyper, no
//! sockets, and no status code: an [`ApiError`](error::ApiError) says what is wrong, and `http` says it as a status.

pub(crate) mod call;
pub(crate) mod error;
mod fields;
pub(crate) mod generate;
pub(crate) mod openai;
mod write;
