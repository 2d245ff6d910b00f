//! A model directory: its files, what they say, and whether the model can be served.
//!
//! The directory holds `model.bin` (only its table of variables is read here), `config.json`, `vocabulary.json` or
//! `vocabulary.txt`, and `tokenizer.json`, which the conversion copies with `--copy_files tokenizer.json`.

use std::collections::HashMap;
use std::io::BufReader;
use std::path::{Path, PathBuf};

mod description;
pub(crate) mod file;
mod fingerprint;
mod header;
mod special;
pub(crate) mod tokenizer_config;
mod unconverted;
mod vocabulary;

pub use description::Description;
pub use file::ModelError;
use file::open;
use header::Header;
use special::Special;
use tokenizer_config::TokenizerConfig;

/// The assumed positions of a model if neither its position encoding nor a file sets a limit, as with rotary encodings.
const UNLIMITED_POSITIONS: u32 = 32_768;

/// The name of a decoder's specification in `model.bin`.
const DECODER: &str = "TransformerDecoderSpec";

/// A model directory, read and checked.
#[derive(Clone, Debug)]
pub struct Model {
    /// The directory.
    pub directory: PathBuf,
    /// The most tokens that a prompt and its answer may have together.
    pub positions: u32,
    /// The source of that limit.
    pub positions_from: PositionsFrom,
    /// The tokens by their ids.
    pub vocabulary: Vec<String>,
    /// The tokens that end a sequence; at least one.
    pub ends: Vec<u32>,
    /// The fields of `tokenizer_config.json`.
    pub tokenizer_config: TokenizerConfig,
    /// Hexadecimal digest of the model and its tokenizer.
    pub fingerprint: String,
    /// The model's shape and size.
    pub description: Description,
}

/// The source of a model's limit of positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PositionsFrom {
    /// The model has a position encoding of this length.
    Model,
    /// `model_max_length` of `tokenizer_config.json`.
    TokenizerConfig,
    /// `--max-positions`.
    Flag,
    /// No file sets a limit, so a number is assumed.
    Nothing,
}

impl std::fmt::Display for PositionsFrom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Model => "set by the model",
            Self::TokenizerConfig => "model_max_length of tokenizer_config.json",
            Self::Flag => "set by --max-positions",
            Self::Nothing => "assumed, since no file sets a limit",
        })
    }
}

/// Settings of the user that replace or extend those of the model's files.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// More tokens that end a sequence.
    pub end_tokens: Vec<String>,
    /// The most positions.
    pub max_positions: Option<u32>,
}

impl Model {
    /// Reads a model directory and checks everything except the tokenizer.
    ///
    /// # Errors
    /// A file is missing or cut short, or the model is not a decoder.
    pub fn open(directory: &Path, overrides: &Overrides) -> Result<Self, ModelError> {
        if let Some(problem) = unconverted::explain(directory) {
            return Err(ModelError::new(directory, problem));
        }
        let model_bin = directory.join("model.bin");
        let header = Header::read(&mut BufReader::new(open(&model_bin)?))
            .map_err(|problem| ModelError::new(&model_bin, problem.to_string()))?;
        if header.spec != DECODER {
            return Err(ModelError::new(&model_bin, not_a_decoder(&header.spec)));
        }
        let special = Special::read(directory, header.version < 6)?;
        let vocabulary = vocabulary::read(directory)?;
        open(&directory.join("tokenizer.json"))?;
        if let Some(rows) = header.shape("decoder/projection/weight").and_then(|shape| shape.first())
            && usize::try_from(*rows).ok() != Some(vocabulary.len())
        {
            let problem = format!("has {} entries, but model.bin chooses among {rows} tokens", vocabulary.len());
            return Err(ModelError::new(vocabulary::path(directory), problem));
        }
        let tokenizer_config = TokenizerConfig::read(directory)?;
        // If two ids have the same text, the text means the first.
        let mut ids = HashMap::with_capacity(vocabulary.len());
        for (id, token) in (0..).zip(&vocabulary) {
            ids.entry(token.as_str()).or_insert(id);
        }
        let ends = special::ends(directory, &special, &tokenizer_config, &overrides.end_tokens, &ids)?;
        let own = header.shape("decoder/position_encodings/encodings").and_then(|shape| shape.first()).copied();
        let (positions, positions_from) = positions(own, tokenizer_config.most_positions(), overrides.max_positions);
        let fingerprint = fingerprint::of(directory, header.digest, &ends, positions)?;
        Ok(Self {
            directory: directory.to_owned(),
            positions,
            positions_from,
            ends,
            vocabulary,
            tokenizer_config,
            fingerprint,
            description: Description::of(&header),
        })
    }
}

