//! Tests of credit, and of signals to a batch that runs.

use super::*;

/// Lets the engine make this many steps.
fn steps(gate: &std::sync::mpsc::Sender<()>, steps: usize) {
    (0..steps).for_each(|_| gate.send(()).unwrap());
}

#[test]
fn a_batch_without_credit_breaks_the_protocol() {
    let worker = worker(&Arc::default(), 1);
    let end = play(&worker, async |mut proxy: Proxy| {
        proxy.expect_credit(1).await;
        proxy.batch(1, Options::default(), vec![member("ab", 900)]).await;
        proxy.batch(2, Options::default(), vec![member("ab", 900)]).await;
        loop {
            if let Frame::Goodbye(goodbye) = proxy.next().await {
                assert_eq!(goodbye.reason, GoodbyeReason::Protocol);
                break;
            }
        }
    });
    assert!(matches!(end, End::Lost { reason, .. } if reason.contains("a batch came without credit")));
}

#[test]
fn every_slot_has_a_credit_and_every_done_brings_one() {
    let worker = worker(&Arc::default(), 2);
    play(&worker, async |mut proxy: Proxy| {
        proxy.expect_credit(2).await;
        let mut granted = 2;
        for id in 0..20 {
            assert!(granted > 0, "a slot is free and has no credit");
            granted -= 1;
            proxy.batch(id, Options::default(), vec![member("ab", 3)]).await;
            let outcome = proxy.outcome(id, 1).await;
            granted += outcome
                .frames
                .iter()
                .map(|frame| if let Frame::Credit { grant } = frame { *grant } else { 0 })
                .sum::<u32>();
            if granted < 2 {
                proxy.expect_credit(1).await;
                granted += 1;
            }
        }
    });
}

#[test]
fn the_next_credit_comes_before_a_predictable_end() {
    let (script, gate) = Script::gated();
    let worker = worker(&Arc::new(script), 1);
    // The pace has measured a step of a tenth of a millisecond.
    let time = crate::pace::CallTime { rest: Duration::from_micros(100), steps: 1, ..Default::default() };
    worker.shared.pace.called(time);
    play(&worker, async |mut proxy: Proxy| {
        proxy.expect_credit(1).await;
        proxy.batch(1, Options::default(), vec![Member { stream: true, ..member("ab", 3) }]).await;
        steps(&gate, 1);
        // The engine waits for the batch's second step, so the credit comes before the batch's end.
        let mut seen = [proxy.next().await, proxy.next().await];
        seen.sort_by_key(|frame| matches!(frame, Frame::Credit { .. }));
        assert!(matches!(seen, [Frame::Tokens(BatchId(1), _), Frame::Credit { grant: 1 }]), "{seen:?}");
        proxy.batch(2, Options::default(), vec![member("ab", 1)]).await;
        steps(&gate, 2);
        assert_eq!(proxy.outcome(1, 1).await.text, ["de"]);
        steps(&gate, 1);
        assert_eq!(proxy.outcome(2, 1).await.text, ["c"]);
    });
}

#[test]
fn a_short_member_is_done_while_a_long_one_runs() {
    let (script, gate) = Script::gated();
    let worker = worker(&Arc::new(script), 1);
    play(&worker, async |mut proxy: Proxy| {
        proxy.expect_credit(1).await;
        proxy.batch(1, Options::default(), vec![member("ab", 200), member("xa", 5)]).await;
        steps(&gate, 5);
        assert!(matches!(proxy.answer().await, Frame::Tokens(_, tokens) if tokens[0].text == "bcdef"));
        assert!(matches!(proxy.answer().await, Frame::Finished(_, members) if members[0].member == 1));
        steps(&gate, 195);
        let mut frames = Vec::new();
        while !matches!(frames.last(), Some(Frame::Done(..))) {
            frames.push(proxy.next().await);
        }
        assert!(
            frames
                .iter()
                .any(|frame| matches!(frame, Frame::Finished(_, members) if members[0].completion_tokens == 200))
        );
    });
}

