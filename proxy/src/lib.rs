//! Pillion's proxy: it takes HTTP requests, coalesces their texts into batches, and passes the batches to workers over a
//! Unix-domain socket. `README.md` beside this crate has the picture and the invariants.

mod address;
pub mod admission;
mod api;
pub mod app;
pub mod auth;
pub mod check;
pub mod config;
pub mod descriptors;
pub mod domain;
pub mod http;
pub mod link;
pub mod metrics;
mod numbers;
pub mod policy;
pub mod scheduler;
pub mod signals;
pub mod socket;
pub mod transport;
