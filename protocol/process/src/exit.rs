//! Exit codes, as `sysexits.h` numbers them where it has one.

/// A flag or its value is wrong.
pub const BAD_FLAG: u8 = 64;
/// The model or its tokenizer is missing or cannot be served.
pub const NO_MODEL: u8 = 66;
/// An address, a socket or a device is not available.
pub const UNAVAILABLE: u8 = 69;
/// A defect, a failure of the system, or an engine that is stuck.
pub const INTERNAL: u8 = 70;
/// The drain timeout passed with work left.
pub const WORK_LEFT: u8 = 75;
