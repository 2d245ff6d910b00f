//! Tests what the batching policy promises, in simulated loads. The results are exact, and the same each time for a seed.

use std::time::Duration;

use pillion_proxy::policy::candidates::LONGEST_PASSING;
use pillion_tests::policy_simulator::{
    Clients, Engine, Host, Mechanism, Report, Request, Rule, Setting, loads, simulate,
};
use pillion_tests::random::SplitMix64;

const SMALL: Engine = engine(400, 110);
/// A model of the shape of OPT-125m on two processor cores.
const LARGE: Engine = engine(135_000, 6_000);
const MODELS: [Engine; 6] =
    [SMALL, engine(2_000, 200), engine(10_000, 600), LARGE, engine(30_000, 50), engine(500_000, 30_000)];
const BATCH_TIMEOUT: Duration = Duration::from_millis(100);
/// How much later a timer may fire than the time for which it was set.
const TICK: Duration = Duration::from_millis(1);

const fn engine(fixed_us: u64, member_us: u64) -> Engine {
    Engine::of(Duration::from_micros(fixed_us), Duration::from_micros(member_us))
}

const fn users(users: usize) -> Clients {
    Clients::Closed { users, think: Duration::ZERO }
}

fn run(clients: Clients, engines: &[Engine], rule: Rule, seed: u64) -> Report {
    let micros = Duration::from_micros;
    let host =
        Host { request: micros(60), body: micros(0), answer: micros(60), handover: micros(500), lead: micros(500) };
    let span = 200 * engines[0].time(40);
    let (engines, requests) = (engines.to_vec(), vec![Request::ORDINARY]);
    simulate(&Setting { clients, requests, engines, host, rule, without: None, max_batch_size: 50, span, seed })
}

/// Requests a second, if batches of `members` requests follow each other without a pause.
fn capacity(engine: &Engine, members: u32) -> f64 {
    f64::from(members) / engine.time(members as usize).as_secs_f64()
}

#[test]
fn with_a_slow_model_users_who_ask_again_at_once_all_ride_together() {
    for engine in [LARGE, Engine { told: false, ..LARGE }] {
        let report = run(users(40), &[engine], Rule::Pillion, 1);
        assert!(report.rate > 0.95 * capacity(&engine, 40), "{engine:?}: {report}");
    }
}

#[test]
fn with_a_fast_model_nothing_is_held_and_the_engine_never_waits() {
    let report = run(users(40), &[SMALL], Rule::Pillion, 1);
    assert_eq!(report.longest_hold, Duration::ZERO, "{report}");
    assert!(report.idle < 0.01, "{report}");
}

#[test]
fn a_lone_user_waits_for_nobody() {
    for engine in MODELS {
        let report = run(users(1), &[engine], Rule::Pillion, 1);
        assert_eq!(report.longest_hold, Duration::ZERO, "{engine:?}: {report}");
        assert_eq!(report.p50, run(users(1), &[engine], Rule::AtOnce, 1).p50);
    }
}

#[test]
fn two_users_of_a_slow_model_share_their_batches() {
    let report = run(users(2), &[LARGE], Rule::Pillion, 1);
    assert!(report.rate > 1.8 * run(users(2), &[LARGE], Rule::AtOnce, 1).rate, "{report}");
}

#[test]
fn whoever_comes_at_random_is_never_worse_off_than_without_holds() {
    for engine in MODELS {
        for (load, seed) in [(0.2, 1), (0.5, 2), (0.7, 3), (0.9, 4)] {
            let clients = Clients::Open { rate: load * capacity(&engine, 40) };
            let report = run(clients, &[engine], Rule::Pillion, seed);
            let at_once = run(clients, &[engine], Rule::AtOnce, seed);
            assert!(report.p50 < at_once.p50.mul_f64(1.02), "{engine:?} at {load}: {report}, {at_once}");
            assert!(report.p99 < at_once.p99.mul_f64(1.05), "{engine:?} at {load}: {report}, {at_once}");
        }
    }
}

#[test]
fn no_closed_loop_is_slower_than_without_holds_and_no_timer_is_as_fast() {
    for engine in MODELS {
        for n in [1, 2, 5, 40, 80] {
            let report = run(users(n), &[engine], Rule::Pillion, 1);
            assert!(report.rate > 0.99 * run(users(n), &[engine], Rule::AtOnce, 1).rate, "{n} of {engine:?}: {report}");
        }
        let timer = run(users(40), &[engine], Rule::Timer(BATCH_TIMEOUT), 1);
        assert!(run(users(40), &[engine], Rule::Pillion, 1).rate > timer.rate, "{engine:?}: {timer}");
    }
}

