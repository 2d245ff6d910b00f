//! Follows the progress of one engine call from its callbacks alone. Pure.
//!
//! The engine reports "member m, step s, token t", but never that a step is over. [`Steps`] knows which members have a token
//! in a step: every member that has not ended and whose prompt is fed. The engine feeds the shortest prompt in bulk, so a
//! member whose prompt is n tokens longer has its first token in step n. Members come in any order within a step.

/// The progress of a call.
#[derive(Debug)]
pub struct Steps {
    /// How many tokens each prompt is longer than the shortest, ascending.
    behind: Vec<u32>,
    /// Each member with the step after its last possible one, ascending. Ended members are removed lazily.
    until: Vec<(u64, usize)>,
    ended: Vec<bool>,
    step: u64,
    /// Members whose prompt is fed by `step`.
    joined: usize,
    ended_before: usize,
    ended_now: usize,
    /// Tokens of the present step so far.
    seen: usize,
    started: bool,
}

impl Steps {
    /// A call whose members have these numbers of tokens to feed and most new tokens.
    pub fn new(members: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let members: Vec<(u32, u32)> = members.into_iter().collect();
        let shortest = members.iter().map(|&(prompt, _)| prompt).min().unwrap_or(0);
        let mut behind: Vec<u32> = members.iter().map(|&(prompt, _)| prompt - shortest).collect();
        let mut until: Vec<(u64, usize)> = members
            .iter()
            .enumerate()
            .map(|(member, &(_, most))| (u64::from(behind[member]) + u64::from(most), member))
            .collect();
        until.sort_unstable();
        behind.sort_unstable();
        let ended = vec![false; members.len()];
        Self { behind, until, ended, step: 0, joined: 0, ended_before: 0, ended_now: 0, seen: 0, started: false }
    }

    /// Takes a token of `member` in `step`, which may be the member's last. Returns true if it is the last token of its step:
    /// what the step produced is complete.
    pub fn on_token(&mut self, step: u64, member: usize, ends: bool) -> bool {
        if !self.started || step != self.step {
            self.started = true;
            self.step = step;
            self.seen = 0;
            self.ended_before += std::mem::take(&mut self.ended_now);
            while self.behind.get(self.joined).is_some_and(|&behind| u64::from(behind) <= step) {
                self.joined += 1;
            }
        }
        self.seen += 1;
        if ends && self.ended.get_mut(member).is_some_and(|ended| !std::mem::replace(ended, true)) {
            self.ended_now += 1;
        }
        self.seen + self.ended_before >= self.joined
    }

    /// The most steps that may still follow the present one. Before the first callback, all steps of the call.
    pub fn remaining(&mut self) -> u64 {
        while self.until.last().is_some_and(|&(_, member)| self.ended[member]) {
            self.until.pop();
        }
        self.until.last().map_or(0, |&(until, _)| until.saturating_sub(self.taken()))
    }

    /// Steps so far, including those without a callback.
    pub fn taken(&self) -> u64 {
        if self.started { self.step.saturating_add(1) } else { 0 }
    }

    /// Steps so far in which some member only fed its prompt.
    pub fn forced(&self) -> u64 {
        self.taken().min(self.behind.last().map_or(0, |&behind| u64::from(behind)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_step_is_over_when_every_member_due_has_a_token() {
        // The prompt of member 1 is two tokens longer, so its first token comes in step 2.
        let mut steps = Steps::new([(3, 5), (5, 5), (3, 5)]);
        assert_eq!(steps.remaining(), 7);
        assert!(!steps.on_token(0, 2, false));
        assert!(steps.on_token(0, 0, true));
        assert!(steps.on_token(1, 2, false));
        assert!(!steps.on_token(2, 1, false));
        assert!(steps.on_token(2, 2, true));
        assert!(steps.on_token(3, 1, true));
        assert_eq!((steps.taken(), steps.forced(), steps.remaining()), (4, 2, 0));
    }

    #[test]
    fn steps_without_a_callback_are_counted() {
        let mut steps = Steps::new([(2, 5), (9, 1)]);
        assert!(steps.on_token(0, 0, true));
        assert!(steps.on_token(7, 1, true));
        assert_eq!((steps.taken(), steps.forced()), (8, 7));
    }

    proptest! {
        /// Plays calls as the engine runs them, in any order within a step.
        #[test]
        fn the_last_callback_of_every_step_is_known(
            members in proptest::collection::vec((1u32..6, 1u32..6, 1u32..6), 1..8),
            flip: bool,
        ) {
            let shortest = members.iter().map(|m| m.0).min().unwrap();
            let mut steps = Steps::new(members.iter().map(|&(prompt, most, _)| (prompt, most)));
            let life = |&(_, most, wish): &(u32, u32, u32)| most.min(wish);
            for step in 0..12u32 {
                let mut due: Vec<usize> = (0..members.len())
                    .filter(|&m| {
                        let behind = members[m].0 - shortest;
                        behind <= step && step < behind + life(&members[m])
                    })
                    .collect();
                if flip {
                    due.reverse();
                }
                for (nth, &m) in due.iter().enumerate() {
                    let ends = step + 1 == members[m].0 - shortest + life(&members[m]);
                    prop_assert_eq!(steps.on_token(step.into(), m, ends), nth + 1 == due.len());
                }
                if !due.is_empty() {
                    let longest = members
                        .iter()
                        .filter(|m| step + 1 < m.0 - shortest + life(m))
                        .map(|m| m.0 - shortest + m.1)
                        .max()
                        .map_or(0, |until| until - step - 1);
                    prop_assert_eq!(steps.remaining(), u64::from(longest));
                }
            }
        }
    }
}
