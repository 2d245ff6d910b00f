//! Valid settings, and the messages for invalid ones.

use super::*;

fn read(arguments: &str) -> Result<Command, FlagError> {
    Config::read(std::iter::once("pillion-worker").chain(arguments.split_whitespace()).map(OsString::from))
}

fn config(arguments: &str) -> Config {
    match read(arguments).unwrap() {
        Command::Serve(config) => *config,
        Command::Print(text) => panic!("printed {text}"),
    }
}

#[test]
fn a_model_is_all_that_is_needed() {
    let config = config("--model /models/opt-125m-ct2 --socket /s");
    assert_eq!(config.model_name, "opt-125m-ct2");
    assert_eq!((config.slots, config.threads, config.max_batch_tokens), (1, None, None));
    assert_eq!(config.drain_timeout, Duration::from_secs(65));
}

#[test]
fn every_refusal_names_the_flag_the_value_and_what_is_allowed() {
    for (arguments, sentence) in [
        ("--model /m --slots 0", "--slots does not take \"0\", only a whole number from 1 to 64"),
        ("--model /m --threads many", "--threads does not take \"many\", only auto or a whole number from 1 to 1024"),
        ("--model /m --device gpu", "--device does not take \"gpu\", only auto, cpu or cuda"),
        (
            "--model /m --drain-timeout 65",
            "--drain-timeout does not take \"65\", only a time with its unit, such as 500ms, 65s or 2m, of at most 24h",
        ),
        ("--model /m --log-format xml", "--log-format does not take \"xml\", only text or json"),
        ("--model /m --sloots 1", "there is no flag --sloots; pillion-worker --help lists the flags"),
        ("--model /m extra", "there is no flag extra; pillion-worker --help lists the flags"),
        ("--model /m --slots", "--slots needs a value"),
        ("--model /m --slots 1 --slots 2", "--slots is given more than once"),
        ("", "--model is missing: it takes the directory of a converted model"),
    ] {
        assert_eq!(read(arguments).unwrap_err().to_string(), sentence, "{arguments}");
    }
}

#[test]
fn help_and_version_are_not_errors() {
    assert!(matches!(read("--help").unwrap(), Command::Print(text) if text.contains("--max-batch-tokens")));
    assert!(matches!(read("--version").unwrap(), Command::Print(text) if text.starts_with("pillion-worker ")));
}

#[test]
fn a_socket_path_too_long_for_an_address_is_refused_at_once() {
    let error = read(&format!("--model /m --socket /{}", "s".repeat(107))).unwrap_err();
    assert!(error.to_string().ends_with("only a path of at most 107 bytes"), "{error}");
}
