//! Loads an HTTP server, and says how long its answers took, from when each request was intended to start.
//!
//! One JSON object on standard output; see `pillion_tests::load::tally::Report` for what its numbers mean. The exit
//! code is 0 whatever the server did, and 64 for flags that make no sense.

use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Parser, ValueEnum};
use pillion_tests::load::arrivals::Arrivals;
use pillion_tests::load::mix::{Mix, MixError};
use pillion_tests::load::target::{Expected, Target};
use pillion_tests::load::{Load, Plan, drive};

const BAD_FLAG: u8 = 64;
const INTERNAL: u8 = 70;
/// The longest time that a flag may say.
const LONGEST: Duration = Duration::from_secs(3600);

/// Loads an HTTP server: at a rate, by users who wait for their answers, or in bursts.
#[derive(Debug, Parser)]
#[command(version, group(ArgGroup::new("load").required(true).args(["rate", "users", "burst"])))]
struct Flags {
    /// What to post to: `http://HOST:PORT/PATH`.
    #[arg(long)]
    url: String,
    /// The JSON to post.
    #[arg(long, required_unless_present = "mix")]
    body: Option<String>,
    /// A file with several kinds of requests instead: JSON lines with `name`, `weight`, `body` and `expect`.
    #[arg(long, value_parser = mix, conflicts_with_all = ["body", "expect_field"])]
    mix: Option<Mix>,
    /// Requests a second, whether or not earlier ones have been answered.
    #[arg(long, value_parser = rate)]
    rate: Option<f64>,
    /// How requests at a rate are spaced.
    #[arg(long, value_enum, default_value = "poisson", conflicts_with_all = ["users", "burst"])]
    arrivals: Spacing,
    /// Users with one request at a time each, instead of a rate.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    users: Option<u32>,
    /// How long a user waits before the next request.
    #[arg(long, default_value = "0ms", value_parser = duration, conflicts_with_all = ["rate", "burst"])]
    think: Duration,
    /// Requests at once, instead of a rate.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), requires = "every")]
    burst: Option<u32>,
    /// Time between bursts.
    #[arg(long, value_parser = positive, requires = "burst", conflicts_with_all = ["rate", "users"])]
    every: Option<Duration>,
    /// How long to count.
    #[arg(long, default_value = "10s", value_parser = positive)]
    duration: Duration,
    /// How long after the end to wait for answers.
    #[arg(long, default_value = "10s", value_parser = duration)]
    grace: Duration,
    /// Whoever is refused with Retry-After asks again over the same connection, once, when that time is over.
    #[arg(long)]
    obey_retry_after: bool,
    /// How long to send before counting.
    #[arg(long, default_value = "1s", value_parser = duration)]
    warm_up: Duration,
    /// What random intervals and kinds of requests are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Connections open at once; each takes a file descriptor.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,
    /// A field that every answer must have: `usage.completion_tokens=10`.
    #[arg(long)]
    expect_field: Option<Expected>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Spacing {
    Poisson,
    Constant,
}

impl Flags {
    fn load(&self) -> Load {
        match (self.rate, self.users, self.burst.zip(self.every)) {
            (Some(rate), ..) => Load::Open(match self.arrivals {
                Spacing::Poisson => Arrivals::Poisson { rate, seed: self.seed },
                Spacing::Constant => Arrivals::Constant { rate },
            }),
            (_, _, Some((size, every))) => Load::Open(Arrivals::Bursts { size, every }),
            (_, users, _) => Load::Closed { users: users.unwrap_or(1), think: self.think },
        }
    }
}

fn main() -> ExitCode {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { BAD_FLAG } else { 0 });
        }
    };
    let load = flags.load();
    let target = match Target::new(&flags.url) {
        Ok(target) => match flags.mix {
            Some(mix) => mix.of(target),
            None => target.or("all", 1.0, flags.body.unwrap_or_default(), flags.expect_field),
        },
        Err(error) => {
            eprintln!("error: --url {}: {error}", flags.url);
            return ExitCode::from(BAD_FLAG);
        }
    };
    let plan = Plan {
        target,
        load,
        warm_up: flags.warm_up,
        duration: flags.duration,
        grace: flags.grace,
        max_connections: flags.max_connections,
        seed: flags.seed,
        obey: flags.obey_retry_after,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(drive(plan))) {
        Ok(report) => {
            println!("{}", report.to_json());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(INTERNAL)
        }
    }
}

/// Parses a rate. A rate out of the bounds is taken for a slip of the pen. The requests of an hour at any other rate
/// can still be counted.
fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (1e-3..=1e6).contains(&rate) { Ok(rate) } else { Err("not from 0.001 to 1000000".to_owned()) }
}

fn mix(path: &str) -> Result<Mix, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    text.parse().map_err(|error: MixError| error.to_string())
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration <= LONGEST { Ok(duration) } else { Err("more than an hour".to_owned()) }
}

fn positive(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration.is_zero() { Err("must be more than 0".to_owned()) } else { Ok(duration) }
}
