//! Holds a CTranslate2 model and serves batches to a Pillion proxy over a Unix socket.
//!
//! `README.md` beside this crate has the picture. A batch goes `session` → `engine` (`prepare`, `tokens`, `cohort`,
//! `steps`), and its tokens come back as events that the session turns into frames. What decides is pure:
//! [`cohort`], [`steps`], [`credit`], and the stop strings in [`tokens`].

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
pub mod log;
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
