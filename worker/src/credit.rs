//! Decides when the worker grants the proxy a credit, which asks for the next batch. Pure.
//!
//! After an early credit the next batch arrives and is tokenised while the engine is still busy. But a credit that is too
//! early takes requests out of the proxy's queue that could have shared a batch with later ones. So a slot's next credit is
//! due when its running batch is predicted to end within a short lead, and at the latest when it ends.

use std::time::Duration;

/// The shortest lead: a round trip to the proxy.
const SHORTEST_LEAD: Duration = Duration::from_micros(300);
/// The longest lead. A batch that takes longer to tokenise is large, so its engine calls are slow.
const LONGEST_LEAD: Duration = Duration::from_millis(20);
/// A batch that arrives later than this after its credit was not waiting in the proxy. Its time does not count as a handover.
const LONGEST_HANDOVER: Duration = Duration::from_millis(1);

/// The credit account of one connection.
#[derive(Debug)]
pub struct Credit {
    slots: u32,
    /// Credits that are granted and that no batch has used.
    unused: u32,
    /// Batches that are running or waiting.
    batches: u32,
    /// Batches of these that end before another batch could start.
    ending: u32,
}

/// A batch came without a credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a batch came without credit")]
pub struct NoCredit;

impl Credit {
    /// The account of a worker that runs `slots` batches at once. No credit is granted yet.
    pub fn new(slots: u32) -> Self {
        Self { slots, unused: 0, batches: 0, ending: 0 }
    }

    /// Credits to grant now: the slots that are free or soon will be, minus the credits and batches on their way to them.
    pub fn due(&self) -> u32 {
        (self.slots + self.ending).saturating_sub(self.unused + self.batches)
    }

    /// Credits that were sent and that no batch has used.
    pub fn unused(&self) -> u32 {
        self.unused
    }

    /// Records that credits were sent.
    pub fn grant(&mut self, credits: u32) {
        self.unused += credits;
    }

    /// Records that a batch came.
    ///
    /// # Errors
    /// There was no credit for the batch.
    pub fn spend(&mut self) -> Result<(), NoCredit> {
        self.unused = self.unused.checked_sub(1).ok_or(NoCredit)?;
        self.batches += 1;
        Ok(())
    }

    /// Records that a batch is predicted to end within the lead. Called at most once for each batch.
    pub fn ends_soon(&mut self) {
        self.ending = (self.ending + 1).min(self.batches);
    }

    /// Records that a batch has ended. `announced` says whether [`ends_soon`](Self::ends_soon) was called for it.
    pub fn done(&mut self, announced: bool) {
        self.batches = self.batches.saturating_sub(1);
        self.ending = self.ending.saturating_sub(u32::from(announced));
    }
}

/// The time before a batch's end at which the next batch should be asked for. `handover` is the time from asking for a batch
/// until it is ready for an engine.
pub fn lead(handover: Duration) -> Duration {
    handover.clamp(SHORTEST_LEAD, LONGEST_LEAD)
}

/// Whether a batch that came this long after its credit had been waiting in the proxy.
pub fn came_at_once(after: Duration) -> bool {
    after <= LONGEST_HANDOVER
}

/// Whether a call with at most `steps` more steps of `step` each ends within `lead`. False if no step has been measured.
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
    fn a_slot_that_is_soon_free_has_its_next_credit() {
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
    fn a_call_that_ends_within_the_lead_ends_soon() {
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
