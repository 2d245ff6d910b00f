//! What Pillion's programs have in common as processes: exit codes, log lines, and commands beside serving.

pub mod command;
pub mod exit;
pub mod log;
