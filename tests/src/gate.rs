//! A gate in front of a simulated worker's engine.

use std::path::{Path, PathBuf};

/// A gate. While it is shut, the worker that was started with its [`flags`](Self::flags) takes batches but makes no
/// step.
#[derive(Debug)]
pub struct Gate(PathBuf);

impl Gate {
    /// Makes a gate that is shut. The gate is a file in `folder`.
    ///
    /// # Panics
    /// The folder cannot be written.
    pub fn shut(folder: &Path) -> Self {
        let gate = Self(folder.join("gate"));
        gate.close();
        gate
    }

    /// The flags with which the worker must be started.
    ///
    /// # Panics
    /// The folder's path is not UTF-8.
    pub fn flags(&self) -> [&str; 2] {
        ["--gate", self.0.to_str().expect("a plain path")]
    }

    /// Shuts the gate.
    ///
    /// # Panics
    /// The folder cannot be written.
    pub fn close(&self) {
        std::fs::write(&self.0, "").expect("the folder can be written");
    }

    /// Opens the gate.
    ///
    /// # Panics
    /// The folder cannot be written.
    pub fn open(&self) {
        std::fs::remove_file(&self.0).expect("the gate is shut");
    }
}