/// The most positions and their source. The model's own limit is never exceeded; below it the user's number comes before that of
/// the model's files.
fn positions(own: Option<u32>, configured: Option<u32>, wanted: Option<u32>) -> (u32, PositionsFrom) {
    match (own, configured, wanted) {
        (Some(own), _, Some(wanted)) if wanted < own => (wanted, PositionsFrom::Flag),
        (Some(own), _, _) => (own, PositionsFrom::Model),
        (None, _, Some(wanted)) => (wanted, PositionsFrom::Flag),
        (None, Some(configured), None) => (configured, PositionsFrom::TokenizerConfig),
        (None, None, None) => (UNLIMITED_POSITIONS, PositionsFrom::Nothing),
    }
}

fn not_a_decoder(spec: &str) -> String {
    let what = match spec {
        "" | "TransformerSpec" | "TransformerBase" | "TransformerBig" => "an encoder-decoder (translation) model",
        "WhisperSpec" => "a speech recognition model",
        "TransformerEncoderSpec" => "an encoder",
        "Wav2Vec2Spec" | "Wav2Vec2BertSpec" => "a speech encoder",
        _ => "a model of another kind",
    };
    format!("holds {what} ({spec:?}); only decoders ({DECODER:?}) can be served")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::file::tests::Scratch;
    use super::*;

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

    fn open_it(directory: &Path) -> Result<Model, ModelError> {
        Model::open(directory, &Overrides::default())
    }

    #[test]
    fn positions_come_from_the_model_the_user_or_a_file() {
        use PositionsFrom::{Flag, Model, Nothing, TokenizerConfig};
        assert_eq!(positions(Some(12), Some(5), None), (12, Model));
        assert_eq!(positions(Some(12), None, Some(10)), (10, Flag));
        assert_eq!(positions(Some(12), None, Some(20)), (12, Model));
        assert_eq!(positions(None, Some(4096), None), (4096, TokenizerConfig));
        assert_eq!(positions(None, Some(4096), Some(100_000)), (100_000, Flag));
        assert_eq!(positions(None, None, None), (UNLIMITED_POSITIONS, Nothing));
    }

    #[test]
    fn a_decoder_has_its_limits() {
        let scratch = Scratch::new("limits");
        write(&scratch, DECODER);
        let model = open_it(&scratch.0).unwrap();
        assert_eq!((model.positions, &*model.ends, model.vocabulary.len()), (12, &[1][..], 3));
        assert_eq!(model.fingerprint.len(), 64);
    }

    #[test]
    fn every_missing_file_is_named() {
        for file in ["model.bin", "config.json", "vocabulary.json", "tokenizer.json"] {
            let scratch = Scratch::new(&format!("missing-{file}"));
            write(&scratch, DECODER);
            fs::remove_file(scratch.0.join(file)).unwrap();
            let error = open_it(&scratch.0).unwrap_err();
            assert_eq!(error.path, scratch.0.join(file));
        }
        let nowhere = open_it(Path::new("/no/such/model")).unwrap_err();
        assert_eq!(nowhere.to_string(), "/no/such/model: does not exist");
    }

    #[test]
    fn a_translation_model_is_refused() {
        let scratch = Scratch::new("translation");
        write(&scratch, "TransformerSpec");
        let error = open_it(&scratch.0).unwrap_err().to_string();
        assert!(error.contains("holds an encoder-decoder (translation) model"), "{error}");
    }

    #[test]
    fn a_vocabulary_of_another_size_than_the_models_is_refused() {
        let scratch = Scratch::new("sizes");
        write(&scratch, DECODER);
        fs::write(scratch.0.join("vocabulary.json"), r#"["<unk>", "</s>"]"#).unwrap();
        let error = open_it(&scratch.0).unwrap_err();
        assert_eq!(error.problem, "has 2 entries, but model.bin chooses among 3 tokens");
    }

    #[test]
    fn the_fingerprint_changes_with_every_file() {
        let scratch = Scratch::new("fingerprint");
        write(&scratch, DECODER);
        let before = open_it(&scratch.0).unwrap().fingerprint;
        fs::write(scratch.0.join("tokenizer.json"), "{ }").unwrap();
        assert_ne!(open_it(&scratch.0).unwrap().fingerprint, before);
    }
}
