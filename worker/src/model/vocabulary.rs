//! A model's tokens by their ids: `vocabulary.json`, or `vocabulary.txt` of older conversions.

use std::path::{Path, PathBuf};

use super::file::{ModelError, json, text};

const JSON: &str = "vocabulary.json";
const TEXT: &str = "vocabulary.txt";

/// The path of a directory's vocabulary.
pub(super) fn path(directory: &Path) -> PathBuf {
    let text = directory.join(TEXT);
    let json = directory.join(JSON);
    if !json.exists() && text.exists() { text } else { json }
}

/// Reads the tokens. If the unknown token is missing, the engine adds it and never chooses it.
pub(super) fn read(directory: &Path) -> Result<Vec<String>, ModelError> {
    let path = path(directory);
    if path.ends_with(TEXT) { Ok(lines(&text(&path)?)) } else { json(&path) }
}

/// One token per line. A carriage return belongs to the line end if every line has one.
fn lines(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.strip_suffix('\n').unwrap_or(text).split('\n').collect();
    let all = lines.iter().all(|line| line.ends_with('\r'));
    lines.into_iter().map(|line| line.strip_suffix('\r').filter(|_| all).unwrap_or(line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::file::tests::Scratch;

    #[test]
    fn older_vocabularies_have_a_token_a_line() {
        assert_eq!(lines("<unk>\na\n\u{a0}\n"), ["<unk>", "a", "\u{a0}"]);
        assert_eq!(lines("<unk>\r\na\r\n"), ["<unk>", "a"]);
        assert_eq!(lines("<unk>\n\r\n"), ["<unk>", "\r"]);
        let scratch = Scratch::new("vocabulary");
        fs::write(scratch.0.join(TEXT), "a\nb\n").unwrap();
        assert_eq!(read(&scratch.0).unwrap(), ["a", "b"]);
        fs::write(scratch.0.join(JSON), r#"["<unk>", "c"]"#).unwrap();
        assert_eq!(read(&scratch.0).unwrap(), ["<unk>", "c"], "the newer one counts, as for the engine");
    }
}
