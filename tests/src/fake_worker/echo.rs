//! The rule by which the simulated worker answers.

use pillion_protocol::frame::{FinishReason, Prompt};

/// The words of a prompt; each counts as a token.
pub fn words(prompt: &Prompt) -> Vec<String> {
    match prompt {
        Prompt::Text(text) => text.split_whitespace().map(str::to_owned).collect(),
        Prompt::Ids(ids) => ids.iter().map(u32::to_string).collect(),
        Prompt::Chat(messages) => {
            messages.iter().flat_map(|said| said.content.split_whitespace().map(str::to_owned)).collect()
        }
    }
}

/// The `k`th token of the answer to `words` (not empty), with the space that stands before it. After the last word the
/// words begin anew, for members that must go on.
pub fn text(words: &[String], k: usize) -> String {
    let word = &words[words.len() - 1 - k % words.len()];
    if k == 0 { word.clone() } else { format!(" {word}") }
}

/// The `k`th token's id: a digest of its word (FNV-1a), so that a wrong id is seen as well as a wrong text.
pub fn id(words: &[String], k: usize) -> u32 {
    let word = &words[words.len() - 1 - k % words.len()];
    word.bytes().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Why the answer ends after `produced` tokens, if it does. Without limits in its way it has as many as the prompt.
pub fn ends(words: &[String], produced: usize, max: usize, min: usize) -> Option<FinishReason> {
    if produced >= max {
        Some(FinishReason::Length)
    } else {
        (produced >= words.len().max(min)).then_some(FinishReason::Stop)
    }
}

/// The whole answer to a text under these limits: what a client must get.
///
/// ```
/// use pillion_tests::fake_worker::echo;
/// assert_eq!(echo::expected("one two three", 10, 0), "three two one");
/// assert_eq!(echo::expected("one two three", 2, 0), "three two");
/// assert_eq!(echo::expected("one two", 10, 3), "two one two");
/// ```
pub fn expected(prompt: &str, max: usize, min: usize) -> String {
    let words = words(&Prompt::Text(prompt.to_owned()));
    (0..).take_while(|&k| ends(&words, k, max, min).is_none()).map(|k| text(&words, k)).collect()
}
