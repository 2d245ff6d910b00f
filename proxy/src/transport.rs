//! Connections: the listening sockets, how many clients there may be at once, and when a connection has been useless for too
//! long. Of what is served it knows one HTTP service and no route.

pub mod activity;
pub mod connection;
pub mod listener;
mod rate_limited_log;
mod tracked_body;
pub mod worker_listener;
