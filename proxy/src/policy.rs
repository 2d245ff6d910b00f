//! When a batch leaves and which jobs are in it. Plain data: what happens is told to it, and the instant is passed in.
//!
//! [`hold`] decides whether the next batch leaves now or is held, [`candidates`] which jobs are in it,
//! [`preemption`] whether a running batch gives way. They rest on [`returns`], which clients are expected, and on
//! [`forecast`], what a batch will cost. [`backlog`] says how long a new request will wait.

pub mod backlog;
pub mod candidates;
pub mod forecast;
pub mod hold;
pub mod preemption;
pub mod returns;

pub use self::hold::{Decision, Policy, View};
