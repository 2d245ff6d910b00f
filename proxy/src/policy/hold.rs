//! Whether the next batch leaves now or is held because more texts are expected.
//!
//! The rule is work-conserving at heart: a free credit takes what waits. A held batch leaves an engine idle, so the hold must
//! pay. It pays if texts are likely to come soon ([`returns`](super::returns): clients that were just answered, requests that are
//! being read, the rate of new clients) and if a batch costs much however small it is ([`forecast`](super::forecast): what two
//! batches cost more than one). If a batch takes 5 ms, it is never held. If it takes 400 ms, it is held for the 2 ms in which forty
//! clients come back. `--batch-timeout` is the upper bound of a hold.

use std::time::Duration;

use tokio::time::Instant;

use super::preemption::Preemption;
use super::returns::Returns;
use crate::numbers::as_f64;

/// The shortest hold: tokio's timers tick in milliseconds.
const SHORTEST: Duration = Duration::from_millis(1);
/// Each hold that is considered is so much longer than the one before.
const LONGER: (u32, u32) = (3, 2);
/// Texts come in a crowd if they come at more than this many times the usual rate.
const CROWD: f64 = 1.2;
/// The weight of a batch in the usual rate, relative to the batch after it.
const FADE: f64 = 0.9;
/// A batch is held for requests that are being read for at most one part in so many of its fixed cost.
const PATIENCE: u32 = 10;

/// What is known when a credit is free and texts wait.
#[derive(Clone, Copy, Debug, Default)]
pub struct View {
    /// Texts that could leave together.
    pub waiting: usize,
    /// Requests that are being read at this moment.
    pub arriving: usize,
    /// The part of their batch's cost that does not depend on the number of texts.
    pub fixed_cost: Duration,
    /// The cost that each text adds.
    pub member_cost: Duration,
    /// Engines that share the work.
    pub engines: usize,
    /// Members of the batch whose engine the credit is for, if that batch has not ended yet.
    pub ending: usize,
    /// When that batch is expected to end, from now.
    pub ends_in: Duration,
    /// How long the whole batch takes.
    pub time: Duration,
    /// Whether it has waited for so long that it gives way to no other batch.
    pub is_due: bool,
    /// How long the batch may wait and still end before the first deadline of the waiting texts, if that is known.
    pub slack: Option<Duration>,
}

/// Whether the batch leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The batch leaves.
    Go {
        /// Whether it was held before.
        held: bool,
    },
    /// The batch is held, to this instant at the latest. Ask again when a text arrives.
    HoldUntil(Instant),
}

/// The policy with what it has learned.
#[derive(Debug)]
pub struct Policy {
    /// The most members of a batch.
    max_batch_size: usize,
    /// The longest hold.
    batch_timeout: Duration,
    /// Which clients are expected.
    pub returns: Returns,
    /// Whether a running batch gives way.
    pub preemption: Preemption,
    pace: Pace,
    hold: Option<Hold>,
    /// Requests that were being read when a hold for them ran out. No batch is held for them again.
    stalled: usize,
}

/// A batch is being held.
#[derive(Clone, Copy, Debug)]
struct Hold {
    since: Instant,
    until: Instant,
}

impl Policy {
    /// A policy that has seen nothing yet.
    pub fn new(max_batch_size: usize, batch_timeout: Duration) -> Self {
        Self {
            max_batch_size,
            batch_timeout,
            returns: Returns::default(),
            preemption: Preemption::default(),
            pace: Pace::default(),
            hold: None,
            stalled: 0,
        }
    }

    /// Whether the next batch leaves now. After [`Decision::Go`] it is taken to have left.
    pub fn decide(&mut self, view: &View, now: Instant) -> Decision {
        self.stalled = self.stalled.min(view.arriving);
        if let Some(hold) = self.hold
            && now >= hold.until
        {
            self.stalled = view.arriving;
        }
        let since = self.hold.map_or(now, |hold| hold.since);
        // A hold that has run out was a wrong guess. It is not repeated on the same expectation.
        let left = match self.hold {
            Some(hold) if now >= hold.until => Duration::ZERO,
            _ => (since + self.batch_timeout.min(view.fixed_cost)).saturating_duration_since(now),
        };
        let left = left.min(view.slack.unwrap_or(Duration::MAX));
        if let Some(ahead) = self.worthwhile(view, left, now) {
            let until = now + ahead;
            self.hold = Some(Hold { since, until });
            return Decision::HoldUntil(until);
        }
        Decision::Go { held: self.hold.take().is_some() }
    }

