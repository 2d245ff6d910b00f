//! Tests of a member's answer, which does not depend on the other members of its batch.

use pillion_protocol::frame::FailureCode;

use super::*;

/// Serves one batch. Returns its outcome and the prompt lengths of the engine's calls.
fn serve(script: Script, options: Options, members: Vec<Member>) -> (Outcome, Vec<Vec<usize>>) {
    let script = Arc::new(script);
    let worker = worker(&script, 1);
    let mut outcome = None;
    play(&worker, async |mut proxy: Proxy| {
        proxy.expect_credit(1).await;
        let count = members.len();
        proxy.batch(7, options, members).await;
        outcome = Some(proxy.outcome(7, count).await);
    });
    (outcome.unwrap(), std::mem::take(&mut script.calls.lock().unwrap()))
}

#[test]
fn members_of_all_lengths_get_their_own_answers() {
    let members = vec![member("a", 3), member("xyAB", 2), member("0123456", 4), member("KLM", 1)];
    let (outcome, calls) = serve(Script::default(), Options::default(), members);
    assert_eq!(outcome.text, ["bcd", "CD", "789:", "N"]);
    assert_eq!(outcome.finished[2].prompt_tokens, 7);
    assert_eq!(reasons(&outcome), [3, 2, 4, 1].map(|tokens| (FinishReason::Length, tokens)));
    assert_eq!(calls, [vec![1], vec![3, 4, 7]]);
}

#[test]
fn a_batch_that_is_too_large_for_the_device_is_split_and_later_calls_stay_small() {
    let script = Script { memory: Some(30), ..Script::default() };
    let members: Vec<Member> = (0..8).map(|_| member("abcd", 6)).collect();
    let (outcome, calls) = serve(script, Options::default(), members);
    assert_eq!(outcome.text, vec!["efghij"; 8]);
    // Calls of 80 and of 40 tokens are too large. A call of 20 fits, and no later call is larger.
    let sizes: Vec<usize> = calls.iter().map(Vec::len).collect();
    assert_eq!(sizes, [8, 4, 2, 2, 2, 2]);
}

#[test]
fn a_member_that_is_too_large_for_the_device_fails_alone() {
    let script = Script { memory: Some(30), ..Script::default() };
    let members = vec![member("abcd", 6), member("abcd", 200), member("abcd", 6)];
    let (outcome, _) = serve(script, Options::default(), members);
    assert_eq!((&*outcome.text[0], &*outcome.text[2]), ("efghij", "efghij"));
    assert_eq!((outcome.failed[0].member, outcome.failed[0].code), (1, FailureCode::Engine));
    assert!(outcome.failed[0].message.contains("not enough memory"), "{:?}", outcome.failed);
}

/// The frames of an answer of four tokens that is not streamed, if every step is reported.
fn frames_of(options: Options, stop: Vec<String>) -> Vec<Frame> {
    let (script, gate) = Script::gated();
    let mut worker = worker(&Arc::default(), 1);
    worker.shared = Arc::new(Shared { held_back: Duration::ZERO, ..shared(1) });
    let engine: Arc<dyn Engine> = Arc::new(script);
    worker.engines = EnginePool::start(&engine, &worker.shared).unwrap();
    let mut frames = Vec::new();
    play(&worker, async |mut proxy: Proxy| {
        proxy.expect_credit(1).await;
        proxy.batch(1, options, vec![Member { stop, ..member("a", 4) }]).await;
        (0..4).for_each(|_| gate.send(()).unwrap());
        frames = proxy.outcome(1, 1).await.frames;
    });
    frames
}

/// The ids and the text of each TOKENS frame.
fn tokens_of(frames: &[Frame]) -> Vec<(Vec<u32>, String)> {
    let tokens = |frame: &Frame| match frame {
        Frame::Tokens(_, members) => Some((members[0].ids.clone(), members[0].text.clone())),
        _ => None,
    };
    frames.iter().filter_map(tokens).collect()
}

#[test]
fn a_member_that_is_not_streamed_is_reported_from_time_to_time_so_that_little_is_lost_with_the_worker() {
    let letter = |letter: char| vec![u32::from(letter) - 33];
    let none = String::new;
    let frames = frames_of(Options::default(), Vec::new());
    let last = (letter('e'), "bcde".to_owned());
    assert_eq!(tokens_of(&frames), [(letter('b'), none()), (letter('c'), none()), (letter('d'), none()), last]);
    // With stop strings, the text is made with each token.
    let frames = frames_of(Options::default(), vec!["~".into()]);
    assert_eq!(tokens_of(&frames).into_iter().map(|(_, text)| text).collect::<String>(), "bcde");
    assert_eq!(tokens_of(&frames).len(), 4);
    // With options that look back, another worker could not continue from a report.
    let looks_back = Options { repetition_penalty: 1.2, ..Options::default() };
    assert_eq!(tokens_of(&frames_of(looks_back, Vec::new())).len(), 1);
}

#[test]
fn a_sequence_ends_without_its_end_token() {
    let script = Script { ends: true, ..Script::default() };
    let (outcome, _) = serve(script, Options::default(), vec![member("aX{", 99)]);
    assert_eq!(outcome.text, ["|}~"]);
    assert_eq!(reasons(&outcome), [(FinishReason::Stop, 3)]);
}

