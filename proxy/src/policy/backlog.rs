//! How long whoever comes now will wait. Plain data.

use std::time::Duration;

use super::company::{ALIKE, Cell};
use super::forecast::Asked;

/// The engines' time for all that wait in these cells, each in batches of its own of at most `most`.
pub fn time_for<'a>(
    cells: impl IntoIterator<Item = &'a Cell>,
    most: usize,
    time: impl Fn(&Asked) -> Duration,
) -> Duration {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let of_cell = |Cell { asked, .. }: &Cell| {
        if asked.members <= most {
            return time(asked);
        }
        time(&asked.part(most, asked.members)).saturating_mul(count(asked.members)) / count(most).max(1)
    };
    cells.into_iter().map(of_cell).fold(Duration::ZERO, Duration::saturating_add)
}

/// What goes before `own`: all that waits and is not much longer. What is longer is passed over, unless it has waited for too
/// long.
pub fn ahead<'a>(
    cells: &'a [Cell],
    own: &Asked,
    time: impl Fn(&Asked) -> Duration + Clone + 'a,
) -> impl Iterator<Item = &'a Cell> + Clone {
    let limit = time(&own.part(1, own.members)).saturating_mul(ALIKE);
    cells.iter().filter(move |cell| time(&cell.asked.part(1, cell.asked.members)) <= limit)
}

#[cfg(test)]
mod tests {
    use pillion_protocol::frame::Options;
    use tokio::time::Instant;

    use super::*;
    use crate::job::Class;
    use crate::policy::company::Size;

    fn asked(members: usize, tokens: u32) -> Asked {
        let mut one = Asked::default();
        one.add(30, tokens, 0);
        one.times(members)
    }

    /// A millisecond a step.
    fn time(asked: &Asked) -> Duration {
        Duration::from_millis(asked.longest.into())
    }

    fn cell(members: usize, tokens: u32) -> Cell {
        let asked = asked(members, tokens);
        let class = Class::new(&Options::default(), 0);
        Cell { class, size: Size::of(&asked), since: Instant::now(), asked }
    }

    #[test]
    fn what_waits_takes_as_many_batches_as_it_fills() {
        let millis = Duration::from_millis;
        assert_eq!(time_for(&[cell(40, 10)], 50, time), millis(10));
        assert_eq!(time_for(&[cell(1000, 10)], 50, time), millis(200));
        assert_eq!(
            time_for(&[cell(1000, 10), cell(1, 300)], 50, time),
            millis(500),
            "one long one makes no other longer"
        );
        assert_eq!(time_for(&[], 50, time), Duration::ZERO);
    }

    #[test]
    fn short_ones_wait_for_short_ones_and_long_ones_for_all() {
        let cells = [cell(20, 10), cell(5, 200)];
        let waiting = |own: &Asked, time: fn(&Asked) -> Duration| -> usize {
            ahead(&cells, own, time).map(|cell| cell.asked.members).sum()
        };
        assert_eq!(waiting(&asked(1, 10), time), 20);
        assert_eq!(waiting(&asked(1, 100), time), 25);
        assert_eq!(waiting(&asked(1, 100), |_| Duration::ZERO), 25, "with nothing measured");
    }
}