    /// A batch of so many texts has ended.
    pub fn ended(&mut self, texts: usize, now: Instant) {
        self.pace.ended(texts, now);
    }

    /// Texts that came in a second lately: those that were served, or those of new clients, if they are more.
    pub fn texts_per_second(&self, now: Instant) -> f64 {
        self.pace.texts_per_second(now).max(self.returns.new_clients_per_second(now))
    }

    /// No text waits any more, so there is nothing to hold.
    pub fn nobody_waits(&mut self) {
        self.hold = None;
    }

    /// The hold that gains most, if any gains: at most `longest`.
    ///
    /// If `k` texts come, a batch of `n` saves the fixed cost of the batch that they would have been. If fewer come than are
    /// in the batch, they save only the part `k / n`: without them the batch would still be nearly as good a use of the
    /// engine. The hold costs the time for which the engine is idle.
    ///
    /// The expected texts must also come in a crowd: in the time that the hold and their part of the batch take, the engine must
    /// serve more of them than it serves texts on average. Otherwise the texts that come while the longer batch runs lose what
    /// these gain. So with one engine no batch is held for texts that come at random. (The comparison with the long-run average is that of
    /// renewal reward: Ross, Applied Probability Models, 1970.)
    fn worthwhile(&self, view: &View, longest: Duration, now: Instant) -> Option<Duration> {
        let room = self.max_batch_size.saturating_sub(view.waiting);
        if room == 0 || view.waiting == 0 {
            return None;
        }
        let arriving = as_f64(view.arriving - self.stalled);
        let usual = self.texts_per_second(now) / as_f64(view.engines.max(1));
        let patience = (view.fixed_cost / PATIENCE).max(SHORTEST);
        let mut best: Option<(f64, Duration)> = None;
        let spans = std::iter::successors(Some(SHORTEST), |span| Some(*span * LONGER.0 / LONGER.1));
        let spans = spans.take_while(|span| *span <= longest).chain([patience.min(longest)]);
        for ahead in spans.filter(|span| *span >= SHORTEST) {
            let coming = arriving * ahead.div_duration_f64(patience).min(1.0)
                + self.returns.expected(ahead, now)
                + self.returns.expected_of(view.ending, view.ends_in, ahead);
            let expected = coming.min(as_f64(room));
            let part = (expected / as_f64(view.waiting)).min(1.0);
            let gain = view.fixed_cost.as_secs_f64() * part - ahead.as_secs_f64();
            let spent = ahead.as_secs_f64() + expected * view.member_cost.as_secs_f64();
            let crowd = expected > CROWD * usual * spent;
            if crowd && gain > best.map_or(0.0, |(most, _)| most) {
                best = Some((gain, ahead));
            }
        }
        best.map(|(_, ahead)| ahead)
    }
}

/// Texts served a second, lately: a mean over the last dozen batches or so.
#[derive(Debug, Default)]
struct Pace {
    texts: f64,
    seconds: f64,
    last: Option<Instant>,
}

impl Pace {
    fn ended(&mut self, texts: usize, now: Instant) {
        if let Some(last) = self.last {
            self.texts = self.texts * FADE + as_f64(texts);
            self.seconds = self.seconds * FADE + now.saturating_duration_since(last).as_secs_f64();
        }
        self.last = Some(now);
    }

    fn texts_per_second(&self, now: Instant) -> f64 {
        let since = self.last.map_or(0.0, |last| now.saturating_duration_since(last).as_secs_f64());
        let seconds = self.seconds.max(since);
        if seconds > 0.0 { self.texts / seconds } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);
    const GO: Decision = Decision::Go { held: false };

    /// Forty clients that come back two to three milliseconds after each answer.
    fn forty_closed_loops(batch_timeout: Duration) -> (Policy, Instant) {
        let mut policy = Policy::new(50, batch_timeout);
        let mut now = Instant::now();
        for _ in 0..10 {
            let answered = now;
            policy.returns.answered(40, answered);
            for client in 0..40u32 {
                now = answered + 2 * MILLI + Duration::from_micros(25) * client;
                policy.returns.returned(1, answered, now);
            }
            now += 100 * MILLI;
        }
        (policy, now)
    }

