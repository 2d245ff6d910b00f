//! A chat into token ids. The special tokens that the model's template writes are special; those that somebody wrote into
//! a message are plain text.

use std::sync::OnceLock;

use aho_corasick::{AhoCorasick, Input, Match, MatchKind};
use pillion_protocol::frame::Message;
use tokenizers::Tokenizer;

use super::TokenizerFailed;
use super::template::Template;

/// Characters that mean nothing and never will (Unicode, noncharacters): one of them is put into what only looks like a
/// special token.
const MARKS: std::ops::RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

/// What turns chats into ids.
#[derive(Debug)]
pub(super) struct Chats {
    template: Template,
    /// Finds special tokens, in one pass however many there are.
    special: AhoCorasick,
    /// Their ids, by the finder's patterns.
    ids: Vec<u32>,
    /// The tokenizer that takes special tokens for what they are; made when the first chat comes.
    reading: OnceLock<Tokenizer>,
}

/// Why a chat cannot be turned into ids.
#[derive(Debug, thiserror::Error)]
pub enum ChatFailed {
    /// The template refuses it, or cannot be filled in with it.
    #[error("the model's chat template does not take these messages: {0}")]
    Template(String),
    /// It holds every character that could have told its special tokens from the template's.
    #[error("the messages hold special tokens, and all of the noncharacters U+FDD0 to U+FDEF")]
    Unmarkable,
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerFailed),
}

impl Chats {
    /// With this template, for this tokenizer.
    pub(super) fn new(template: Template, tokenizer: &Tokenizer) -> Result<Self, TokenizerFailed> {
        let added = tokenizer.get_added_tokens_decoder().into_iter();
        let special = added.filter(|(_, token)| token.special && !token.content.is_empty());
        let (ids, tokens): (Vec<u32>, Vec<String>) = special.map(|(id, token)| (id, token.content)).unzip();
        let special = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens)
            .map_err(|error| TokenizerFailed(format!("its special tokens cannot be looked for: {error}")))?;
        Ok(Self { template, special, ids, reading: OnceLock::new() })
    }

    /// The file that the template was in; none for the plain one.
    pub(super) fn template_file(&self) -> Option<&'static str> {
        self.template.file()
    }

    /// The ids of a chat. `plain` takes special tokens for plain text.
    pub(super) fn encode(&self, messages: &[Message], plain: &Tokenizer) -> Result<Vec<u32>, ChatFailed> {
        if messages.iter().all(|message| self.first_special(&message.content, 0).is_none()) {
            let text = self.template.render(messages).map_err(ChatFailed::Template)?;
            let reading = self.reading.get_or_init(|| {
                let mut reading = plain.clone();
                reading.set_encode_special_tokens(false);
                reading
            });
            return Ok(ids(reading, &text)?);
        }
        let mark = MARKS
            .into_iter()
            .find(|&mark| messages.iter().all(|message| !message.content.contains(mark)))
            .ok_or(ChatFailed::Unmarkable)?;
        let marked: Vec<Message> = messages
            .iter()
            .map(|message| Message { role: message.role.clone(), content: self.marked(&message.content, mark) })
            .collect();
        let text = self.template.render(&marked).map_err(ChatFailed::Template)?;
        let mut all = Vec::new();
        let mut at = 0;
        loop {
            let found = self.first_special(&text, at);
            let piece = text[at..found.map_or(text.len(), |found| found.start())].replace(mark, "");
            if !piece.is_empty() {
                all.extend(ids(plain, &piece)?);
            }
            let Some(found) = found else { return Ok(all) };
            all.push(self.ids[found.pattern().as_usize()]);
            at = found.end();
        }
    }

    /// The first special token in a text from there on; of several at one place, the longest.
    fn first_special(&self, text: &str, from: usize) -> Option<Match> {
        self.special.find(Input::new(text).range(from..))
    }

    /// The text with a mark behind the first character of whatever looks like a special token, so that nothing does.
    fn marked(&self, text: &str, mark: char) -> String {
        let mut marked = String::with_capacity(text.len() + 8);
        let mut at = 0;
        while let Some(found) = self.first_special(text, at) {
            let first = found.start() + text[found.start()..].chars().next().map_or(0, char::len_utf8);
            marked.push_str(&text[at..first]);
            marked.push(mark);
            at = first;
        }
        marked.push_str(&text[at..]);
        marked
    }
}

/// The template writes what begins a prompt, so the tokenizer adds nothing.
fn ids(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, TokenizerFailed> {
    let encoding = tokenizer.encode_fast(text, false).map_err(|error| TokenizerFailed(error.to_string()))?;
    Ok(encoding.get_ids().to_vec())
}

#[cfg(test)]
mod tests {
    use super::super::tests::bytes;
    use super::*;

    fn said(content: &str) -> Vec<Message> {
        vec![Message { role: "user".to_owned(), content: content.to_owned() }]
    }

    const SPECIAL: [&str; 3] = ["</s>", "<|im|>", "<|im|>x"];

    fn encode(messages: &[Message]) -> Result<Vec<u32>, ChatFailed> {
        let mut plain = bytes(&SPECIAL);
        plain.set_encode_special_tokens(true);
        let template = "{% for m in messages %}<|im|>{{ m.content | trim }}</s>{% endfor %}".to_owned();
        let template = Template::new(template, String::new(), String::new()).unwrap();
        Chats::new(template, &plain).unwrap().encode(messages, &plain)
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
        assert_eq!(encode(&said("  hé ")).unwrap(), between("hé"));
    }

    #[test]
    fn those_in_a_message_are_plain_text() {
        for content in ["a</s>b", "</s>", "<|im|></s><|im|>", "<|im<|im|>|>", "a\u{fdd0}</s>", "<|im|>xy"] {
            assert_eq!(encode(&said(content)).unwrap(), between(content), "{content}");
        }
    }

    /// As many steps as bytes, not as many as their square: this would take minutes.
    #[test]
    fn a_message_of_nothing_but_special_tokens_is_soon_read() {
        let content = "<|im|>".repeat(100_000);
        assert_eq!(encode(&said(&content)).unwrap().len(), content.len() + 2);
    }

    #[test]
    fn tokens_that_overlap_are_all_plain_text() {
        let tokenizer = bytes(&["ab", "bc"]);
        let chats = Chats::new(Template::plain(), &tokenizer).unwrap();
        assert_eq!(chats.marked("abc", '|'), "a|b|c");
    }

    #[test]
    fn a_message_that_leaves_no_mark_is_refused() {
        let all: String = MARKS.collect();
        assert!(matches!(encode(&said(&format!("{all}</s>"))), Err(ChatFailed::Unmarkable)));
        assert_eq!(encode(&said(&all)).unwrap(), between(&all));
    }
}
