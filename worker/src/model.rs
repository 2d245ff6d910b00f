//! A model directory: which files it must have, what they say, and whether they are fit to be served.
//!
//! `model.bin` (read here only for its table of variables), `config.json`, `vocabulary.json`, and beside them the
//! `tokenizer.json` that users bring with `--copy_files tokenizer.json`.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;

mod description;
mod fingerprint;
mod header;
mod unconverted;

pub use description::Description;
use header::Header;

/// Positions assumed of a model whose kind of position encoding (rotary, say) sets no limit.
const UNLIMITED_POSITIONS: u32 = 32_768;

/// What a decoder says it is in `model.bin`.
const DECODER: &str = "TransformerDecoderSpec";

/// Why a model cannot be served: one sentence that says which file and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct ModelError {
    /// The file or directory.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

impl ModelError {
    pub(crate) fn new(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self { path: path.into(), problem: problem.into() }
    }
}

/// What was found in a model directory.
#[derive(Clone, Debug)]
pub struct Model {
    /// The directory.
    pub directory: PathBuf,
    /// Positions of the model: the most tokens that prompt and answer may have together.
    pub positions: u32,
    /// Whether the model itself sets that limit.
    pub positions_known: bool,
    /// The tokens by their ids.
    pub vocabulary: Vec<String>,
    /// The token at which a sequence ends.
    pub eos: u32,
    /// Hexadecimal digest of the model and its tokenizer.
    pub fingerprint: String,
    /// For people.
    pub description: Description,
}

#[derive(Deserialize)]
struct Special {
    unk_token: String,
    #[serde(rename = "bos_token")]
    _bos: String,
    eos_token: String,
}

impl Model {
    /// Reads a model directory and checks all of it but the tokenizer.
    ///
    /// # Errors
    /// A file is missing or cut short, or the model is no decoder.
    pub fn open(directory: &Path) -> Result<Self, ModelError> {
        if let Some(problem) = unconverted::explain(directory) {
            return Err(ModelError::new(directory, problem));
        }
        let model_bin = directory.join("model.bin");
        let header = Header::read(&mut BufReader::new(open(&model_bin)?))
            .map_err(|problem| ModelError::new(&model_bin, problem.to_string()))?;
        if header.spec != DECODER {
            return Err(ModelError::new(&model_bin, no_decoder(&header.spec)));
        }
        let special: Special = json(&directory.join("config.json"))?;
        let vocabulary: Vec<String> = json(&directory.join("vocabulary.json"))?;
        open(&directory.join("tokenizer.json"))?;
        if let Some(rows) = header.shape("decoder/projection/weight").and_then(|shape| shape.first())
            && usize::try_from(*rows).ok() != Some(vocabulary.len())
        {
            let problem = format!("has {} entries, but model.bin chooses among {rows} tokens", vocabulary.len());
            return Err(ModelError::new(directory.join("vocabulary.json"), problem));
        }
        let id = |token: &str| vocabulary.iter().position(|entry| entry == token).and_then(|id| u32::try_from(id).ok());
        let eos = id(&special.eos_token).or_else(|| id(&special.unk_token)).ok_or_else(|| {
            let problem = format!("its eos_token {:?} is not in vocabulary.json", special.eos_token);
            ModelError::new(directory.join("config.json"), problem)
        })?;
        let positions = header.shape("decoder/position_encodings/encodings").and_then(|shape| shape.first()).copied();
        let fingerprint = fingerprint::of(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            positions: positions.unwrap_or(UNLIMITED_POSITIONS),
            positions_known: positions.is_some(),
            vocabulary,
            eos,
            fingerprint,
            description: Description::of(&header),
        })
    }
}

fn no_decoder(spec: &str) -> String {
    let what = match spec {
        "" | "TransformerSpec" | "TransformerBase" | "TransformerBig" => "an encoder-decoder (translation) model",
        "WhisperSpec" => "a speech recognition model",
        "TransformerEncoderSpec" => "an encoder",
        "Wav2Vec2Spec" | "Wav2Vec2BertSpec" => "a speech encoder",
        _ => "a model of another kind",
    };
    format!("holds {what} ({spec:?}); only decoders ({DECODER:?}) can be served")
}

