//! Judges the batching policy over many loads in a second: beside a rule that never holds, and beside a timer.

use std::time::Duration;

use clap::Parser;
use pillion_tests::policy_simulator::{
    Clients, Engine, Host, MODELS, Mechanism, Request, Rule, Setting, ablation, engine_loads, loads, simulate,
};

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
    /// The part of the policy that is switched off.
    #[arg(long)]
    without: Option<Mechanism>,
    /// Prints, in Markdown, what each part of the policy is worth over many loads. The other flags do not count.
    #[arg(long)]
    ablation: bool,
    /// Seeds with which `--ablation` runs each load.
    #[arg(long, default_value_t = 6)]
    seeds: u64,
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
    if flags.ablation {
        print!("{}", ablation(&loads(), flags.seeds));
    } else if let (Some(fixed), Some(member)) = (flags.fixed, flags.member) {
        let clients = match flags.rate {
            Some(rate) => Clients::Open { rate },
            None => Clients::Closed { users: flags.users, think: Duration::ZERO },
        };
        show(&flags, "as asked", clients, engine_of(fixed, member, &flags));
    } else {
        table(&flags);
    }
}

/// Every model under every load of one engine.
fn table(flags: &Flags) {
    for (model, engine) in MODELS {
        let engine = Engine { prompt: flags.prompt, context: flags.context, ..engine };
        for (load, clients) in engine_loads(&engine) {
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
        let host = Host {
            request: flags.text,
            body: Duration::ZERO,
            answer: flags.text,
            handover: flags.handover,
            lead: flags.lead,
        };
        let setting = Setting {
            clients,
            requests: flags.request.clone(),
            without: flags.without,
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
