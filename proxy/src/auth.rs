//! API keys: bearer tokens (RFC 6750) from a file, which is reloaded whenever it changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use subtle::{Choice, ConstantTimeEq};
use tracing::{info, warn};

/// How often the file is checked for changes. A file watch would miss those of a Kubernetes secret, which renames links.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
const MAX_BYTES: u64 = 64 * 1024;

/// Why an API key file cannot be used. The message follows the words "the file".
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// The file is larger than 64 KiB.
    #[error("is larger than 64 KiB")]
    TooLarge,
    /// The file has no key.
    #[error("has no key; write one on each line (empty lines and lines that begin with # are skipped)")]
    Empty,
    /// The key on this line could not be sent in a header.
    #[error("has an invalid key on line {0}: a key consists of visible ASCII characters")]
    InvalidKey(usize),
}

/// The API keys of a file. Clones share them.
#[derive(Clone, Debug)]
pub struct ApiKeys {
    path: Arc<PathBuf>,
    keys: Arc<RwLock<Keys>>,
}

#[derive(Debug)]
struct Keys {
    all: Vec<Box<[u8]>>,
    version: Option<FileVersion>,
}

/// When a file was modified, and its size in bytes. If either differs, the file has changed.
type FileVersion = (SystemTime, u64);

impl ApiKeys {
    /// Reads the keys from a file.
    ///
    /// # Errors
    /// The file cannot be read, is too large, or has no key or an invalid one.
    pub fn read(path: &Path) -> Result<Self, KeysError> {
        let version = file_version(path);
        let keys = Keys { all: load(path)?, version };
        Ok(Self { path: Arc::new(path.to_owned()), keys: Arc::new(RwLock::new(keys)) })
    }

    /// Whether an `Authorization` header has one of the keys. Keys are compared in constant time, so the duration does not
    /// reveal how much of a key is right.
    pub fn allow(&self, authorization: Option<&[u8]>) -> bool {
        let token = match authorization.unwrap_or_default().split_at_checked(7) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => token.trim_ascii(),
            _ => return false,
        };
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.all.iter().fold(Choice::from(0), |found, key| found | key.ct_eq(token)).into()
    }

    /// Reloads the file whenever it changes, forever. If the changed file cannot be used, the previous keys stay valid.
    pub async fn watch(self) {
        let mut tick = tokio::time::interval(POLL_INTERVAL);
        let mut told = String::new();
        loop {
            tick.tick().await;
            let now = file_version(&self.path);
            if now == self.keys.read().unwrap_or_else(PoisonError::into_inner).version {
                continue;
            }
            // The file is read before the lock is taken, so that no request waits for it.
            let loaded = load(&self.path);
            let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
            match loaded {
                Ok(all) => {
                    info!(keys = all.len(), "reloaded the API key file");
                    *keys = Keys { all, version: now };
                    told.clear();
                }
                // It is read again, since a new mode of the file does not show in its version. One warning is enough.
                Err(error) => {
                    keys.version = None;
                    let error = error.to_string();
                    if error != told {
                        warn!(path = %self.path.display(), error, "cannot reload the API key file; keeping the previous keys");
                    }
                    told = error;
                }
            }
        }
    }
}

fn file_version(path: &Path) -> Option<FileVersion> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn load(path: &Path) -> Result<Vec<Box<[u8]>>, KeysError> {
    if fs::metadata(path)?.len() > MAX_BYTES {
        return Err(KeysError::TooLarge);
    }
    let bytes = fs::read(path)?;
    let mut all = Vec::new();
    for (line, key) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let key = key.trim_ascii();
        if key.is_empty() || key.starts_with(b"#") {
            continue;
        }
        if !key.iter().all(u8::is_ascii_graphic) {
            return Err(KeysError::InvalidKey(line));
        }
        all.push(key.into());
    }
    if all.is_empty() { Err(KeysError::Empty) } else { Ok(all) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("pillion-keys-{}-{name}", std::process::id()));
        fs::write(&path, text).unwrap();
        path
    }

    fn allowed(keys: &ApiKeys, authorization: &str) -> bool {
        keys.allow(Some(authorization.as_bytes()))
    }

    #[test]
    fn only_keys_of_the_file_are_accepted() {
        let path = file("some", "# ours\n\nfirst-key\n  second-key  \r\n");
        let keys = ApiKeys::read(&path).unwrap();
        for good in ["Bearer first-key", "bearer second-key", "BEARER  first-key "] {
            assert!(allowed(&keys, good), "{good}");
        }
        for bad in [
            "first-key",
            "Basic first-key",
            "Bearer first-ke",
            "Bearer first-keyy",
            "Bearer ",
            "Bearer",
            "Bearer # ours",
        ] {
            assert!(!allowed(&keys, bad), "{bad}");
        }
        assert!(!keys.allow(None));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_without_valid_keys_is_refused() {
        let path = file("none", "# nothing\n\n");
        assert!(matches!(ApiKeys::read(&path), Err(KeysError::Empty)));
        fs::write(&path, "good\nwith a space\n").unwrap();
        assert!(matches!(ApiKeys::read(&path), Err(KeysError::InvalidKey(2))));
        fs::remove_file(&path).unwrap();
        assert!(matches!(ApiKeys::read(&path), Err(KeysError::Io(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_reloaded_and_an_invalid_one_is_ignored() {
        let path = file("changing", "one\n");
        let keys = ApiKeys::read(&path).unwrap();
        let watching = tokio::spawn(keys.clone().watch());
        fs::write(&path, "another\n").unwrap();
        tokio::time::sleep(2 * POLL_INTERVAL).await;
        assert!(allowed(&keys, "Bearer another") && !allowed(&keys, "Bearer one"));
        fs::write(&path, "wrong key").unwrap();
        tokio::time::sleep(2 * POLL_INTERVAL).await;
        assert!(allowed(&keys, "Bearer another"));
        // What is mended may be as long as before and modified at the same time, or have only another mode.
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, "right-key").unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        tokio::time::sleep(2 * POLL_INTERVAL).await;
        assert!(allowed(&keys, "Bearer right-key"));
        fs::remove_file(&path).unwrap();
        watching.abort();
    }
}