#[test]
fn a_minimum_of_tokens_delays_the_end() {
    let script = Script { ends: true, ..Script::default() };
    let members = vec![Member { min_new_tokens: 5, ..member("aX{", 99) }, member("bX{", 99)];
    let (outcome, calls) = serve(script, Options::default(), members);
    assert_eq!(outcome.text, ["|}~~~", "|}~"]);
    assert_eq!(calls.len(), 2, "unequal minimums share no call");
}

#[test]
fn a_stop_string_ends_the_member_and_is_not_in_its_text() {
    let members = vec![
        Member { stop: vec!["de".to_owned()], ..member("xa", 9) },
        Member { stop: vec!["de".to_owned()], stream: true, ..member("ya", 9) },
        Member { stop: vec!["zz".to_owned()], ..member("wa", 3) },
    ];
    let (outcome, _) = serve(Script::default(), Options::default(), members);
    assert_eq!(outcome.text, ["bc", "bc", "bcd"]);
    assert_eq!(reasons(&outcome), [(FinishReason::Stop, 4), (FinishReason::Stop, 4), (FinishReason::Length, 3)]);
}

#[test]
fn only_streams_are_reported_before_their_end_and_all_of_a_step_in_one_frame() {
    let stream = |text| Member { stream: true, ..member(text, 4) };
    let members = vec![stream("ab"), stream("cd"), member("ef", 4)];
    let (outcome, _) = serve(Script::default(), Options::default(), members);
    assert_eq!(outcome.text, ["cdef", "efgh", "ghij"]);
    let reported: Vec<usize> = outcome
        .frames
        .iter()
        .filter_map(|frame| match frame {
            Frame::Tokens(_, members) => Some(members.len()),
            _ => None,
        })
        .collect();
    assert_eq!(reported, [2, 2, 2, 3]);
    assert_eq!(outcome.frames.iter().filter(|frame| matches!(frame, Frame::Finished(..))).count(), 1);
}

#[test]
fn a_resumed_member_continues_where_it_was() {
    let tokens = byte_tokens();
    let produced = tokens.encode("bcd", 100).unwrap();
    let resumed = Member { produced: produced.clone(), sent: 3, ..member("xa", 6) };
    let streamed = Member { stream: true, sent: 2, ..resumed.clone() };
    // "cdef" is a stop string of which "cd" had been held back.
    let stopping = Member { stop: vec!["cdef".to_owned()], sent: 1, ..resumed.clone() };
    let unsent = Member { sent: 0, ..resumed.clone() };
    let all_there = Member { max_new_tokens: 3, sent: 1, ..resumed.clone() };
    let members = vec![resumed, streamed, stopping, unsent, all_there];
    let (outcome, _) = serve(Script::default(), Options::default(), members);
    assert_eq!(outcome.text, ["efg", "defg", "", "bcdefg", "cd"]);
    let (stop, length) = (FinishReason::Stop, FinishReason::Length);
    assert_eq!(reasons(&outcome), [(length, 6), (length, 6), (stop, 5), (length, 6), (length, 3)]);
    assert_eq!(outcome.ids[0], tokens.encode("efg", 100).unwrap(), "only new ids are reported");
}

#[test]
fn options_that_look_back_keep_lengths_apart_and_start_again() {
    let options = Options { repetition_penalty: 1.2, ..Options::default() };
    let produced = byte_tokens().encode("bc", 100).unwrap();
    let members = vec![
        member("xa", 2),
        member("xya", 2),
        Member { produced: produced.clone(), ..member("za", 4) },
        Member { produced, sent: 1, ..member("wa", 4) },
    ];
    let (outcome, calls) = serve(Script::default(), options, members);
    assert_eq!(outcome.text, ["bc", "bc", "bcde", ""]);
    assert_eq!(calls, [vec![2, 2], vec![3]]);
    assert_eq!(outcome.failed[0].code, FailureCode::NotResumable);
}

#[test]
fn a_member_that_breaks_the_engine_fails_alone() {
    for step in [0, 2] {
        let script = Script { poison: Some(('#', step)), ..Script::default() };
        let members = ["xa", "#a", "yA", "z0", "012"].map(|text| member(text, 9)).to_vec();
        let (outcome, calls) = serve(script, Options::default(), members);
        assert_eq!(outcome.text[0], "bcdefghij", "broken at step {step}");
        assert_eq!(outcome.text[2..], ["BCDEFGHIJ", "123456789", "3456789:;"]);
        let [failed] = &outcome.failed[..] else { panic!("{:?}", outcome.failed) };
        assert_eq!((failed.member, failed.code, &*failed.message), (1, FailureCode::Engine, "poison"));
        assert!(calls.len() < 10);
    }
}

#[test]
fn a_member_past_its_deadline_needs_no_call() {
    let members = vec![Member { deadline_ms: 0, ..member("ab", 5) }];
    let (outcome, calls) = serve(Script::default(), Options::default(), members);
    assert_eq!(reasons(&outcome), [(FinishReason::Deadline, 0)]);
    assert!(calls.is_empty());
}

#[test]
fn invalid_members_fail_and_the_others_are_served() {
    let (outcome, _) =
        serve(Script::default(), Options::default(), vec![member("", 5), member("ab", 1), member("x", 1000)]);
    assert_eq!(outcome.text[1], "c");
    let codes: Vec<FailureCode> = outcome.failed.iter().map(|failed| failed.code).collect();
    assert_eq!(codes, [FailureCode::EmptyPrompt, FailureCode::TooManyTokens]);
}
