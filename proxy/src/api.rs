//! The dialects of the HTTP API. A dialect parses the bytes of a body into a [`Call`](call::Call) and writes outcomes as bytes.
//! It knows no hyper, no sockets and no status code: it says what is wrong as an [`ApiError`](error::ApiError), and `http` maps
//! that to a status.

pub(crate) mod call;
pub(crate) mod error;
mod fields;
pub(crate) mod generate;
pub(crate) mod openai;
mod write;
