//! When a batch leaves and who is in it. Plain data: what happens is told to it, and the instant is passed in.
//!
//! [`hold`] decides whether the next batch leaves now or waits for companions, [`candidates`] who is in it,
//! [`preemption`] whether a running batch gives way. They rest on [`returns`], which clients are likely to come, and on
//! [`forecast`], what a batch will cost. [`backlog`] says how long a new request will wait.

pub mod backlog;
pub mod candidates;
pub mod forecast;
pub mod hold;
pub mod preemption;
pub mod returns;
mod spans;

pub use self::hold::{Decision, Policy, View};
