//! Model directories as they may be found: a file that is cut short, or is something else, is refused or read, never worse.

#![no_main]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use pillion_worker::model::{Model, Overrides};
use pillion_worker::tokens::Tokens;

/// Each file as it is in the built-in model where it is none.
#[derive(Arbitrary, Debug)]
struct Files<'a> {
    model: Option<&'a [u8]>,
    config: Option<&'a str>,
    vocabulary: Option<&'a str>,
    tokenizer: Option<&'a str>,
    template: Option<&'a str>,
    tokenizer_config: Option<&'a str>,
    generation: Option<&'a str>,
}

fn builtin() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/models/builtin")
}

/// A folder of this process: `run` has it in memory, and removes it.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("pillion-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("there is room");
        folder
    })
}

fuzz_target!(|files: Files<'_>| {
    let folder = folder();
    let put = |name: &str, bytes: Option<&[u8]>| {
        let path = folder.join(name);
        let _ = std::fs::remove_file(&path);
        match bytes {
            Some(bytes) => std::fs::write(path, bytes).expect("there is room"),
            None => {
                let there = builtin().join(name);
                if there.exists() {
                    std::os::unix::fs::symlink(there, path).expect("a link");
                }
            }
        }
    };
    put("model.bin", files.model);
    put("config.json", files.config.map(str::as_bytes));
    put("vocabulary.json", files.vocabulary.map(str::as_bytes));
    put("tokenizer.json", files.tokenizer.map(str::as_bytes));
    put("chat_template.jinja", files.template.map(str::as_bytes));
    put("tokenizer_config.json", files.tokenizer_config.map(str::as_bytes));
    put("generation_config.json", files.generation.map(str::as_bytes));
    match Model::open(folder, &Overrides::default()) {
        Ok(model) => match Tokens::load(&model) {
            Ok(tokens) => assert_eq!(tokens.vocabulary() as usize, model.vocabulary.len()),
            Err(error) => assert!(!error.to_string().is_empty()),
        },
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
