//! Scenes that run one after another, and the table of what they came to: for the fault campaign and the floods.

use std::fmt::Display;
use std::process::ExitCode;

use crate::campaign::load::Tally;
use crate::say;

/// What a scene came to: displayed as a row of a table in Markdown.
pub trait Row: Display {
    /// The table's head.
    const HEAD: &'static str;

    /// Whether the promise was kept.
    fn is_kept(&self) -> bool;

    /// What the clients saw whose answers were compared.
    fn tallies(&self) -> Vec<&Tally>;
}

/// The scenes that have run.
#[derive(Debug)]
pub struct Scenes<R> {
    only: String,
    rows: Vec<R>,
}

impl<R: Row> Scenes<R> {
    /// Those whose name contains `only` will run.
    pub fn only(only: String) -> Self {
        Self { only, rows: Vec::new() }
    }

    /// Runs a scene, and shows what it came to and the first failures. A scene that is left out is dropped before it begins.
    pub async fn run(&mut self, name: &str, scene: impl Future<Output = R>) {
        if !name.contains(&self.only) {
            return;
        }
        say(&format!("{name}: begins"));
        let row = scene.await;
        say(&row.to_string());
        for tally in row.tallies() {
            tally.failed.iter().chain(&tally.wrong).take(3).for_each(|what| say(what));
        }
        self.rows.push(row);
    }

    /// Prints the table. The exit code says whether every promise was kept.
    pub fn end(self) -> ExitCode {
        println!("{}", R::HEAD);
        self.rows.iter().for_each(|row| println!("{row}"));
        if self.rows.iter().all(R::is_kept) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
