//! Measures the engine alone, in the same build as the worker's. No server in front of the engine can be faster.
//!
//! The program prints `{"ready": true}` and then runs once for every line of standard input, such as
//! `{"batch": 40, "seconds": 5}`. Every slot serves batches of that size one after another, from tokens to tokens. With
//! `"watched": true` each step has a callback, as a server that streams needs. After a run the program prints one line of JSON:
//! the number of prompts `answered` in `seconds`, the time of a call (`p50`, `p99`, `max`, in milliseconds), and the
//! `least_tokens` and `most_tokens` of an answer.

use std::error::Error;
use std::io::{BufRead, Write, stdin, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use ct2rs::sys::{Config, Device, GenerationOptions, GenerationStepResult, Generator};
use serde::Deserialize;
use serde_json::json;
use tokenizers::Tokenizer;

#[derive(Debug, Parser)]
struct Flags {
    /// A CTranslate2 model directory with its tokenizer.json
    #[arg(long)]
    model: PathBuf,
    #[arg(long, value_enum, default_value = "cpu")]
    device: On,
    /// Copies of the model, each of which serves its own batches
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    slots: u8,
    /// Processor threads of a slot
    #[arg(long, default_value_t = 1)]
    threads: usize,
    #[arg(long)]
    prompt: String,
    /// New tokens of every answer
    #[arg(long, default_value_t = 10)]
    tokens: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum On {
    Cpu,
    Cuda,
}

#[derive(Deserialize)]
struct Order {
    batch: usize,
    seconds: f64,
    #[serde(default)]
    watched: bool,
}

/// A call's time, and the fewest and the most new tokens of its members.
type Seen = (Duration, usize, usize);

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Result<(), Box<dyn Error + Send + Sync>> {
    let tokenizer = Tokenizer::from_file(flags.model.join("tokenizer.json"))?;
    let prompt = tokenizer.encode(flags.prompt.as_str(), true)?.get_tokens().to_vec();
    let config = Config {
        device: match flags.device {
            On::Cpu => Device::CPU,
            On::Cuda => Device::CUDA,
        },
        device_indices: vec![0; flags.slots.into()],
        num_threads_per_replica: flags.threads,
        ..Config::default()
    };
    let generator = Generator::new(&flags.model, &config)?;
    let options = GenerationOptions {
        beam_size: 1,
        sampling_topk: 1,
        max_length: flags.tokens,
        include_prompt_in_result: false,
        ..GenerationOptions::default()
    };
    say(&json!({"ready": true}))?;
    for line in stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        let prompts = vec![prompt.clone(); order.batch];
        let started = Instant::now();
        let until = started + Duration::from_secs_f64(order.seconds);
        let call = || -> Result<Seen, String> {
            let called = Instant::now();
            let mut watch = |_| false;
            let callback: Option<&mut dyn FnMut(GenerationStepResult) -> bool> =
                if order.watched { Some(&mut watch) } else { None };
            let answers = generator.generate_batch(&prompts, &options, callback).map_err(|error| error.to_string())?;
            let lengths = || answers.iter().filter_map(|answer| answer.sequences_ids.first()).map(Vec::len);
            Ok((called.elapsed(), lengths().min().unwrap_or(0), lengths().max().unwrap_or(0)))
        };
        let slot = || -> Result<Vec<Seen>, String> {
            let mut seen = vec![call()?];
            while Instant::now() < until {
                seen.push(call()?);
            }
            Ok(seen)
        };
        let seen = thread::scope(|scope| {
            let slots: Vec<_> = (0..flags.slots).map(|_| scope.spawn(slot)).collect();
            slots.into_iter().map(|slot| slot.join().map_err(|_| "a slot panicked".to_owned())?).collect()
        });
        let seen: Result<Vec<Vec<Seen>>, String> = seen;
        say(&figures(&seen?.concat(), order.batch, started.elapsed()))?;
    }
    Ok(())
}

fn figures(seen: &[Seen], batch: usize, took: Duration) -> serde_json::Value {
    let mut milliseconds: Vec<f64> = seen.iter().map(|(took, ..)| took.as_secs_f64() * 1000.0).collect();
    milliseconds.sort_by(f64::total_cmp);
    let at = |percent: usize| milliseconds.get((milliseconds.len() * percent / 100).min(milliseconds.len() - 1));
    json!({
        "answered": batch * seen.len(),
        "seconds": took.as_secs_f64(),
        "p50": at(50),
        "p99": at(99),
        "max": at(100),
        "least_tokens": seen.iter().map(|&(_, least, _)| least).min(),
        "most_tokens": seen.iter().map(|&(.., most)| most).max(),
    })
}

fn say(line: &serde_json::Value) -> std::io::Result<()> {
    let mut output = stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}
