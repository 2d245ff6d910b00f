//! Which model this is: a digest of everything that decides an answer.

use std::io::Read;
use std::path::Path;

use super::{ModelError, open};

const FILES: [&str; 4] = ["model.bin", "config.json", "vocabulary.json", "tokenizer.json"];
/// Those that a model may do without; they decide what becomes of a chat.
const OPTIONAL: [&str; 2] = ["tokenizer_config.json", "chat_template.jinja"];

/// The hexadecimal BLAKE3 digest of the directory's files, each preceded by its name and length.
pub(super) fn of(directory: &Path) -> Result<String, ModelError> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1024 * 1024];
    let there = OPTIONAL.into_iter().filter(|name| directory.join(name).exists());
    for name in FILES.into_iter().chain(there) {
        let path = directory.join(name);
        let unreadable = |error: std::io::Error| ModelError::new(&path, format!("cannot be read: {error}"));
        let mut file = open(&path)?;
        let length = file.metadata().map_err(unreadable)?.len();
        hasher.update(name.as_bytes()).update(&length.to_be_bytes());
        loop {
            match file.read(&mut buffer).map_err(unreadable)? {
                0 => break,
                read => hasher.update(&buffer[..read]),
            };
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}
