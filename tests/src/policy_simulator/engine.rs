//! The simulated requests, and the time that an engine takes for them.

use std::time::Duration;

/// A kind of requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request {
    /// The number of tokens in the prompt.
    pub prompt: u32,
    /// The number of tokens in the answer.
    pub answer: u32,
    /// This kind's share of all requests is its weight divided by the sum of all kinds' weights.
    pub weight: f64,
}

impl Request {
    /// A request with a prompt of ten tokens and an answer of ten tokens.
    pub const ORDINARY: Self = Self { prompt: 10, answer: 10, weight: 1.0 };
}

/// The times that an engine takes for the parts of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Engine {
    /// The time of a decode step, besides the time for its members.
    pub step: Duration,
    /// The time that each member adds to each decode step.
    pub member: Duration,
    /// The time for each token of a prompt.
    pub prompt: Duration,
    /// The time that each token of a member's prompt and answer adds to each of the member's steps, since attention
    /// reads all of these tokens.
    pub context: Duration,
    /// Whether the worker's HELLO tells the proxy the first three of these times, as a real worker does after its
    /// warm-up.
    pub told: bool,
}

impl Engine {
    /// An engine that takes `fixed` for a batch of ordinary requests, and `member` more for each of its requests. Both
    /// are in whole microseconds.
    #[allow(clippy::cast_possible_truncation, reason = "times of a batch fit 64 bits")]
    pub const fn of(fixed: Duration, member: Duration) -> Self {
        let (step, member) = (fixed.as_micros() as u64 * 1000, member.as_micros() as u64 * 1000);
        let answer = Request::ORDINARY.answer as u64;
        let (step, member) = (Duration::from_nanos(step / answer), Duration::from_nanos(member / answer));
        Self { step, member, prompt: Duration::ZERO, context: Duration::ZERO, told: true }
    }

    /// The time for a batch of `members` ordinary requests.
    pub fn time(&self, members: usize) -> Duration {
        let members = u32::try_from(members).unwrap_or(u32::MAX);
        let Request { prompt, answer, .. } = Request::ORDINARY;
        self.prompt * prompt * members + (self.step + self.member * members) * answer
    }

    /// The time from the batch's start to each member's end, in the order of the members. A member is given as the
    /// number of tokens that it is fed and the number that it gets. Different lengths of prompts add no time here,
    /// since a real worker keeps prompts of very different lengths in separate calls.
    pub(super) fn ends(&self, members: &[(u32, u32)]) -> Vec<Duration> {
        let mut order: Vec<usize> = (0..members.len()).collect();
        order.sort_by_key(|&nth| members[nth].1);
        let mut at: Duration = members.iter().map(|&(fed, _)| self.prompt * fed).sum();
        let mut steps = 0;
        let mut ends = vec![Duration::ZERO; members.len()];
        let mut fed: u32 = members.iter().map(|&(fed, _)| fed).sum();
        for (ended, nth) in (0..).zip(order) {
            let alive = u32::try_from(members.len()).unwrap_or(u32::MAX) - ended;
            let (more, until) = (members[nth].1 - steps, members[nth].1);
            at += (self.step + self.member * alive) * more;
            at += self.context * (fed * more + alive * more * (steps + until) / 2);
            (steps, ends[nth]) = (until, at);
            fed -= members[nth].0;
        }
        ends
    }
}
