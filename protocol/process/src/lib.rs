//! What Pillion's programs have in common as processes: exit codes, log lines, commands beside serving, and the
//! path of the socket between them.

pub mod command;
pub mod exit;
pub mod log;
pub mod socket;
