//! Recognises what `--model` names if it is not a converted model, and explains how to convert it.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;

/// The field by which a Hugging Face model is recognised in its `config.json`.
#[derive(Deserialize)]
struct HuggingFace {
    model_type: String,
}

/// Explains why a path is not a converted model. `None` if the path may be one.
pub(super) fn explain(path: &Path) -> Option<String> {
    let gguf = "which CTranslate2 does not read; convert the Hugging Face model that it was made from: \
                pillion convert SOURCE DIR";
    match path.metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound && is_hub_name(path) => {
            let name = path.display();
            Some(format!(
                "does not exist; if it is a model's name on the hub, convert it first: pillion convert {name} DIR"
            ))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Some("does not exist".to_owned()),
        Err(error) => Some(format!("cannot be read: {error}")),
        Ok(found) if !found.is_dir() => Some(match path.extension() {
            Some(kind) if kind == "gguf" => format!("is a GGUF file, {gguf}"),
            _ => "is not a directory; --model takes the converted model's directory".to_owned(),
        }),
        Ok(_) if path.join("model.bin").exists() => None,
        Ok(_) => {
            let config = fs::read(path.join("config.json")).ok();
            if let Some(model) = config.and_then(|text| serde_json::from_slice::<HuggingFace>(&text).ok()) {
                let (kind, place) = (model.model_type, path.display());
                return Some(format!(
                    "holds a Hugging Face model of type {kind:?} that is not converted yet: pillion convert {place} DIR"
                ));
            }
            let mut files = fs::read_dir(path).ok()?.flatten();
            let holds_gguf = files.any(|file| file.path().extension().is_some_and(|kind| kind == "gguf"));
            holds_gguf.then(|| format!("holds GGUF files, {gguf}"))
        }
    }
}

/// Whether a path looks like a model's name on the hub, such as `facebook/opt-125m`.
fn is_hub_name(path: &Path) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|first: char| first.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    path.to_str().and_then(|name| name.split_once('/')).is_some_and(|(owner, name)| is_part(owner) && is_part(name))
}

#[cfg(test)]
mod tests {
    use super::super::file::tests::Scratch;
    use super::*;

    #[test]
    fn the_error_says_how_to_convert_what_the_user_has() {
        let scratch = Scratch::new("unconverted");
        let explained = |path: &Path| explain(path).unwrap_or_default();
        assert!(explained(Path::new("facebook/opt-125m")).ends_with("pillion convert facebook/opt-125m DIR"));
        assert_eq!(explained(Path::new("/no/such/model")), "does not exist");
        assert_eq!(explained(&scratch.0), "");
        let file = scratch.0.join("model.gguf");
        fs::write(&file, "GGUF").unwrap();
        assert!(explained(&file).starts_with("is a GGUF file"), "{}", explained(&file));
        assert!(explained(&scratch.0).starts_with("holds GGUF files"), "{}", explained(&scratch.0));
        fs::write(scratch.0.join("config.json"), r#"{"model_type": "opt"}"#).unwrap();
        assert!(
            explained(&scratch.0).starts_with("holds a Hugging Face model of type \"opt\""),
            "{}",
            explained(&scratch.0)
        );
        fs::write(scratch.0.join("model.bin"), "").unwrap();
        assert_eq!(explain(&scratch.0), None);
        assert!(explained(&scratch.0.join("model.bin")).starts_with("is not a directory"));
    }
}
