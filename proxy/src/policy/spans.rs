//! The lengths of time for which it may pay to hold a batch.

use std::time::Duration;

/// The shortest: tokio's timers tick in milliseconds.
pub(super) const SHORTEST: Duration = Duration::from_millis(1);
/// Each is so much longer than the one before.
const LONGER: (u32, u32) = (3, 2);

/// From the shortest up to `longest`.
pub(super) fn up_to(longest: Duration) -> impl Iterator<Item = Duration> {
    let all = std::iter::successors(Some(SHORTEST), |span| Some(*span * LONGER.0 / LONGER.1));
    all.take_while(move |span| *span <= longest)
}
