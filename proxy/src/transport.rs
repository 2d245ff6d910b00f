//! Connections: the listening sockets, the bound on connections, and the closing of connections that are idle or slow. The
//! transport serves one HTTP service and knows no route.

pub mod activity;
pub mod connection;
pub mod listener;
mod rate_limited_log;
mod request_body;
mod tracked_body;
pub mod worker_listener;
