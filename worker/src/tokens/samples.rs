//! Small tokenizers of every kind, for tests.

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::Tokens;
use super::template::Template;

/// Words for which every tokenizer has a token.
const WORDS: [&str; 5] = ["one", "two", "a", "b", "."];

fn built(parts: &Value) -> Tokenizer {
    let mut file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
    });
    for (name, value) in parts.as_object().unwrap() {
        file[name] = value.clone();
    }
    file.to_string().parse().unwrap()
}

fn special(first: usize, tokens: &[&str], rstrip: bool) -> Value {
    let added = tokens.iter().enumerate().map(|(nth, token)| {
        json!({"id": first + nth, "content": token, "single_word": false, "lstrip": false, "rstrip": rstrip,
               "normalized": false, "special": true})
    });
    added.collect()
}

fn bpe(vocabulary: &[String], parts: &Value) -> Value {
    let entries: Map<String, Value> =
        vocabulary.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let mut model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": false, "byte_fallback": false, "vocab": entries, "merges": [],
    });
    for (name, value) in parts.as_object().unwrap() {
        model[name] = value.clone();
    }
    model
}

fn owned(tokens: &[&str]) -> Vec<String> {
    tokens.iter().map(|&token| token.to_owned()).collect()
}

/// A tokenizer of single bytes, like GPT-2's without merges: ids 0 to 255 are the bytes in the order of their names, then come
/// the special tokens `extra`.
pub(crate) fn bytes(extra: &[&str]) -> Tokenizer {
    let mut alphabet: Vec<char> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let alphabet: Vec<String> = alphabet.into_iter().map(String::from).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    built(&json!({
        "added_tokens": special(256, extra, false), "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": bpe(&alphabet, &json!({})),
    }))
}

/// A tokenizer like Llama 2's with special tokens, the bytes and a few words. Its special tokens absorb the spaces after them,
/// like Phi-3's. If it has `<s>`, a text begins with it.
pub(crate) fn byte_fallback_with(extra: &[&str]) -> Tokenizer {
    let mut vocabulary = owned(extra);
    vocabulary.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let pieces = ["▁", "o", "n", "e", "t", "w", "a", "b", "on", "one", "▁one", "tw", "two", "▁two", "▁a", "ab"];
    vocabulary.extend(owned(&pieces));
    let merges = ["o n", "on e", "▁ one", "t w", "tw o", "▁ two", "▁ a", "a b"];
    let begins = extra.iter().position(|token| *token == "<s>").map(|id| {
        json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
               {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}},
               {"Sequence": {"id": "B", "type_id": 1}}],
               "special_tokens": {"<s>": {"id": "<s>", "ids": [id], "tokens": ["<s>"]}}})
    });
    built(&json!({
        "added_tokens": special(0, extra, true), "post_processor": begins,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": bpe(&vocabulary, &json!({"byte_fallback": true, "fuse_unk": true, "merges": merges})),
    }))
}

fn metaspace() -> Tokenizer {
    let space = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let pieces: Vec<Value> = ["<unk>", "</s>", "▁", "▁one", "▁two", "o", "n", "e", "t", "w", "a", "b", ".", "€"]
        .iter()
        .enumerate()
        .map(|(nth, piece)| json!([piece, -1.0 - f64::from(u32::try_from(nth).unwrap())]))
        .collect();
    built(&json!({
        "added_tokens": special(0, &["<unk>", "</s>"], false), "pre_tokenizer": space, "decoder": space,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": false},
    }))
}

fn word_piece() -> Tokenizer {
    let mut vocabulary = owned(&["[UNK]", "</s>", "##e", "##o", "##b", "t", "o", "on", "##n", "##w", "€"]);
    vocabulary.extend(owned(&WORDS));
    let entries: Map<String, Value> =
        vocabulary.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    built(&json!({
        "added_tokens": special(0, &["[UNK]", "</s>"], false), "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": entries},
    }))
}

/// A tokenizer like OpenAI's first one: the last piece of a word has a mark.
fn word_ends() -> Tokenizer {
    let mut vocabulary = owned(&["<unk>", "</s>", "o", "n", "e", "t", "w", "a", "b", "on", "tw"]);
    vocabulary.extend(["e", "o", "a", "b", ".", "€", "one", "two"].map(|piece| format!("{piece}</w>")));
    built(&json!({
        "added_tokens": special(0, &["<unk>", "</s>"], false), "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
        "model": bpe(&vocabulary, &json!({"unk_token": "<unk>", "end_of_word_suffix": "</w>",
                                          "merges": ["o n", "on e</w>", "t w", "tw o</w>"]})),
    }))
}

/// A tokenizer of words, without a decoder.
fn words() -> Tokenizer {
    let mut vocabulary = owned(&["[UNK]", "</s>"]);
    vocabulary.extend(owned(&WORDS));
    let entries: Map<String, Value> =
        vocabulary.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    built(&json!({
        "added_tokens": special(0, &["[UNK]", "</s>"], false), "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": entries},
    }))
}

pub(super) fn with(tokenizer: Tokenizer, template: Template, ends: Vec<u32>) -> Tokens {
    let vocabulary = u32::try_from(tokenizer.get_vocab_size(true)).unwrap();
    Tokens::new(tokenizer, template, ends, vocabulary).unwrap()
}

/// Single bytes, with "</s>" as the end of a sequence.
pub(crate) fn byte_tokens() -> Tokens {
    with(bytes(&["</s>"]), Template::plain(), vec![256])
}

/// A tokenizer like Llama 2's.
pub(crate) fn byte_fallback() -> Tokens {
    with(byte_fallback_with(&["</s>", "<s>"]), Template::plain(), vec![0])
}

/// A tokenizer whose decoder changes the text of earlier tokens.
pub(crate) fn shrinking() -> Tokens {
    let vocabulary = owned(&["</s>", "one", "two", "a", "b"]);
    let tokenizer = built(&json!({
        "added_tokens": special(0, &["</s>"], false),
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Fuse"}, {"type": "Replace", "pattern": {"String": "oneab"}, "content": ""}]},
        "model": bpe(&vocabulary, &json!({})),
    }));
    with(tokenizer, Template::plain(), vec![0])
}

/// A tokenizer whose pre-tokenizer panics, since the crate divides by its length of 0.
pub(crate) fn panicking() -> Tokens {
    let mut parts = json!({
        "pre_tokenizer": {"type": "FixedLength", "length": 0},
        "model": bpe(&owned(&["a"]), &json!({})),
    });
    parts["added_tokens"] = special(1, &["</s>"], false);
    with(built(&parts), Template::plain(), vec![1])
}

/// A tokenizer of every kind, with its name.
pub(crate) fn families() -> Vec<(&'static str, Tokens)> {
    let made = |tokenizer| with(tokenizer, Template::plain(), vec![1]);
    vec![
        ("byte-level", byte_tokens()),
        ("byte-fallback", byte_fallback()),
        ("Unigram, Metaspace", made(metaspace())),
        ("WordPiece", made(word_piece())),
        ("word ends", made(word_ends())),
        ("no decoder", made(words())),
    ]
}
