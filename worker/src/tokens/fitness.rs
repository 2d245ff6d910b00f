//! Checks that a tokenizer belongs to the model.
//!
//! The engine takes tokens as strings. Two ids with one string would become the same token, and a string that the vocabulary
//! lacks would silently become the unknown token.

use std::collections::HashMap;

use tokenizers::Tokenizer;

/// Returns what is wrong with a tokenizer for a vocabulary, if anything is.
///
/// An id that both have must be the same token in both. The vocabulary may have padding at its end, such as OPT's
/// `madeupword0000`. The tokenizer may have more tokens at its end for which the model has no rows, such as an added `<pad>`.
/// If the padding repeats a token, the engine takes the first of the two.
pub(super) fn check(vocabulary: &[String], tokenizer: &Tokenizer) -> Result<(), String> {
    let known = vocabulary.len() - padding(vocabulary, tokenizer);
    let mut seen = HashMap::with_capacity(known);
    for (id, token) in vocabulary[..known].iter().enumerate() {
        if let Some(before) = seen.insert(token, id) {
            return Err(format!(
                "cannot be used with this vocabulary.json, which has {token:?} twice, as id {before} and as id {id}"
            ));
        }
    }
    for (id, token) in vocabulary[..known].iter().enumerate() {
        match u32::try_from(id).ok().and_then(|id| tokenizer.id_to_token(id)) {
            Some(theirs) if theirs == *token => {}
            Some(theirs) => {
                return Err(format!(
                    "is not the model's: id {id} is {theirs:?} here, but {token:?} in vocabulary.json"
                ));
            }
            None => {
                return Err(format!("is not the model's: it has no id {id}, which is {token:?} in vocabulary.json"));
            }
        }
    }
    Ok(())
}

/// The number of entries at the vocabulary's end whose ids the tokenizer lacks.
fn padding(vocabulary: &[String], tokenizer: &Tokenizer) -> usize {
    let unknown = |(id, _): &(usize, &String)| u32::try_from(*id).is_ok_and(|id| tokenizer.id_to_token(id).is_none());
    vocabulary.iter().enumerate().rev().take_while(unknown).count()
}

#[cfg(test)]
mod tests {
    use super::super::samples::bytes;
    use super::*;

    fn vocabulary(tokenizer: &Tokenizer) -> Vec<String> {
        (0u32..).map_while(|id| tokenizer.id_to_token(id)).collect()
    }

    fn problem(vocabulary: &[String]) -> String {
        check(vocabulary, &bytes(&["</s>", "<pad>"])).unwrap_err()
    }

    #[test]
    fn the_same_tokens_fit_padded_or_not() {
        let tokenizer = bytes(&["</s>", "<pad>"]);
        let mut vocabulary = vocabulary(&tokenizer);
        assert_eq!(vocabulary.len(), 258);
        assert_eq!(check(&vocabulary, &tokenizer), Ok(()));
        vocabulary.extend(["madeupword0000".to_owned(), "madeupword0001".to_owned()]);
        assert_eq!(check(&vocabulary, &tokenizer), Ok(()));
    }

    #[test]
    fn a_tokenizer_may_have_tokens_that_the_model_has_no_rows_for() {
        let tokenizer = bytes(&["</s>", "<pad>"]);
        assert_eq!(check(&vocabulary(&tokenizer)[..257], &tokenizer), Ok(()));
    }

    #[test]
    fn padding_may_repeat_a_token_that_the_tokenizer_has() {
        let tokenizer = bytes(&["</s>", "<extra_id_0>"]);
        let mut vocabulary = vocabulary(&tokenizer);
        vocabulary.extend(["<extra_id_0>".to_owned(), "<extra_id_1>".to_owned()]);
        assert_eq!(check(&vocabulary, &tokenizer), Ok(()));
    }

    #[test]
    fn other_tokens_do_not_fit() {
        let good = vocabulary(&bytes(&["</s>", "<pad>"]));
        let mut swapped = good.clone();
        swapped.swap(256, 257);
        assert_eq!(problem(&swapped), "is not the model's: id 256 is \"</s>\" here, but \"<pad>\" in vocabulary.json");
        let mut twice = good.clone();
        twice[257] = "</s>".to_owned();
        assert!(problem(&twice).ends_with("which has \"</s>\" twice, as id 256 and as id 257"));
        let mut renamed = good;
        renamed[257] = "<other>".to_owned();
        assert!(problem(&renamed).starts_with("is not the model's: id 257 is"));
    }
}
