//! What is asked, and what it costs.

use std::time::Duration;

/// A kind of requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request {
    /// Tokens of its prompt.
    pub prompt: u32,
    /// Tokens of its answer.
    pub answer: u32,
    /// How many of all requests are of this kind, beside the other kinds' weights.
    pub weight: f64,
}

impl Request {
    /// Ten tokens in, ten tokens out.
    pub const ORDINARY: Self = Self { prompt: 10, answer: 10, weight: 1.0 };
}

/// An engine: what a batch costs it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Engine {
    /// A decode step, however many members it has.
    pub step: Duration,
    /// A member in a step.
    pub member: Duration,
    /// A token of a prompt.
    pub prompt: Duration,
    /// What each token that a member has, of its prompt and its answer, adds to each of its steps: attention reads them all.
    pub context: Duration,
    /// Whether the worker has told the proxy so in its HELLO, from its warm-up.
    pub told: bool,
}

impl Engine {
    /// For which, in whole microseconds, a batch of ordinary requests costs so much, and so much more for each of them.
    #[allow(clippy::cast_possible_truncation, reason = "times of a batch fit 64 bits")]
    pub const fn of(fixed: Duration, member: Duration) -> Self {
        let (step, member) = (fixed.as_micros() as u64 * 1000, member.as_micros() as u64 * 1000);
        let answer = Request::ORDINARY.answer as u64;
        let (step, member) = (Duration::from_nanos(step / answer), Duration::from_nanos(member / answer));
        Self { step, member, prompt: Duration::ZERO, context: Duration::ZERO, told: true }
    }

    /// A batch of so many ordinary requests.
    pub fn time(&self, members: usize) -> Duration {
        let members = u32::try_from(members).unwrap_or(u32::MAX);
        let Request { prompt, answer, .. } = Request::ORDINARY;
        self.prompt * prompt * members + (self.step + self.member * members) * answer
    }

    /// When the members of a batch end that are fed and get so many tokens: by member, from the batch's start. Prompts
    /// are taken to cost nothing but their tokens: the worker sees to it that unlike ones do not share a call.
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
