//! How long whoever comes now will wait. Plain data.

use std::time::Duration;

use super::company::{ALIKE, Cell};
use super::forecast::Asked;

/// The engines' time for all these, in batches of at most `most`.
pub fn time_for(all: &Asked, most: usize, time: impl Fn(&Asked) -> Duration) -> Duration {
    if all.members <= most {
        return time(all);
    }
    let batch = time(&all.part(most, all.members));
    let (members, most) = (u32::try_from(all.members).unwrap_or(u32::MAX), u32::try_from(most).unwrap_or(u32::MAX));
    batch.saturating_mul(members) / most.max(1)
}

/// What goes before `own`, as far as that is certain: all that waits and is not much longer. What is longer is passed over,
/// unless it has waited for too long.
pub fn ahead(cells: &[Cell], own: &Asked, time: impl Fn(&Asked) -> Duration) -> Asked {
    let alone = |asked: &Asked| time(&asked.part(1, asked.members));
    let limit = alone(own).saturating_mul(ALIKE);
    cells.iter().filter(|cell| alone(&cell.asked) <= limit).fold(Asked::default(), |all, cell| all.and(&cell.asked))
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

    #[test]
    fn what_waits_takes_as_many_batches_as_it_fills() {
        assert_eq!(time_for(&asked(40, 10), 50, time), Duration::from_millis(10));
        assert_eq!(time_for(&asked(1000, 10), 50, time), Duration::from_millis(200));
        assert_eq!(time_for(&Asked::default(), 50, time), Duration::ZERO);
    }

    #[test]
    fn short_ones_wait_for_short_ones_and_long_ones_for_all() {
        let cell = |members, tokens| {
            let asked = asked(members, tokens);
            let class = Class::new(&Options::default(), 0);
            Cell { class, size: Size::of(&asked), since: Instant::now(), asked }
        };
        let cells = [cell(20, 10), cell(5, 200)];
        assert_eq!(ahead(&cells, &asked(1, 10), time).members, 20);
        assert_eq!(ahead(&cells, &asked(1, 100), time).members, 25);
        assert_eq!(ahead(&cells, &asked(1, 100), |_| Duration::ZERO).members, 25, "with nothing measured");
    }
}
