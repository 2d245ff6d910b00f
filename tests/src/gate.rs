//! A gate in front of a simulated worker's engine.

use std::path::{Path, PathBuf};

/// While it is shut, the worker that was given its [`flag`](Self::flags) takes batches and makes no step.
#[derive(Debug)]
pub struct Gate(PathBuf);

impl Gate {
    /// A shut gate: a file in `folder`.
    ///
    /// # Panics
    /// The folder cannot be written.
    pub fn shut(folder: &Path) -> Self {
        let gate = Self(folder.join("gate"));
        gate.close();
        gate
    }

    /// The flags for the worker.
    ///
    /// # Panics
    /// The folder's path is not plain.
    pub fn flags(&self) -> [&str; 2] {
        ["--gate", self.0.to_str().expect("a plain path")]
    }

    /// Shuts it.
    ///
    /// # Panics
    /// The folder cannot be written.
    pub fn close(&self) {
        std::fs::write(&self.0, "").expect("the folder can be written");
    }

    /// Opens it.
    ///
    /// # Panics
    /// The folder cannot be written.
    pub fn open(&self) {
        std::fs::remove_file(&self.0).expect("the gate is shut");
    }
}
