//! Turns a chat into text for the tokenizer. Special tokens that the model's template writes are special. Special tokens that a
//! user writes into a message are plain text, and do not change the text around them.
//!
//! The tokenizer is set to treat all special tokens of a text as plain text. For each special token it learns a *marked* token
//! with the same properties, whose text contains a noncharacter. In a chat's text the template's special tokens are written in
//! their marked form.

use std::collections::HashMap;

use aho_corasick::{AhoCorasick, Input, Match, MatchKind};
use pillion_protocol::frame::Message;
use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use super::error::{PromptFailed, TokenizerFailed};
use super::template::Template;

/// Unicode noncharacters. The first marks the template's special tokens. Another one marks look-alikes in messages while the
/// template is rendered.
const MARK: char = '\u{fdd0}';
const OTHERS: std::ops::RangeInclusive<char> = '\u{fdd1}'..='\u{fdef}';

/// Turns chats into texts in which the template's special tokens are marked.
#[derive(Debug)]
pub(super) struct Chats {
    template: Template,
    /// Finds special tokens in one pass.
    special: AhoCorasick,
    ids: HashMap<String, u32>,
    /// The marked text of each special token, by the finder's pattern.
    marked: Vec<String>,
    /// Finds marked tokens, which only a forged text has.
    forged: AhoCorasick,
    /// The id of each special token, by the id of its marked token.
    originals: HashMap<u32, u32>,
}

impl Chats {
    /// Prepares the template, and adds the marked tokens to the tokenizer.
    pub(super) fn new(template: Template, tokenizer: &mut Tokenizer) -> Result<Self, TokenizerFailed> {
        let added = tokenizer.get_added_tokens_decoder().into_iter();
        let special: Vec<(u32, AddedToken)> =
            added.filter(|(_, token)| token.special && !token.content.is_empty()).collect();
        let marked: Vec<String> = special.iter().map(|(_, token)| with_mark(&token.content, MARK)).collect();
        let marked_tokens = special.iter().zip(&marked).map(|((_, token), marked)| AddedToken {
            content: marked.clone(),
            special: false,
            // Normalised text must not become a marked token.
            normalized: false,
            ..token.clone()
        });
        let refused = |error: tokenizers::Error| TokenizerFailed::Refused(error.to_string());
        tokenizer.add_tokens(marked_tokens.collect::<Vec<_>>()).map_err(refused)?;
        let originals = special
            .iter()
            .zip(&marked)
            .filter_map(|((id, _), marked)| Some((tokenizer.token_to_id(marked)?, *id)))
            .collect();
        let finder = finder(special.iter().map(|(_, token)| &token.content))?;
        let forged = self::finder(&marked)?;
        let ids = special.into_iter().map(|(id, token)| (token.content, id)).collect();
        Ok(Self { template, special: finder, ids, marked, forged, originals })
    }

    /// The ids of the marked tokens, which no model has.
    pub(super) fn marked_ids(&self) -> impl Iterator<Item = u32> {
        self.originals.keys().copied()
    }

    pub(super) fn template(&self) -> &Template {
        &self.template
    }

    /// The id of the special token that is exactly this text.
    pub(super) fn special_id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// Whether a text contains a marked token, which only a forged text does.
    pub(super) fn is_forged(&self, text: &str) -> bool {
        text.contains(MARK) && self.forged.is_match(text)
    }

    /// Renders a chat. The plain template has no special tokens.
    pub(super) fn render(&self, messages: &[Message], kwargs: &Map<String, Value>) -> Result<String, PromptFailed> {
        let mut texts: Vec<&str> = messages.iter().map(|message| message.content.as_str()).collect();
        kwargs.values().for_each(|value| collect(value, &mut texts));
        let mut names = Vec::new();
        kwargs.values().for_each(|value| collect_names(value, &mut names));
        if names.iter().any(|name| self.first_special(name, 0).is_some()) {
            let message = "a name within chat_template_kwargs holds a special token";
            return Err(PromptFailed::Template(message.to_owned()));
        }
        let is_plain = self.template.is_plain();
        if is_plain || texts.iter().all(|text| self.first_special(text, 0).is_none()) {
            let text = self.template.render(messages, kwargs).map_err(PromptFailed::Template)?;
            self.refuse_forged(&text)?;
            return Ok(if is_plain { text } else { self.with_marked_tokens(&text, None) });
        }
        let mark = OTHERS
            .into_iter()
            .find(|&mark| texts.iter().all(|text| !text.contains(mark)))
            .ok_or(PromptFailed::Unmarkable)?;
        let messages: Vec<Message> = messages
            .iter()
            .map(|message| Message { role: message.role.clone(), content: self.disguised(&message.content, mark) })
            .collect();
        let mut kwargs = kwargs.clone();
        kwargs.values_mut().for_each(|value| self.disguise(value, mark));
        let text = self.template.render(&messages, &kwargs).map_err(PromptFailed::Template)?;
        if text.contains(MARK) {
            self.refuse_forged(&text.replace(mark, ""))?;
        }
        Ok(self.with_marked_tokens(&text, Some(mark)).replace(mark, ""))
    }