#[test]
fn no_hold_is_longer_than_the_batch_timeout() {
    for engine in MODELS {
        let think = engine.time(40);
        for (clients, seed) in [
            (users(40), 1),
            (Clients::Closed { users: 40, think }, 2),
            (Clients::Open { rate: 0.3 * capacity(&engine, 40) }, 3),
            (Clients::Bursts { size: 40, every: 3 * think }, 4),
        ] {
            let report = run(clients, &[engine], Rule::Pillion, seed);
            assert!(report.longest_hold <= BATCH_TIMEOUT + 2 * TICK, "{engine:?} with {clients:?}: {report}");
        }
    }
}

#[test]
fn a_second_worker_nearly_doubles_what_a_slow_model_serves() {
    for engine in [LARGE, MODELS[2]] {
        let one = run(users(80), &[engine], Rule::Pillion, 1);
        let two = run(users(160), &[engine; 2], Rule::Pillion, 1);
        assert!(two.rate > 1.9 * one.rate, "{engine:?}: {two}, {one}");
    }
}

#[test]
fn a_slower_worker_beside_a_fast_one_takes_its_part_and_no_more() {
    let slow = Engine { step: 3 * LARGE.step, member: 3 * LARGE.member, ..LARGE };
    let alone = run(users(160), &[LARGE], Rule::Pillion, 1);
    let both = run(users(160), &[LARGE, slow], Rule::Pillion, 1);
    assert!(both.rate > 1.25 * alone.rate, "{both}, {alone}");
}

const SHORT: Request = Request { prompt: 10, answer: 10, weight: 9.0 };
const LONG: Request = Request { prompt: 10, answer: 200, weight: 1.0 };

/// Forty users of whose requests one in ten is long.
fn few_long(engine: Engine, rule: Rule, without: Option<Mechanism>) -> Report {
    let setting = mixed(engine, vec![SHORT, LONG], 1);
    simulate(&Setting { rule, without, ..setting })
}

fn mixed(engine: Engine, requests: Vec<Request>, seed: u64) -> Setting {
    let micros = Duration::from_micros;
    let host =
        Host { request: micros(60), body: micros(0), answer: micros(60), handover: micros(500), lead: micros(500) };
    let (engines, span) = (vec![engine], 2000 * engine.time(40));
    let (clients, rule) = (users(40), Rule::Pillion);
    Setting { clients, requests, engines, host, rule, without: None, max_batch_size: 50, span, seed }
}

/// With prompt tokens that cost half of what a member costs in a step, as on a processor.
fn with_prompts(engine: Engine) -> Engine {
    Engine { prompt: engine.member / 2, ..engine }
}

#[test]
fn short_answers_do_not_wait_for_long_ones_and_nothing_is_lost_by_it() {
    for engine in MODELS.map(with_prompts) {
        let report = few_long(engine, Rule::Pillion, None);
        let together = few_long(engine, Rule::AtOnce, None);
        assert!(report.kinds[0] < together.kinds[0].mul_f64(0.5), "{engine:?}: {report}, {together}");
        assert!(report.tokens > 0.95 * together.tokens, "{engine:?}: {report}, {together}");
    }
}

#[test]
fn interrupting_members_costs_few_of_the_tokens_that_are_produced() {
    for engine in MODELS.map(with_prompts) {
        let report = few_long(engine, Rule::Pillion, None);
        let never = few_long(engine, Rule::Pillion, Some(Mechanism::Preemption));
        assert!(never.preempted == 0 && report.tokens > 0.95 * never.tokens, "{engine:?}: {report}, {never}");
    }
}

#[test]
fn short_ones_that_come_at_random_do_not_wait_for_a_long_one_that_runs() {
    for engine in MODELS.map(with_prompts) {
        let clients = Clients::Open { rate: 0.1 * capacity(&engine, 40) };
        let of = |without| simulate(&Setting { clients, without, ..mixed(engine, vec![SHORT, LONG], 1) });
        let (report, never) = (of(None), of(Some(Mechanism::Preemption)));
        assert!(report.preempted > 0 && report.kinds[0] < never.kinds[0], "{engine:?}: {report}, {never}");
    }
}

/// The engine has the measured costs of the small model on one processor core, where a step takes longer as answers grow.
#[test]
fn few_long_answers_slow_the_short_ones_by_less_than_twice() {
    let nanos = Duration::from_nanos;
    let engine =
        Engine { step: nanos(46_000), member: nanos(6_400), prompt: nanos(6_700), context: nanos(120), told: true };
    for seed in 1..=5 {
        let report = simulate(&mixed(engine, vec![SHORT, LONG], seed));
        let clients = Clients::Open { rate: report.tokens / f64::from(SHORT.answer) };
        let alone = simulate(&Setting { clients, ..mixed(engine, vec![SHORT], seed) });
        assert!(report.kinds[0] < 2 * alone.p50, "{report}, {alone}");
    }
}

