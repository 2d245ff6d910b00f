//! Holds a CTranslate2 model and serves batches to a Pillion proxy over a Unix socket.
//!
//! `README.md` beside this crate follows a batch through the worker. The [`session`] receives the batch, an engine thread
//! ([`engine`]) prepares and runs it, and the session turns the resulting events into frames. The modules that decide are
//! pure: [`cohort`], [`steps`], [`credit`], and the stop strings in [`tokens`].

pub mod app;
pub mod batch;
pub mod budget;
pub mod caught;
pub mod check;
pub mod cohort;
pub mod config;
pub mod credit;
pub mod engine;
pub mod environment;
mod error;
pub mod inspect;
pub mod leave;
pub mod lifecycle;
pub mod liveness;
pub mod memory;
pub mod model;
pub mod pace;
pub mod prepare;
pub mod program;
pub mod session;
pub mod shared;
pub mod signals;
pub mod steps;
pub mod tokens;
pub mod warmup;

pub use error::Error;