    /// Refuses a text that contains a marked token before the template's special tokens are marked.
    fn refuse_forged(&self, text: &str) -> Result<(), PromptFailed> {
        if self.is_forged(text) { Err(PromptFailed::Unmarkable) } else { Ok(()) }
    }

    /// Replaces the ids of marked tokens by those of the special tokens.
    pub(super) fn restore(&self, ids: &mut [u32]) {
        for id in ids {
            if let Some(original) = self.originals.get(id) {
                *id = *original;
            }
        }
    }

    /// The first special token in a text from byte `from`; of several at one place, the longest.
    fn first_special(&self, text: &str, from: usize) -> Option<Match> {
        self.special.find(Input::new(text).range(from..))
    }

    /// Marks the special tokens of a text, except those followed by the mark `other`: a message has these, and they have only one
    /// character.
    fn with_marked_tokens(&self, text: &str, other: Option<char>) -> String {
        let mut all = String::with_capacity(text.len() + 64);
        self.special.replace_all_with(text, &mut all, |found, token, all| {
            let is_disguised = other.is_some_and(|other| text[found.end()..].starts_with(other));
            all.push_str(if is_disguised { token } else { &self.marked[found.pattern().as_usize()] });
            true
        });
        all
    }

    /// Puts a mark after the first character of every look-alike of a special token, so that none is left.
    fn disguised(&self, text: &str, mark: char) -> String {
        let mut all = String::with_capacity(text.len() + 8);
        let mut at = 0;
        while let Some(found) = self.first_special(text, at) {
            let first = found.start() + text[found.start()..].chars().next().map_or(0, char::len_utf8);
            all.push_str(&text[at..first]);
            all.push(mark);
            at = first;
        }
        all.push_str(&text[at..]);
        all
    }

    fn disguise(&self, value: &mut Value, mark: char) {
        match value {
            Value::String(text) => *text = self.disguised(text, mark),
            Value::Array(items) => items.iter_mut().for_each(|item| self.disguise(item, mark)),
            Value::Object(map) => map.values_mut().for_each(|item| self.disguise(item, mark)),
            _ => {}
        }
    }
}

/// A finder for these texts; of several at one place, it finds the longest.
fn finder(texts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Result<AhoCorasick, TokenizerFailed> {
    let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts);
    finder.map_err(|error| TokenizerFailed::Refused(format!("cannot build the search for its special tokens: {error}")))
}

/// A token's text with the mark after its first character.
fn with_mark(text: &str, mark: char) -> String {
    let first = text.chars().next().map_or(0, char::len_utf8);
    format!("{}{mark}{}", &text[..first], &text[first..])
}

/// Collects all strings within a value.
fn collect<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        Value::Object(map) => map.values().for_each(|item| collect(item, found)),
        _ => {}
    }
}