    fn view(waiting: usize, fixed_cost: Duration) -> View {
        View { waiting, fixed_cost, ..View::default() }
    }

    #[test]
    fn with_nobody_coming_a_request_goes_at_once() {
        let (mut policy, now) = forty_closed_loops(100 * MILLI);
        assert_eq!(policy.decide(&view(1, 135 * MILLI), now), GO);
        assert_eq!(Policy::new(50, 100 * MILLI).decide(&view(1, 135 * MILLI), now), GO);
    }

    #[test]
    fn a_slow_model_waits_for_those_who_were_just_answered() {
        let (mut policy, now) = forty_closed_loops(100 * MILLI);
        policy.returns.answered(40, now);
        let mut at = now + 2 * MILLI;
        let held = (0..39u32).all(|client| {
            policy.returns.returned(1, now, at);
            let decision = policy.decide(&view(client as usize + 1, 135 * MILLI), at);
            at += Duration::from_micros(25);
            matches!(decision, Decision::HoldUntil(_))
        });
        assert!(held);
        policy.returns.returned(1, now, at);
        assert_eq!(policy.decide(&view(40, 135 * MILLI), at), Decision::Go { held: true });
    }

    #[test]
    fn a_deadline_is_not_held_away() {
        let (mut policy, now) = forty_closed_loops(100 * MILLI);
        policy.returns.answered(40, now);
        let view = View { slack: Some(MILLI / 2), ..view(1, 135 * MILLI) };
        assert_eq!(policy.decide(&view, now), GO);
        assert!(matches!(policy.decide(&View { slack: None, ..view }, now), Decision::HoldUntil(_)));
    }

    #[test]
    fn a_fast_model_waits_for_nobody() {
        let (mut policy, now) = forty_closed_loops(100 * MILLI);
        policy.returns.answered(40, now);
        assert_eq!(policy.decide(&view(20, MILLI / 2), now), GO);
    }

    #[test]
    fn a_credit_that_comes_before_the_end_waits_for_those_about_to_be_answered() {
        let (mut policy, now) = forty_closed_loops(100 * MILLI);
        let view = View { ending: 20, ends_in: MILLI, ..view(20, 135 * MILLI) };
        assert!(matches!(policy.decide(&view, now), Decision::HoldUntil(_)));
        assert_eq!(policy.decide(&View { fixed_cost: MILLI, ..view }, now), Decision::Go { held: true });
    }

    #[test]
    fn a_full_batch_goes_at_once() {
        let (mut policy, now) = forty_closed_loops(100 * MILLI);
        policy.returns.answered(40, now);
        assert_eq!(policy.decide(&view(50, 135 * MILLI), now), GO);
    }

    #[test]
    fn the_batch_timeout_bounds_a_hold_however_often_it_is_renewed() {
        let (mut policy, start) = forty_closed_loops(5 * MILLI);
        let mut now = start;
        loop {
            // Somebody new is always about to come back.
            policy.returns.answered(40, now);
            match policy.decide(&view(1, Duration::from_secs(60)), now + MILLI) {
                Decision::HoldUntil(until) => assert!(until <= start + 6 * MILLI),
                Decision::Go { held } => break assert!(held),
            }
            now += MILLI / 4;
            assert!(now < start + 7 * MILLI, "it is held for ever");
        }
    }

    #[test]
    fn a_request_that_is_being_read_is_waited_for_once() {
        let mut policy = Policy::new(50, 100 * MILLI);
        let now = Instant::now();
        let view = View { arriving: 1, ..view(1, 20 * MILLI) };
        let Decision::HoldUntil(until) = policy.decide(&view, now) else { panic!("it is not waited for") };
        assert!(until < now + 20 * MILLI);
        assert_eq!(policy.decide(&view, until), Decision::Go { held: true });
        assert_eq!(policy.decide(&view, until + MILLI), GO, "the same slow body");
        let view = View { arriving: 2, ..view };
        assert!(matches!(policy.decide(&view, until + 2 * MILLI), Decision::HoldUntil(_)), "a new one");
    }

    #[test]
    fn one_straggler_is_not_worth_much_of_forty() {
        let (mut policy, now) = forty_closed_loops(100 * MILLI);
        policy.returns.answered(1, now);
        assert_eq!(policy.decide(&view(39, 100 * MILLI), now), GO, "three milliseconds for a fortieth of 100");
    }
}
