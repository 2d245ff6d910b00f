//! What matters here of `tokenizer_config.json`, which models bring from where they were converted.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::file::{ModelError, optional_json};

/// The file's name.
pub(crate) const FILE: &str = "tokenizer_config.json";

/// The longest that a model may claim to take. Hugging Face writes 10³⁰ where nothing is known.
const SANE: std::ops::RangeInclusive<u64> = 16..=1 << 24;

/// The file's contents; nothing of it where there is no such file.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct TokenizerConfig {
    pub(crate) chat_template: Option<Templates>,
    #[serde(default, deserialize_with = "lenient")]
    model_max_length: Option<u64>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// One template, or several with names.
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

    /// Tokens that a prompt and its answer may have together, where the file says so in earnest.
    pub(crate) fn most_positions(&self) -> Option<u32> {
        self.model_max_length.filter(|length| SANE.contains(length)).and_then(|length| u32::try_from(length).ok())
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
    fn only_a_sane_length_counts() {
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
