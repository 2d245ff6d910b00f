//! When the worker asks for the next batch. Pure.
//!
//! A credit given early lets the proxy's batch arrive and be tokenised while the engine is still busy; given too early
//! it takes requests out of the proxy's queue that would have ridden together with later ones. So a slot's next credit
//! is due when its running batch is predicted to end within a short lead, or at its end.

use std::time::Duration;

/// The least lead: the way to the proxy and back.
const SHORTEST_LEAD: Duration = Duration::from_micros(300);
/// The most: a batch that takes longer to tokenise is large, and its engine slow.
const LONGEST_LEAD: Duration = Duration::from_millis(20);
/// A batch that comes so long after its credit had to be waited for: that says nothing of the way here.
const LONGEST_WAY: Duration = Duration::from_millis(1);

/// The account of one connection.
#[derive(Debug)]
pub struct Credit {
    slots: u32,
    /// Granted, and no batch has come into it yet.
    unused: u32,
    /// Batches that are running or waiting.
    batches: u32,
    /// Of them, those that will have ended by the time another could start.
    ending: u32,
}

/// A batch came without credit for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a batch came without credit")]
pub struct NoCredit;

impl Credit {
    /// The account of a worker that runs so many batches at once, with nothing granted yet.
    pub fn new(slots: u32) -> Self {
        Self { slots, unused: 0, batches: 0, ending: 0 }
    }

    /// Credits that are due and not granted: the slots that are free, or about to be, less what is on its way to them.
    pub fn due(&self) -> u32 {
        (self.slots + self.ending).saturating_sub(self.unused + self.batches)
    }

    /// Credits that were sent and into which no batch has come yet.
    pub fn unused(&self) -> u32 {
        self.unused
    }

    /// So many credits were sent.
    pub fn grant(&mut self, credits: u32) {
        self.unused += credits;
    }

    /// A batch came.
    ///
    /// # Errors
    /// There was no credit for it.
    pub fn spend(&mut self) -> Result<(), NoCredit> {
        self.unused = self.unused.checked_sub(1).ok_or(NoCredit)?;
        self.batches += 1;
        Ok(())
    }

    /// A batch is predicted to end within the lead; said at most once for each.
    pub fn ends_soon(&mut self) {
        self.ending = (self.ending + 1).min(self.batches);
    }

    /// A batch has ended, which [`ends_soon`](Self::ends_soon) had announced or not.
    pub fn done(&mut self, announced: bool) {
        self.batches = self.batches.saturating_sub(1);
        self.ending = self.ending.saturating_sub(u32::from(announced));
    }
}

/// How long before a batch's end the next one should be asked for, where batches are ready for an engine `handover` after
/// they were asked for.
pub fn lead(handover: Duration) -> Duration {
    handover.clamp(SHORTEST_LEAD, LONGEST_LEAD)
}

/// Whether a batch that came so long after its credit was there already, waiting for it.
pub fn came_at_once(way: Duration) -> bool {
    way <= LONGEST_WAY
}

/// Whether a call that may go on for `steps` more steps, each taking `step` on average, ends within `lead`. Not where
/// nothing has been measured.
pub fn ends_within(lead: Duration, steps: u64, step: Duration) -> bool {
    let step = u64::try_from(step.as_nanos()).unwrap_or(u64::MAX);
    step > 0 && u128::from(steps.saturating_mul(step)) <= lead.as_nanos()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_free_slot_has_one_credit() {
        let mut credit = Credit::new(2);
        assert_eq!(credit.due(), 2);
        credit.grant(2);
        assert_eq!(credit.due(), 0);
        credit.spend().unwrap();
        assert_eq!(credit.due(), 0);
        credit.done(false);
        assert_eq!(credit.due(), 1);
    }

    #[test]
    fn a_slot_about_to_be_free_has_its_next() {
        let mut credit = Credit::new(1);
        credit.grant(1);
        credit.spend().unwrap();
        credit.ends_soon();
        assert_eq!(credit.due(), 1);
        credit.grant(1);
        credit.spend().unwrap();
        assert_eq!(credit.due(), 0);
        credit.done(true);
        assert_eq!(credit.due(), 0, "the waiting batch has the slot now");
        credit.done(false);
        assert_eq!(credit.due(), 1);
    }

    #[test]
    fn a_batch_without_credit_is_refused() {
        assert_eq!(Credit::new(3).spend(), Err(NoCredit));
    }

    #[test]
    fn the_lead_follows_the_handover_within_bounds() {
        assert_eq!(lead(Duration::ZERO), SHORTEST_LEAD);
        assert_eq!(lead(Duration::from_micros(900)), Duration::from_micros(900));
        assert_eq!(lead(Duration::from_secs(1)), LONGEST_LEAD);
    }

    #[test]
    fn near_means_within_the_lead() {
        let step = Duration::from_micros(100);
        assert!(ends_within(Duration::from_micros(300), 3, step));
        assert!(!ends_within(Duration::from_micros(300), 4, step));
        assert!(!ends_within(Duration::from_micros(300), u64::MAX, step));
        assert!(!ends_within(Duration::from_micros(300), 1, Duration::ZERO), "nothing measured, nothing predicted");
    }

    proptest! {
        #[test]
        fn a_worker_never_holds_more_than_two_batches_a_slot(slots in 1u32..5, moves in proptest::collection::vec(0u8..3, 0..200)) {
            let mut credit = Credit::new(slots);
            let mut announced = std::collections::VecDeque::new();
            for step in moves {
                match step {
                    0 => {
                        credit.grant(credit.due());
                        if credit.spend().is_ok() {
                            announced.push_back(false);
                        }
                    }
                    // Only a running batch can be near its end: the first `slots` of the queue.
                    1 => {
                        if let Some(batch) = announced.iter_mut().take(slots as usize).find(|batch| !**batch) {
                            *batch = true;
                            credit.ends_soon();
                        }
                    }
                    _ => {
                        if let Some(batch) = announced.pop_front() {
                            credit.done(batch);
                        }
                    }
                }
                prop_assert!(announced.len() <= 2 * slots as usize);
                prop_assert!(credit.due() <= slots);
            }
        }
    }
}
