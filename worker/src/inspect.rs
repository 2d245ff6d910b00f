//! The command `pillion-worker inspect DIR`: describes a model and says whether it can be served, without loading it.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Parser;
use pillion_process::command;

use crate::error::Error;
use crate::memory;
use crate::model::{Model, ModelError, Overrides};
use crate::tokens::Tokens;

/// Bytes of an element of the keys and values on a processor.
const ELEMENT: u64 = 4;
const MIB: f64 = 1024.0 * 1024.0;

/// Describes a converted model and says whether it can be served. Exit codes: 0 it can, 66 it cannot, 64 bad flag
#[derive(Debug, Parser)]
#[command(name = "pillion-worker inspect", version)]
struct Flags {
    /// The model's directory
    directory: PathBuf,
}

/// Runs the command `inspect` if these arguments, the first of which is the program's name, ask for it. Returns its exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Option<u8> {
    command::run("inspect", arguments, |flags: &Flags| match inspect(&flags.directory) {
        Ok(lines) => {
            // If standard output cannot be written, the exit code still tells whether the model can be served.
            let _ = std::io::stdout().write_all(lines.as_bytes());
            0
        }
        Err(error) => {
            eprintln!("pillion-worker: {error}");
            Error::from(error).exit_code()
        }
    })
}

#[allow(clippy::cast_precision_loss, reason = "it is rounded")]
fn inspect(directory: &Path) -> Result<String, ModelError> {
    let model = Model::open(directory, &Overrides::default())?;
    let tokens = Tokens::load(&model)?;
    let about = &model.description;
    let weights = about.bytes as f64 / MIB;
    let keys = (about.cached * ELEMENT) as f64 / 1024.0;
    let free = memory::system().map_or_else(String::new, |free| format!("; {:.0} MiB are free now", free as f64 / MIB));
    let end = |&id: &u32| format!("{} (id {id})", model.vocabulary.get(id as usize).map_or("", String::as_str));
    let ends: Vec<String> = model.ends.iter().map(end).collect();
    let template = tokens.chat_template();
    let chats = match (template.file(), template.problem()) {
        (None, _) => "none: chats are written as plain \"role: content\" lines".to_owned(),
        (Some(file), None) => file.to_owned(),
        (Some(file), Some(problem)) => format!("{file}, which cannot be used, so that chats are refused: {problem}"),
    };
    Ok(format!(
        "model           {directory}\n\
         kind            {about}\n\
         positions       {positions} ({known})\n\
         vocabulary      {vocabulary} tokens\n\
         end tokens      {ends}\n\
         chat template   {chats}\n\
         memory          {weights:.1} MiB of weights for each slot; {keys:.1} KiB a token for keys and values{free}\n\
         Pillion serves it.\n",
        directory = directory.display(),
        positions = model.positions,
        vocabulary = model.vocabulary.len(),
        known = model.positions_from,
        ends = ends.join(", "),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_described_and_anything_else_is_refused() {
        let builtin = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/models/builtin"));
        let described = inspect(builtin).unwrap();
        for words in [
            "decoder of 3 layers, 128 wide, 0.6 million parameters",
            "int8",
            "positions       1024 (model_max_length of tokenizer_config.json)\n",
            "</s> (id 2), <|end|> (id 6)",
            "chat template   tokenizer_config.json",
            "3.0 KiB a token",
            "Pillion serves it.",
        ] {
            assert!(described.contains(words), "{words}: {described}");
        }
        assert!(inspect(Path::new("facebook/opt-125m")).unwrap_err().to_string().contains("pillion convert"));
    }

    #[test]
    fn only_the_first_argument_inspect_runs_it() {
        let run = |line: &str| run(line.split(' ').map(OsString::from));
        assert_eq!(run("pillion-worker"), None);
        assert_eq!(run("pillion-worker --model inspect"), None);
        assert_eq!(run("pillion-worker inspect"), Some(64));
        assert_eq!(run("pillion-worker inspect /no/such/model"), Some(66));
    }
}
