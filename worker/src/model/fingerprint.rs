//! The model's fingerprint: a digest of everything that decides an answer.

use std::path::Path;

use super::file::{ModelError, bytes};
use super::vocabulary;

const FILES: [&str; 2] = ["config.json", "tokenizer.json"];
/// Optional files. They decide how a chat is written and where an answer ends.
const OPTIONAL: [&str; 3] = ["tokenizer_config.json", "chat_template.jinja", "generation_config.json"];

/// The hexadecimal BLAKE3 digest of `weights` (the digest of `model.bin`), the end tokens, the positions and the directory's
/// other files, each preceded by its name and length. End tokens and positions are included because flags can change them.
pub(super) fn of(directory: &Path, weights: [u8; 32], ends: &[u32], positions: u32) -> Result<String, ModelError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&weights).update(&positions.to_be_bytes());
    ends.iter().for_each(|end| {
        hasher.update(&end.to_be_bytes());
    });
    let vocabulary = vocabulary::path(directory);
    let others = FILES.into_iter().chain(OPTIONAL).map(|name| directory.join(name));
    for path in std::iter::once(vocabulary).chain(others.filter(|path| path.exists())) {
        let bytes = bytes(&path)?;
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        hasher.update(name).update(&(bytes.len() as u64).to_be_bytes()).update(&bytes);
    }
    Ok(hasher.finalize().to_hex().to_string())
}
