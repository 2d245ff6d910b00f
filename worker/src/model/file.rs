//! Reads the files of a model directory. Every error names its file.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Why a model cannot be served: one sentence that names a file and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct ModelError {
    /// The file or directory.
    pub path: PathBuf,
    /// The problem, as the rest of a sentence that begins with the path.
    pub problem: String,
}

impl ModelError {
    pub(crate) fn new(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self { path: path.into(), problem: problem.into() }
    }

    fn reading(path: &Path, error: &io::Error) -> Self {
        let problem = match error.kind() {
            io::ErrorKind::NotFound if path.ends_with("tokenizer.json") => {
                "is missing; convert the model with --copy_files tokenizer.json, or copy the file here".to_owned()
            }
            io::ErrorKind::NotFound => "does not exist".to_owned(),
            _ => format!("cannot be read: {error}"),
        };
        Self::new(path, problem)
    }
}

pub(super) fn open(path: &Path) -> Result<File, ModelError> {
    File::open(path).map_err(|error| ModelError::reading(path, &error))
}

/// A file's bytes.
pub(super) fn bytes(path: &Path) -> Result<Vec<u8>, ModelError> {
    std::fs::read(path).map_err(|error| ModelError::reading(path, &error))
}

/// A file's text.
pub(super) fn text(path: &Path) -> Result<String, ModelError> {
    std::fs::read_to_string(path).map_err(|error| ModelError::reading(path, &error))
}

/// A file's text, or `None` if the file does not exist.
pub(crate) fn optional_text(path: &Path) -> Result<Option<String>, ModelError> {
    if path.exists() { text(path).map(Some) } else { Ok(None) }
}

/// The value of a JSON file.
pub(super) fn json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, ModelError> {
    serde_json::from_reader(BufReader::new(open(path)?))
        .map_err(|error| ModelError::new(path, format!("is not as it should be: {error}")))
}

/// The value of a JSON file, or `None` if the file does not exist.
pub(super) fn optional_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, ModelError> {
    if path.exists() { json(path).map(Some) } else { Ok(None) }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::path::PathBuf;

    /// A directory that is removed when the value is dropped.
    pub(crate) struct Scratch(pub(crate) PathBuf);

    impl Scratch {
        pub(crate) fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("pillion-worker-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}