/// Lets the engine make a step after every TOKENS frame, until a frame fulfils `until`. Even if the session
/// reads the proxy's last frame late, the frame takes effect within these steps.
async fn step_until(
    proxy: &mut Proxy,
    gate: &std::sync::mpsc::Sender<()>,
    until: impl Fn(&Frame) -> bool,
) -> Vec<Frame> {
    let mut frames = Vec::new();
    loop {
        let frame = proxy.answer().await;
        if matches!(frame, Frame::Tokens(..)) {
            steps(gate, 1);
        }
        frames.push(frame);
        if frames.last().is_some_and(&until) {
            return frames;
        }
    }
}

#[test]
fn a_cancelled_member_ends_at_its_next_token() {
    let (script, gate) = Script::gated();
    let worker = worker(&Arc::new(script), 1);
    play(&worker, async |mut proxy: Proxy| {
        proxy.expect_credit(1).await;
        let stream = Member { stream: true, ..member("xa", 900) };
        proxy.batch(1, Options::default(), vec![stream, member("yA", 900)]).await;
        steps(&gate, 1);
        assert!(matches!(proxy.answer().await, Frame::Tokens(..)));
        proxy.send(&Frame::Cancel(BatchId(1), vec![0, 99])).await;
        steps(&gate, 1);
        let frames = step_until(&mut proxy, &gate, |frame| matches!(frame, Frame::Finished(..))).await;
        let Some(Frame::Finished(_, members)) = frames.last() else { panic!("{frames:?}") };
        assert_eq!((members[0].member, members[0].reason), (0, FinishReason::Cancelled));
        assert!(members[0].completion_tokens < 900);
        steps(&gate, 900);
        let frames = step_until(&mut proxy, &gate, |frame| matches!(frame, Frame::Done(..))).await;
        assert!(
            frames
                .iter()
                .any(|frame| matches!(frame, Frame::Finished(_, members) if members[0].completion_tokens == 900))
        );
    });
}

#[test]
fn yielded_members_come_back_with_their_tokens() {
    let (script, gate) = Script::gated();
    let worker = worker(&Arc::new(script), 1);
    play(&worker, async |mut proxy: Proxy| {
        proxy.expect_credit(1).await;
        let stream = Member { stream: true, ..member("xa", 900) };
        let stopping = Member { stop: vec!["!\"zz".to_owned()], ..member("y~", 900) };
        proxy.batch(1, Options::default(), vec![stream, stopping, member("z0", 900)]).await;
        steps(&gate, 1);
        assert!(matches!(proxy.answer().await, Frame::Tokens(..)));
        proxy.send(&Frame::Yield(BatchId(1))).await;
        steps(&gate, 1);
        let frames = step_until(&mut proxy, &gate, |frame| matches!(frame, Frame::Done(..))).await;
        // YIELD may come in the middle of a step, so members may end a step apart.
        let mut yielded = Vec::new();
        let mut ids = vec![Vec::new(); 3];
        for frame in frames {
            match frame {
                Frame::Yielded(_, members) => yielded.extend(members),
                Frame::Tokens(_, tokens) => {
                    tokens.into_iter().for_each(|tokens| ids[tokens.member as usize].extend(tokens.ids));
                }
                Frame::Done(..) => {}
                other => panic!("{other:?}"),
            }
        }
        yielded.sort_unstable();
        assert_eq!(yielded, [0, 1, 2]);
        let tokens = byte_tokens();
        assert_eq!(ids[1][..2], tokens.encode("!\"", 100).unwrap());
        assert_eq!(ids[2][..2], tokens.encode("12", 100).unwrap());
    });
}

#[test]
fn a_lost_connection_frees_its_places() {
    let (script, gate) = Script::gated();
    let worker = worker(&Arc::new(script), 1);
    let end = play(&worker, async |mut proxy: Proxy| {
        proxy.expect_credit(1).await;
        proxy.batch(1, Options::default(), vec![member("ab", 900)]).await;
        steps(&gate, 1);
    });
    assert!(matches!(end, End::Lost { draining: false, .. }));
    // The loss cancels the member, so it ends with its next token, although it may have 900.
    steps(&gate, 2);
    drop(gate);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let all = async { tokio::time::timeout(Duration::from_secs(20), worker.places.acquire_many(2)).await };
    assert_eq!(runtime.block_on(all).expect("the places are not free").unwrap().num_permits(), 2);
}
