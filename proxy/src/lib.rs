//! Pillion's proxy: it takes HTTP requests, lets them ride together in batches, and passes the batches to workers over
//! a Unix-domain socket. `README.md` beside this crate has the picture and the invariants.

mod address;
pub mod admission;
pub mod app;
pub mod batcher;
pub mod check;
pub mod config;
pub mod descriptors;
mod doors;
pub mod http;
pub mod inherited;
pub mod job;
pub mod lifecycle;
pub mod link;
pub mod metrics;
pub mod policy;
pub mod queue;
pub mod socket;
