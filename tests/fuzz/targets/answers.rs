//! Token ids as an engine may give them, with stop strings: what is sent piece by piece is the whole text up to the first
//! stop string, wherever the answer is broken off and taken up again.

#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use pillion_worker::model::{Model, Overrides};
use pillion_worker::tokens::{Answer, PromptKind, Tokens, whole};

#[derive(Arbitrary, Debug)]
struct Case {
    prompt: Vec<u16>,
    ids: Vec<u16>,
    /// Stop strings: cut from the text itself, from the first place for so many bytes, or made up.
    cut: Vec<(u8, u8)>,
    made_up: Vec<String>,
    broken_off: u8,
}

fn tokens() -> &'static Tokens {
    static TOKENS: OnceLock<Tokens> = OnceLock::new();
    TOKENS.get_or_init(|| {
        let builtin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/models/builtin");
        Tokens::load(&Model::open(&builtin, &Overrides::default()).expect("the built-in model")).expect("its tokenizer")
    })
}

/// The text up to the stop string that is complete first; of several complete at once, the longest.
fn expected(text: &str, stops: &[String]) -> String {
    let found = stops.iter().filter_map(|stop| text.find(stop.as_str()).map(|start| (start + stop.len(), start)));
    text[..found.min().map_or(text.len(), |(_, start)| start)].to_owned()
}

fuzz_target!(|case: Case| {
    let tokens = tokens();
    let decoder = tokens.decoder();
    let known =
        |ids: &[u16]| -> Vec<u32> { ids.iter().take(200).map(|&id| u32::from(id) % tokens.vocabulary()).collect() };
    let context = tokens.context(&known(&case.prompt), PromptKind::Ids).expect("ids of the vocabulary have a text");
    let ids = known(&case.ids);
    let text = whole(decoder, &context, &ids, 0).expect("ids of the vocabulary have a text");
    let mut stops = case.made_up;
    for (from, bytes) in case.cut {
        let from = usize::from(from).min(text.len());
        let to = (from + usize::from(bytes)).min(text.len());
        stops.extend(text.get(from..to).map(str::to_owned));
    }
    stops.retain(|stop| !stop.is_empty());
    stops.truncate(8);

    let mut sent = String::new();
    let mut answer = Answer::new(&context, stops.clone());
    let mut stopped_after = None;
    for (place, &id) in ids.iter().enumerate() {
        if answer.push(decoder, id, &mut sent).expect("a text") {
            stopped_after = Some(place + 1);
            break;
        }
    }
    if stopped_after.is_none() {
        answer.finish(decoder, &mut sent).expect("a text");
    }
    // Where an answer is stopped early, the text of what came until then is what counts.
    let seen = &ids[..stopped_after.unwrap_or(ids.len())];
    let all = whole(decoder, &context, seen, 0).expect("a text");
    assert_eq!(sent, expected(&all, &stops), "of {all:?} with {stops:?}");

    // Broken off and taken up elsewhere.
    let at = usize::from(case.broken_off).min(seen.len());
    let mut first = String::new();
    let mut answer = Answer::new(&context, stops.clone());
    let mut stopped = false;
    for &id in &seen[..at] {
        stopped = answer.push(decoder, id, &mut first).expect("a text");
    }
    if !stopped {
        let mut second = String::new();
        let sent_bytes = first.len() as u64;
        let (mut answer, mut stopped) =
            Answer::resume(decoder, &context, stops, &seen[..at], sent_bytes, &mut second).expect("a text");
        for &id in &seen[at..] {
            if stopped {
                break;
            }
            stopped = answer.push(decoder, id, &mut second).expect("a text");
        }
        if !stopped {
            answer.finish(decoder, &mut second).expect("a text");
        }
        assert_eq!(format!("{first}{second}"), sent);
    }
});
