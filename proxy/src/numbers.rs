//! Conversions between kinds of numbers that lose nothing that matters here.

/// A count as `f64`.
#[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
pub(crate) fn as_f64(n: usize) -> f64 {
    n as f64
}

/// A count as `u32`. A count that does not fit becomes `u32::MAX`.
pub(crate) fn as_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
