//! A model's special tokens: those in CTranslate2's `config.json`, and all tokens that end an answer.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::file::{ModelError, json, optional_json};
use super::tokenizer_config::TokenizerConfig;

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";

/// The tokens that `config.json` names.
#[derive(Debug)]
pub(super) struct Special {
    pub(super) eos: String,
}

impl Special {
    /// Reads the file. It may be missing, or lack these fields, only for models of a binary version before 6.
    pub(super) fn read(directory: &Path, may_be_missing: bool) -> Result<Self, ModelError> {
        let path = directory.join(CONFIG);
        let fields: Map<String, Value> =
            if may_be_missing { optional_json(&path)?.unwrap_or_default() } else { json(&path)? };
        let token = |name: &str, default: &str| match fields.get(name) {
            Some(Value::String(token)) => Ok(token.clone()),
            None if may_be_missing => Ok(default.to_owned()),
            other => {
                let is = other.map_or("missing".to_owned(), Value::to_string);
                Err(ModelError::new(&path, format!("its {name} is {is}, but CTranslate2 needs a token's text there")))
            }
        };
        token("bos_token", "<s>")?;
        token("unk_token", "<unk>")?;
        Ok(Self { eos: token("eos_token", "</s>")? })
    }
}

/// The field of `generation_config.json` that names end tokens.
#[derive(Debug, Default, Deserialize)]
struct GenerationConfig {
    #[serde(default)]
    eos_token_id: Ids,
}

#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum Ids {
    #[default]
    None,
    One(u32),
    Several(Vec<u32>),
}

/// All tokens that end an answer, each once: those that the user named, then those of the model's files. At least one.
pub(super) fn ends(
    directory: &Path,
    special: &Special,
    tokenizer: &TokenizerConfig,
    named: &[String],
    ids: &HashMap<&str, u32>,
) -> Result<Vec<u32>, ModelError> {
    let mut ends = Vec::new();
    for token in named {
        let id = ids.get(token.as_str()).copied();
        ends.push(
            id.ok_or_else(|| ModelError::new(directory, format!("has no token {token:?}, which --end-token names")))?,
        );
    }
    ends.extend(ids.get(special.eos.as_str()));
    let generation: GenerationConfig = optional_json(&directory.join(GENERATION))?.unwrap_or_default();
    let listed = match generation.eos_token_id {
        Ids::None => Vec::new(),
        Ids::One(id) => vec![id],
        Ids::Several(ids) => ids,
    };
    // Converters cut the vocabulary to the model's rows. A token without a row is never produced.
    ends.extend(listed.into_iter().filter(|id| usize::try_from(*id).is_ok_and(|id| id < ids.len())));
    ends.extend(tokenizer.special("eos_token").and_then(|token| ids.get(token)));
    if ends.is_empty() {
        let eos = &special.eos;
        let problem = format!(
            "its eos_token {eos:?} is not in the vocabulary, so no answer would end; name the tokens that end an answer with \
             --end-token"
        );
        return Err(ModelError::new(directory.join(CONFIG), problem));
    }
    let mut seen = std::collections::HashSet::new();
    ends.retain(|id| seen.insert(*id));
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::file::tests::Scratch;

    const WORDS: [&str; 4] = ["<unk>", "</s>", "<|end|>", "a"];

    fn found(scratch: &Scratch, tokenizer: &str, named: &[&str]) -> Result<Vec<u32>, ModelError> {
        let special = Special::read(&scratch.0, false)?;
        let tokenizer = serde_json::from_str(tokenizer).unwrap();
        let named: Vec<String> = named.iter().map(|&name| name.to_owned()).collect();
        let ids = WORDS.iter().zip(0..).map(|(word, id)| (*word, id)).collect();
        ends(&scratch.0, &special, &tokenizer, &named, &ids)
    }

    fn scratch(name: &str, eos: &str) -> Scratch {
        let scratch = Scratch::new(name);
        let config = format!(r#"{{"unk_token": "<unk>", "bos_token": "<s>", "eos_token": {eos}}}"#);
        fs::write(scratch.0.join(CONFIG), config).unwrap();
        scratch
    }

    #[test]
    fn every_file_may_name_end_tokens_and_so_may_the_user() {
        let scratch = scratch("ends", r#""</s>""#);
        assert_eq!(found(&scratch, "{}", &[]).unwrap(), [1]);
        assert_eq!(found(&scratch, r#"{"eos_token": "<|end|>"}"#, &[]).unwrap(), [1, 2]);
        let generation = |text: &str| fs::write(scratch.0.join(GENERATION), text).unwrap();
        generation(r#"{"eos_token_id": [2, 1, 9]}"#);
        assert_eq!(found(&scratch, "{}", &[]).unwrap(), [1, 2], "9 has no row in the model");
        generation(r#"{"eos_token_id": 2}"#);
        assert_eq!(found(&scratch, "{}", &["a"]).unwrap(), [3, 1, 2]);
        generation(r#"{"eos_token_id": null}"#);
        assert_eq!(found(&scratch, r#"{"eos_token": {"content": "</s>"}}"#, &[]).unwrap(), [1]);
        generation("{");
        assert!(found(&scratch, "{}", &[]).unwrap_err().path.ends_with(GENERATION));
    }

    #[test]
    fn an_end_token_outside_the_vocabulary_is_refused() {
        let scratch = scratch("no-end", r#""<eos>""#);
        let error = found(&scratch, "{}", &[]).unwrap_err().to_string();
        assert!(error.contains("eos_token \"<eos>\" is not in the vocabulary"), "{error}");
        assert_eq!(found(&scratch, "{}", &["a"]).unwrap(), [3]);
        let error = found(&scratch, "{}", &["b"]).unwrap_err().to_string();
        assert!(error.contains("no token \"b\", which --end-token names"), "{error}");
    }

    #[test]
    fn a_field_without_a_token_is_named() {
        let error = found(&scratch("null", "null"), "{}", &[]).unwrap_err().to_string();
        assert!(error.ends_with("its eos_token is null, but CTranslate2 needs a token's text there"), "{error}");
    }
}
