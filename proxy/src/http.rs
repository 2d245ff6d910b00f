//! HTTP semantics: the endpoint of each path, statuses and headers, request ids, API keys, and one line in the access log for
//! each request.

mod access_log;
mod body;
mod client_history;
mod handler;
mod record;
mod request_id;
mod response;
mod router;
mod service;
mod streaming;
mod trace;

pub use self::client_history::ClientHistory;
pub use self::router::Scope;
pub use self::service::Service;
