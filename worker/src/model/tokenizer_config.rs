//! The fields of `tokenizer_config.json` that the worker uses. Models bring this file from Hugging Face.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::file::{ModelError, optional_json};

/// The file's name.
pub(crate) const FILE: &str = "tokenizer_config.json";

/// The plausible values of `model_max_length`. Hugging Face writes 10³⁰ if the length is unknown.
const PLAUSIBLE: std::ops::RangeInclusive<u64> = 16..=1 << 24;

/// The file's contents; empty if the file does not exist.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct TokenizerConfig {
    pub(crate) chat_template: Option<Templates>,
    #[serde(default, deserialize_with = "lenient")]
    model_max_length: Option<u64>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// One chat template, or several with names.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) template: String,
}

/// Whole numbers; `null` and floating-point numbers such as 1e30 count as absent.
fn lenient<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(Value::deserialize(deserializer)?.as_u64())
}

impl TokenizerConfig {
    pub(super) fn read(directory: &Path) -> Result<Self, ModelError> {
        Ok(optional_json(&directory.join(FILE))?.unwrap_or_default())
    }

    /// The most tokens that a prompt and its answer may have together, if the file has a plausible value.
    pub(crate) fn most_positions(&self) -> Option<u32> {
        self.model_max_length.filter(|length| PLAUSIBLE.contains(length)).and_then(|length| u32::try_from(length).ok())
    }

    /// The text of a special token by the name that the file gives it, such as `eos_token`.
    pub(crate) fn special(&self, name: &str) -> Option<&str> {
        let value = self.others.get(name)?;
        value.as_str().or_else(|| value.get("content")?.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> TokenizerConfig {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn only_a_plausible_length_counts() {
        for (text, most) in [
            ("{}", None),
            (r#"{"model_max_length": 4096}"#, Some(4096)),
            (r#"{"model_max_length": 1000000000000000019884624838656}"#, None),
            (r#"{"model_max_length": 1e30}"#, None),
            (r#"{"model_max_length": 0}"#, None),
            (r#"{"model_max_length": null}"#, None),
        ] {
            assert_eq!(read(text).most_positions(), most, "{text}");
        }
    }

    #[test]
    fn special_tokens_are_texts_or_objects() {
        let config =
            read(r#"{"bos_token": "<s>", "eos_token": {"content": "</s>", "special": true}, "unk_token": null}"#);
        assert_eq!(config.special("bos_token"), Some("<s>"));
        assert_eq!(config.special("eos_token"), Some("</s>"));
        assert_eq!((config.special("unk_token"), config.special("pad_token")), (None, None));
    }
}
