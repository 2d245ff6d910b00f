//! The table of promises in `tests/README.md` names tests that exist.

use std::fs;
use std::path::Path;

/// The names between backticks in the second column of the table, as `file::test`.
fn named_tests(readme: &str) -> Vec<(String, String)> {
    let table = readme.split("## What Pillion promises").nth(1).expect("the table's section");
    let table = table.split("\n## ").next().unwrap_or(table);
    let rows = table.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").nth(1));
    let names = rows.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    names.filter_map(|name| name.split_once("::")).map(|(file, test)| (file.to_owned(), test.to_owned())).collect()
}

#[test]
fn every_test_that_the_table_of_promises_names_exists() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(folder.join("README.md")).expect("the tests' page");
    let named = named_tests(&readme);
    assert!(named.len() > 30, "only {} tests are named", named.len());
    for (file, test) in named {
        let source = fs::read_to_string(folder.join(format!("tests/{file}.rs"))).unwrap_or_default();
        assert!(source.contains(&format!("fn {test}(")), "{file}::{test} does not exist");
    }
}
