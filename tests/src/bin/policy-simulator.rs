//! Judges the batching policy over many loads in a second: beside a rule that never holds, and beside a timer.

use std::time::Duration;

use clap::Parser;
use pillion_tests::simulator::{Clients, Engine, Host, Request, Rule, Setting, simulate};

/// Simulates one load, or with no flags a table of many.
#[derive(Debug, Parser)]
#[command(version)]
struct Flags {
    /// What a batch of answers of ten tokens costs however few its members are.
    #[arg(long, value_parser = humantime::parse_duration, requires = "member")]
    fixed: Option<Duration>,
    /// What each member adds.
    #[arg(long, value_parser = humantime::parse_duration)]
    member: Option<Duration>,
    /// What a prompt token costs.
    #[arg(long, default_value = "0us", value_parser = humantime::parse_duration)]
    prompt: Duration,
    /// What each token that a member has adds to each of its steps.
    #[arg(long, default_value = "0us", value_parser = humantime::parse_duration)]
    context: Duration,
    /// A kind of requests: tokens of its prompt, tokens of its answer, and how many of all are of it beside the others'
    /// weights. Repeat it for several kinds.
    #[arg(long, value_parser = request, value_name = "PROMPT:ANSWER:WEIGHT", default_value = "10:10:1")]
    request: Vec<Request>,
    /// No batch gives way to others.
    #[arg(long)]
    no_preemption: bool,
    /// The host's time for a request, and again for its answer.
    #[arg(long, default_value = "60us", value_parser = humantime::parse_duration)]
    text: Duration,
    /// From a batch's leaving to where an engine could begin it.
    #[arg(long, default_value = "500us", value_parser = humantime::parse_duration)]
    handover: Duration,
    /// How long before a batch's end the next credit comes.
    #[arg(long, default_value = "500us", value_parser = humantime::parse_duration)]
    lead: Duration,
    /// Users in a closed loop.
    #[arg(long, default_value_t = 40)]
    users: usize,
    /// Requests a second in an open loop instead.
    #[arg(long)]
    rate: Option<f64>,
    /// Engines, each of a worker of its own.
    #[arg(long, default_value_t = 1)]
    engines: usize,
    /// The most members of a batch.
    #[arg(long, default_value_t = 50)]
    max_batch_size: usize,
    /// For all that is random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() {
    let flags = Flags::parse();
    if let (Some(fixed), Some(member)) = (flags.fixed, flags.member) {
        let clients = match flags.rate {
            Some(rate) => Clients::Open { rate },
            None => Clients::Closed { users: flags.users, think: Duration::ZERO },
        };
        show(&flags, "as asked", clients, engine_of(fixed, member, &flags));
    } else {
        table(&flags);
    }
}

/// Models from half a millisecond to half a second of fixed cost.
fn table(flags: &Flags) {
    let micros = Duration::from_micros;
    for (model, fixed, member) in [
        ("small, 0.4 + 0.11 ms", micros(400), micros(110)),
        ("2 + 0.2 ms", micros(2_000), micros(200)),
        ("10 + 0.6 ms", micros(10_000), micros(600)),
        ("OPT-125m, 135 + 6 ms", micros(135_000), micros(6_000)),
        ("GPU, 30 + 0.05 ms", micros(30_000), micros(50)),
        ("500 + 30 ms", micros(500_000), micros(30_000)),
    ] {
        let engine = engine_of(fixed, member, flags);
        let capacity = 40.0 / engine.time(40).as_secs_f64();
        let closed = |users| Clients::Closed { users, think: Duration::ZERO };
        let think = engine.time(40);
        for (load, clients) in [
            ("1 user".to_owned(), closed(1)),
            ("2 users".to_owned(), closed(2)),
            ("40 users".to_owned(), closed(40)),
            ("80 users".to_owned(), closed(80)),
            ("40 users who think".to_owned(), Clients::Closed { users: 40, think }),
            ("open, 20 %".to_owned(), Clients::Open { rate: 0.2 * capacity }),
            ("open, 50 %".to_owned(), Clients::Open { rate: 0.5 * capacity }),
            ("open, 70 %".to_owned(), Clients::Open { rate: 0.7 * capacity }),
            ("open, 90 %".to_owned(), Clients::Open { rate: 0.9 * capacity }),
            ("bursts of 40".to_owned(), Clients::Bursts { size: 40, every: 3 * think }),
        ] {
            show(flags, &format!("{model}: {load}"), clients, engine);
        }
    }
}

fn show(flags: &Flags, name: &str, clients: Clients, engine: Engine) {
    println!("{name}");
    for (rule, label) in [
        (Rule::Pillion, "policy"),
        (Rule::AtOnce, "at once"),
        (Rule::Timer(Duration::from_millis(2)), "timer 2 ms"),
        (Rule::Timer(Duration::from_millis(100)), "timer 100 ms"),
    ] {
        let host = Host { request: flags.text, answer: flags.text, handover: flags.handover, lead: flags.lead };
        let setting = Setting {
            clients,
            requests: flags.request.clone(),
            preempts: !flags.no_preemption,
            engines: vec![engine; flags.engines],
            host,
            rule,
            max_batch_size: flags.max_batch_size,
            span: (400 * engine.time(40)).min(Duration::from_secs(60)),
            seed: flags.seed,
        };
        println!("  {label:<13} {}", simulate(&setting));
    }
}

fn engine_of(fixed: Duration, member: Duration, flags: &Flags) -> Engine {
    Engine { prompt: flags.prompt, context: flags.context, ..Engine::of(fixed, member) }
}

fn request(text: &str) -> Result<Request, String> {
    let malformed = || "not of the form PROMPT:ANSWER:WEIGHT".to_owned();
    let [prompt, answer, weight] = text.split(':').collect::<Vec<_>>()[..] else { return Err(malformed()) };
    let count = |text: &str| text.parse().ok().filter(|n| *n > 0).ok_or_else(malformed);
    let weight =
        weight.parse().ok().filter(|weight: &f64| *weight > 0.0 && weight.is_finite()).ok_or_else(malformed)?;
    Ok(Request { prompt: count(prompt)?, answer: count(answer)?, weight })
}