fn missing(error: &io::Error, what: &str) -> String {
    match error.kind() {
        io::ErrorKind::NotFound if what == "tokenizer.json" => {
            "is missing; convert the model with --copy_files tokenizer.json, or copy the file here".to_owned()
        }
        io::ErrorKind::NotFound => "does not exist".to_owned(),
        _ => format!("cannot be read: {error}"),
    }
}

fn open(path: &Path) -> Result<File, ModelError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    File::open(path).map_err(|error| ModelError::new(path, missing(&error, &name)))
}

fn json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, ModelError> {
    let reader = BufReader::new(open(path)?);
    serde_json::from_reader(reader).map_err(|error| ModelError::new(path, format!("is not as it should be: {error}")))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;

    /// A directory that goes away with the value.
    pub(crate) struct Scratch(pub(crate) PathBuf);

    impl Scratch {
        pub(crate) fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("pillion-worker-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn write(scratch: &Scratch, spec: &str) {
        let table = header::tests::table(
            spec,
            &[("decoder/position_encodings/encodings", &[12, 4]), ("decoder/embeddings/weight", &[3, 4])],
            &[("decoder/projection/weight", "decoder/embeddings/weight")],
        );
        let special = r#"{"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}"#;
        fs::write(scratch.0.join("model.bin"), table).unwrap();
        fs::write(scratch.0.join("config.json"), special).unwrap();
        fs::write(scratch.0.join("vocabulary.json"), r#"["<unk>", "</s>", "a"]"#).unwrap();
        fs::write(scratch.0.join("tokenizer.json"), "{}").unwrap();
    }

    #[test]
    fn a_decoder_tells_its_limits() {
        let scratch = Scratch::new("limits");
        write(&scratch, DECODER);
        let model = Model::open(&scratch.0).unwrap();
        assert_eq!((model.positions, model.eos, model.vocabulary.len()), (12, 1, 3));
        assert_eq!(model.fingerprint.len(), 64);
    }

    #[test]
    fn every_missing_file_is_named() {
        for file in ["model.bin", "config.json", "vocabulary.json", "tokenizer.json"] {
            let scratch = Scratch::new(&format!("missing-{file}"));
            write(&scratch, DECODER);
            fs::remove_file(scratch.0.join(file)).unwrap();
            let error = Model::open(&scratch.0).unwrap_err();
            assert_eq!(error.path, scratch.0.join(file));
        }
        let nowhere = Model::open(Path::new("/no/such/model")).unwrap_err();
        assert_eq!(nowhere.to_string(), "/no/such/model: does not exist");
    }

    #[test]
    fn a_translation_model_is_refused() {
        let scratch = Scratch::new("translation");
        write(&scratch, "TransformerSpec");
        let error = Model::open(&scratch.0).unwrap_err().to_string();
        assert!(error.contains("holds an encoder-decoder (translation) model"), "{error}");
    }

    #[test]
    fn a_vocabulary_of_another_size_than_the_models_is_refused() {
        let scratch = Scratch::new("sizes");
        write(&scratch, DECODER);
        fs::write(scratch.0.join("vocabulary.json"), r#"["<unk>", "</s>"]"#).unwrap();
        let error = Model::open(&scratch.0).unwrap_err();
        assert_eq!(error.problem, "has 2 entries, but model.bin chooses among 3 tokens");
    }

    #[test]
    fn the_fingerprint_changes_with_every_file() {
        let scratch = Scratch::new("fingerprint");
        write(&scratch, DECODER);
        let before = Model::open(&scratch.0).unwrap().fingerprint;
        fs::write(scratch.0.join("tokenizer.json"), "{ }").unwrap();
        assert_ne!(Model::open(&scratch.0).unwrap().fingerprint, before);
    }
}