#[test]
fn where_all_requests_are_alike_at_most_one_is_interrupted() {
    for engine in MODELS {
        for clients in [users(40), users(80), Clients::Open { rate: 0.9 * capacity(&engine, 40) }] {
            let report = simulate(&Setting { clients, ..mixed(engine, vec![Request::ORDINARY], 1) });
            // If forty requests come at once, the first may already have left in a batch when the others arrive.
            assert!(report.preempted <= 1, "{engine:?} with {clients:?}: {} of {report}", report.preempted);
        }
    }
}

/// A thousand loads with up to four kinds of requests. Half of the loads are more than the engine can serve. While the
/// oldest of all requests waits, younger ones leave before it for no longer than a few times the time of a batch in which
/// it could be a member. If users wait for their answers before they ask again,
/// this also bounds how long any request waits.
#[test]
fn nobody_is_passed_over_for_longer_than_the_bound() {
    let mut random = SplitMix64(1);
    for seed in 0..1000 {
        let mut number = |most: u64| u32::try_from(1 + random.next() % most).unwrap();
        let engine = Engine { prompt: Duration::from_micros(number(20).into()), ..MODELS[number(6) as usize - 1] };
        let requests: Vec<Request> = (0..number(4))
            .map(|_| Request { prompt: number(200), answer: number(300), weight: f64::from(number(20)) })
            .collect();
        let full = |request: &Request| {
            let members = 50;
            engine.prompt * members * request.prompt + (engine.step + engine.member * members) * request.answer
        };
        let longest = requests.iter().map(full).max().unwrap();
        let shortest = requests.iter().map(full).min().unwrap();
        let is_closed = seed % 2 == 0;
        // Such a rate would be too much even if all were of the shortest kind.
        let clients = if is_closed { users(40) } else { Clients::Open { rate: 60.0 / shortest.as_secs_f64() } };
        let span = if is_closed { 40 * engine.time(40) } else { 10 * shortest };
        let report = simulate(&Setting { clients, span, ..mixed(engine, requests.clone(), seed) });
        for (kind, request) in requests.iter().enumerate() {
            // The other members of its batch may each take six times as long, and predictions may be wrong.
            let bound = (full(request) * 6).min(longest).mul_f64(1.25) * LONGEST_PASSING;
            let passed_over = report.longest_passings[kind];
            let load = format!("seed {seed}, {request:?} of {requests:?}, {engine:?} and {clients:?}");
            assert!(passed_over <= bound, "{load}: passed over for {passed_over:?}, bound {bound:?}");
            let waited = report.longest_waits[kind];
            assert!(!is_closed || waited <= bound + longest * 2, "{load}: {waited:?}, bound {bound:?}");
        }
    }
}

/// `policy-simulator --ablation` tries every mechanism over all loads. This test tries each of these mechanisms with one load:
/// without the mechanism, an answer takes at least 5 % longer on average.
#[test]
fn without_one_of_its_mechanisms_the_policy_answers_more_slowly() {
    let load = |name| loads().into_iter().find(|load| load.name == name).unwrap().setting;
    for (mechanism, name) in [
        (Mechanism::Holds, "OPT-125m, 135 + 6 ms: 40 users"),
        (Mechanism::Returns, "OPT-125m, 135 + 6 ms: 40 users"),
        (Mechanism::Endings, "OPT-125m, 135 + 6 ms: 2 users"),
        (Mechanism::Arriving, "GPU, 30 + 0.05 ms, bodies 5 ms late: bursts of 40"),
        (Mechanism::Grouping, "OPT-125m, 135 + 6 ms: 1 in 10 answers long, 40 users"),
        (Mechanism::ShortestFirst, "OPT-125m, 135 + 6 ms: 1 in 10 answers long, 40 users"),
        (Mechanism::Preemption, "OPT-125m, 135 + 6 ms: 1 in 10 answers long, open, 20 %"),
        (Mechanism::Sharing, "OPT-125m, 135 + 6 ms, 4 engines: 40 users"),
    ] {
        let whole = simulate(&load(name));
        let without = simulate(&Setting { without: Some(mechanism), ..load(name) });
        assert!(without.mean > whole.mean.mul_f64(1.05), "{mechanism:?} at {name}: {whole}, without it {without}");
    }
}

/// Aging is for the few jobs that shorter ones pass over: without it their answers take much longer, which shows in the 99th
/// percentile.
#[test]
fn without_aging_long_answers_wait_much_longer() {
    let load = loads().into_iter().find(|load| load.name == "OPT-125m, 135 + 6 ms: 1 in 10 answers long, 80 users");
    let setting = load.unwrap().setting;
    let whole = simulate(&setting);
    let without = simulate(&Setting { without: Some(Mechanism::Aging), ..setting });
    assert!(without.p99 > whole.p99.mul_f64(1.5), "{whole}, without it {without}");
}

#[test]
fn the_same_seed_gives_the_same_report() {
    let clients = Clients::Open { rate: 50.0 };
    assert_eq!(run(clients, &[LARGE], Rule::Pillion, 7), run(clients, &[LARGE], Rule::Pillion, 7));
}