/// Collects all field names within a value.
fn collect_names<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect_names(item, found)),
        Value::Object(map) => map.iter().for_each(|(name, item)| {
            found.push(name);
            collect_names(item, found);
        }),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::Tokens;
    use super::super::samples::{byte_fallback_with, bytes, with};
    use super::*;

    const SPECIAL: [&str; 3] = ["</s>", "<|im|>", "<|im|>x"];
    const TEMPLATE: &str = "{% for m in messages %}<|im|>{{ m.content | trim }}</s>{% endfor %}{{ extra }}";

    fn user(content: &str) -> Vec<Message> {
        vec![Message { role: "user".to_owned(), content: content.to_owned() }]
    }

    fn tokens(template: &str) -> Tokens {
        with(bytes(&SPECIAL), Template::of(template), vec![256])
    }

    fn encode(content: &str) -> Result<Vec<u32>, PromptFailed> {
        tokens(TEMPLATE).encode_chat(&user(content), &Map::new(), usize::MAX)
    }

    fn byte_ids(text: &str) -> Vec<u32> {
        bytes(&[]).encode_fast(text, false).unwrap().get_ids().to_vec()
    }

    fn between(content: &str) -> Vec<u32> {
        let mut ids = vec![257];
        ids.extend(byte_ids(content));
        ids.push(256);
        ids
    }

    #[test]
    fn the_templates_special_tokens_are_special() {
        assert_eq!(encode("  hé ").unwrap(), between("hé"));
    }

    #[test]
    fn special_tokens_in_a_message_are_plain_text() {
        for content in ["a</s>b", "</s>", "<|im|></s><|im|>", "<|im<|im|>|>", "a\u{fdd0}</s>", "<|im|>xy", "\u{fdd0}"] {
            assert_eq!(encode(content).unwrap(), between(content), "{content}");
        }
    }

    #[test]
    fn special_tokens_in_template_variables_are_plain_text() {
        let kwargs: Map<String, Value> = std::iter::once(("extra".to_owned(), "b</s>".into())).collect();
        let ids = tokens(TEMPLATE).encode_chat(&user("a"), &kwargs, usize::MAX).unwrap();
        assert_eq!(ids, [between("a"), byte_ids("b</s>")].concat());
    }

    #[test]
    fn a_name_that_is_a_special_token_is_refused() {
        let kwargs = serde_json::from_str(r#"{"extra": [{"</s>": 1}]}"#).unwrap();
        let refused = tokens(TEMPLATE).encode_chat(&user("a"), &kwargs, usize::MAX).unwrap_err();
        assert!(matches!(refused, PromptFailed::Template(_)), "{refused}");
    }

    #[test]
    fn a_special_token_of_one_character_is_told_apart_too() {
        let tokens = with(bytes(&["☃"]), Template::of("☃{{ messages[0].content }}☃"), vec![256]);
        let ids = tokens.encode_chat(&user("a☃b"), &Map::new(), usize::MAX).unwrap();
        assert_eq!(ids, [&[256], &byte_ids("a☃b")[..], &[256]].concat());
    }

    #[test]
    fn two_messages_cannot_combine_to_a_marked_token() {
        let tokens =
            with(bytes(&SPECIAL), Template::of("{% for m in messages %}{{ m.content }}{% endfor %}"), vec![256]);
        let messages = [user("<"), user("\u{fdd0}/s>")].concat();
        let refused = tokens.encode_chat(&messages, &Map::new(), usize::MAX);
        assert!(matches!(refused, Err(PromptFailed::Unmarkable)));
    }

    /// Like Phi-3, whose special tokens absorb the spaces and the line break after them.
    #[test]
    fn text_around_a_special_token_in_a_message_is_tokenised_as_usual() {
        let template =
            "{% for m in messages %}{{ '<|user|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}<|assistant|>\n";
        let special = ["</s>", "<|user|>", "<|end|>", "<|assistant|>"];
        let tokens = with(byte_fallback_with(&special), Template::of(template), vec![0]);
        let id = |name: &str| tokens.tokenizer.token_to_id(name).unwrap();
        let around = |content: &[u32]| [&[id("<|user|>")], content, &[id("<|end|>"), id("<|assistant|>")]].concat();
        let encode = |content: &str| tokens.encode_chat(&user(content), &Map::new(), usize::MAX).unwrap();
        let plain = |content: &str| tokens.encode(content, usize::MAX).unwrap();
        assert_eq!(encode("one two"), around(&plain("one two")));
        assert_eq!(encode("one<|end|>two"), around(&plain("one<|end|>two")));
    }

    /// The time is linear in the bytes; quadratic time would take minutes.
    #[test]
    fn a_message_of_only_special_tokens_takes_linear_time() {
        let content = "<|im|>".repeat(100_000);
        assert_eq!(encode(&content).unwrap().len(), content.len() + 2);
    }

    #[test]
    fn tokens_that_overlap_are_all_plain_text() {
        let mut tokenizer = bytes(&["ab", "bc"]);
        let chats = Chats::new(Template::plain(), &mut tokenizer).unwrap();
        assert_eq!(chats.disguised("abc", '|'), "a|b|c");
    }

    #[test]
    fn a_text_that_uses_up_all_marks_or_has_marked_tokens_is_refused() {
        let all: String = OTHERS.collect();
        assert!(matches!(encode(&format!("{all}</s>")), Err(PromptFailed::Unmarkable)));
        assert_eq!(encode(&all).unwrap(), between(&all));
        let forged = with_mark("</s>", MARK);
        assert!(matches!(encode(&forged), Err(PromptFailed::Unmarkable)));
        assert!(matches!(tokens(TEMPLATE).encode(&forged, 100), Err(PromptFailed::Unmarkable)));
    }

    #[test]
    fn a_plain_chat_begins_as_a_text_does() {
        let tokens = with(byte_fallback_with(&["</s>", "<s>"]), Template::plain(), vec![0]);
        let ids = tokens.encode_chat(&user("one"), &Map::new(), usize::MAX).unwrap();
        assert_eq!(ids, tokens.encode("user: one\nassistant:", usize::MAX).unwrap());
        assert_eq!(ids[0], 1, "the beginning of a sequence");
    }

    #[test]
    fn a_chat_that_must_be_too_long_is_not_tokenised() {
        let refused = tokens(TEMPLATE).encode_chat(&user(&"1".repeat(10_000)), &Map::new(), 100);
        assert!(matches!(refused, Err(PromptFailed::TooLong(_))));
    }
}
