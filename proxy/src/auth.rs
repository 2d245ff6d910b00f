//! API keys: bearer tokens (RFC 6750) from a file, read again whenever it changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use subtle::{Choice, ConstantTimeEq};
use tracing::{info, warn};

/// How often the file is looked at. Kubernetes changes a mounted secret by renaming links, of which no event tells.
const LOOK: Duration = Duration::from_secs(1);
const MOST_BYTES: u64 = 64 * 1024;

/// Why a file of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// It is far larger than any file of keys.
    #[error("has more than 64 KiB")]
    TooLarge,
    /// There is none in it.
    #[error("has no key in it: one a line is needed; empty lines, and those that begin with #, are skipped")]
    Empty,
    /// A key could not be sent in a header.
    #[error("has a key, on line {0}, that is not of visible ASCII characters")]
    Unsendable(usize),
}

/// The keys of a file. Clones share them.
#[derive(Clone, Debug)]
pub struct ApiKeys {
    path: Arc<PathBuf>,
    keys: Arc<RwLock<Keys>>,
}

#[derive(Debug)]
struct Keys {
    all: Vec<Box<[u8]>>,
    seen: Option<Stamp>,
}

/// What tells one state of a file from another.
type Stamp = (SystemTime, u64);

impl ApiKeys {
    /// Reads the keys.
    ///
    /// # Errors
    /// There are none.
    pub fn read(path: &Path) -> Result<Self, KeysError> {
        let seen = stamp(path);
        let keys = Keys { all: load(path)?, seen };
        Ok(Self { path: Arc::new(path.to_owned()), keys: Arc::new(RwLock::new(keys)) })
    }

    /// Whether an `Authorization` header brings one of the keys. The time it takes says neither which key is meant nor how
    /// much of it is right.
    pub fn allow(&self, authorization: Option<&[u8]>) -> bool {
        let token = match authorization.unwrap_or_default().split_at_checked(7) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => token.trim_ascii(),
            _ => return false,
        };
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.all.iter().fold(Choice::from(0), |found, key| found | key.ct_eq(token)).into()
    }

    /// Reads the file again whenever it has changed, for ever. While it cannot be used, the keys before hold.
    pub async fn watch(self) {
        let mut tick = tokio::time::interval(LOOK);
        loop {
            tick.tick().await;
            let now = stamp(&self.path);
            if now == self.keys.read().unwrap_or_else(PoisonError::into_inner).seen {
                continue;
            }
            // Read before anybody has to wait for it.
            let loaded = load(&self.path);
            let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
            keys.seen = now;
            match loaded {
                Ok(all) => {
                    info!(keys = all.len(), "reloaded the API key file");
                    keys.all = all;
                }
                Err(error) => {
                    warn!(path = %self.path.display(), %error, "cannot reload the API key file; keeping the previous keys")
                }
            }
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let found = fs::metadata(path).ok()?;
    Some((found.modified().ok()?, found.len()))
}

fn load(path: &Path) -> Result<Vec<Box<[u8]>>, KeysError> {
    if fs::metadata(path)?.len() > MOST_BYTES {
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
            return Err(KeysError::Unsendable(line));
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
    fn only_a_key_of_the_file_opens() {
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
    fn a_file_without_keys_is_refused() {
        let path = file("none", "# nothing\n\n");
        assert!(matches!(ApiKeys::read(&path), Err(KeysError::Empty)));
        fs::write(&path, "good\nwith a space\n").unwrap();
        assert!(matches!(ApiKeys::read(&path), Err(KeysError::Unsendable(2))));
        fs::remove_file(&path).unwrap();
        assert!(matches!(ApiKeys::read(&path), Err(KeysError::Io(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_holds_and_a_broken_one_does_not() {
        let path = file("changing", "one\n");
        let keys = ApiKeys::read(&path).unwrap();
        let watching = tokio::spawn(keys.clone().watch());
        fs::write(&path, "another\n").unwrap();
        tokio::time::sleep(2 * LOOK).await;
        assert!(allowed(&keys, "Bearer another") && !allowed(&keys, "Bearer one"));
        fs::write(&path, "").unwrap();
        tokio::time::sleep(2 * LOOK).await;
        assert!(allowed(&keys, "Bearer another"));
        fs::remove_file(&path).unwrap();
        watching.abort();
    }
}
