//! Tests of how a session ends.

use pillion_protocol::frame::{Goodbye, GoodbyeReason};

use super::*;

#[tokio::test(start_paused = true)]
async fn each_hello_has_the_time_since_the_model_was_loaded() {
    let worker = worker(&Arc::default(), 1);
    for seconds in [2, 4] {
        tokio::time::advance(Duration::from_secs(2)).await;
        let ((reader, writer), mut proxy, mut controls) = pipe();
        let hello = async {
            let Frame::Hello(hello) = proxy.next().await else { panic!("no HELLO") };
            drop(proxy);
            hello.age_ms
        };
        let (_, age_ms) = tokio::join!(run(reader, writer, &worker, &mut controls), hello);
        assert_eq!(age_ms, seconds * 1000);
    }
}

#[test]
fn a_draining_worker_serves_until_it_is_released() {
    let worker = worker(&Arc::default(), 1);
    let end = play(&worker, async |mut proxy: Proxy| {
        proxy.expect_credit(1).await;
        proxy.controls.send(Control::Drain).await.unwrap();
        assert_eq!(proxy.next().await, Frame::Draining);
        proxy.batch(1, Options::default(), vec![member("ab", 3)]).await;
        assert_eq!(proxy.outcome(1, 1).await.text, ["cde"]);
        proxy.send(&Frame::Release).await;
        assert!(matches!(proxy.answer().await, Frame::Goodbye(Goodbye { reason: GoodbyeReason::Drained, .. })));
    });
    assert_eq!(end, End::Drained);
}

#[test]
fn a_released_worker_yields_its_members() {
    let (script, gate) = Script::gated();
    let worker = worker(&Arc::new(script), 1);
    let end = play(&worker, async |mut proxy: Proxy| {
        proxy.expect_credit(1).await;
        proxy.batch(1, Options::default(), vec![member("ab", 900)]).await;
        proxy.controls.send(Control::Drain).await.unwrap();
        assert_eq!(proxy.answer().await, Frame::Draining);
        proxy.send(&Frame::Release).await;
        // The session runs on this thread, so it has read the frame by then.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        gate.send(()).unwrap();
        let outcome = proxy.outcome(1, 1).await;
        assert_eq!(outcome.yielded, [0]);
        assert!(matches!(proxy.answer().await, Frame::Goodbye(Goodbye { reason: GoodbyeReason::Drained, .. })));
    });
    assert_eq!(end, End::Drained);
}

/// Another worker would have to feed its prompt and answer at once, for which the memory is too small.
#[test]
fn a_member_that_could_not_be_fed_again_is_finished_here() {
    let (script, gate) = Script::gated();
    let worker = worker(&Arc::new(script), 1);
    let end = play(&worker, async |mut proxy: Proxy| {
        proxy.expect_credit(1).await;
        proxy.batch(1, Options::default(), vec![Member { stream: true, ..member("ab", 3) }]).await;
        gate.send(()).unwrap();
        assert!(matches!(proxy.answer().await, Frame::Tokens(..)), "the member was accepted and runs");
        worker.shared.memory.store(0, std::sync::atomic::Ordering::Relaxed);
        proxy.send(&Frame::Yield(BatchId(1))).await;
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        gate.send(()).unwrap();
        gate.send(()).unwrap();
        let outcome = proxy.outcome(1, 1).await;
        assert_eq!((outcome.yielded.len(), outcome.finished[0].completion_tokens), (0, 3));
        let goodbye = Goodbye { reason: GoodbyeReason::Drained, message: String::new() };
        proxy.send(&Frame::Goodbye(goodbye)).await;
    });
    assert!(matches!(end, End::Goodbye { .. }));
}

/// No worker could continue it, since the options look back over the part that was streamed.
#[test]
fn a_member_that_no_worker_could_continue_is_finished_here() {
    let (script, gate) = Script::gated();
    let worker = worker(&Arc::new(script), 1);
    let end = play(&worker, async |mut proxy: Proxy| {
        proxy.expect_credit(1).await;
        let options = Options { repetition_penalty: 1.5, ..Options::default() };
        proxy.batch(1, options, vec![Member { stream: true, ..member("ab", 3) }, member("xy", 900)]).await;
        gate.send(()).unwrap();
        assert!(matches!(proxy.answer().await, Frame::Tokens(..)), "a part of the answer is sent");
        proxy.controls.send(Control::Drain).await.unwrap();
        assert_eq!(proxy.answer().await, Frame::Draining);
        proxy.send(&Frame::Release).await;
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        (0..3).for_each(|_| gate.send(()).unwrap_or_default());
        let outcome = proxy.outcome(1, 2).await;
        assert_eq!(
            (&outcome.yielded[..], outcome.finished.len()),
            (&[1][..], 1),
            "the other one starts again elsewhere"
        );
        assert!(matches!(proxy.answer().await, Frame::Goodbye(Goodbye { reason: GoodbyeReason::Drained, .. })));
    });
    assert_eq!(end, End::Drained);
}

#[test]
fn a_batch_after_a_release_breaks_the_protocol() {
    let (script, gate) = Script::gated();
    let worker = worker(&Arc::new(script), 2);
    let end = play(&worker, async |mut proxy: Proxy| {
        proxy.expect_credit(2).await;
        proxy.batch(1, Options::default(), vec![member("ab", 900)]).await;
        proxy.controls.send(Control::Drain).await.unwrap();
        assert_eq!(proxy.answer().await, Frame::Draining);
        proxy.send(&Frame::Release).await;
        proxy.batch(2, Options::default(), vec![member("ab", 1)]).await;
        while proxy.reader.next().await.unwrap().is_some() {}
    });
    drop(gate);
    assert!(matches!(&end, End::Lost { reason, .. } if reason.contains("after RELEASE")), "{end:?}");
}

#[test]
fn a_second_signal_ends_at_once_and_counts_unfinished_members() {
    let (script, gate) = Script::gated();
    let worker = worker(&Arc::new(script), 1);
    let end = play(&worker, async |mut proxy: Proxy| {
        proxy.expect_credit(1).await;
        proxy.batch(1, Options::default(), vec![member("ab", 900), member("xa", 1)]).await;
        gate.send(()).unwrap();
        assert!(matches!(proxy.answer().await, Frame::Tokens(..)));
        proxy.controls.send(Control::Drain).await.unwrap();
        proxy.controls.send(Control::Quit).await.unwrap();
        while proxy.reader.next().await.unwrap().is_some() {}
    });
    drop(gate);
    assert_eq!(end, End::Quit(1));
}

#[test]
fn a_release_without_a_drain_breaks_the_protocol() {
    let worker = worker(&Arc::default(), 1);
    let end = play(&worker, async |mut proxy: Proxy| {
        proxy.expect_credit(1).await;
        proxy.send(&Frame::Release).await;
        while proxy.reader.next().await.unwrap().is_some() {}
    });
    assert!(matches!(end, End::Lost { reason, .. } if reason.contains("RELEASE without DRAINING")));
}

#[test]
fn a_drain_ends_at_its_timeout() {
    let worker = worker(&Arc::default(), 1);
    paused(async {
        let ((reader, writer), mut proxy, mut controls) = pipe();
        let far = async {
            proxy.welcome().await;
            proxy.controls.send(Control::Drain).await.unwrap();
            while proxy.reader.next().await.unwrap().is_some() {}
        };
        let before = tokio::time::Instant::now();
        let (end, ()) = tokio::join!(run(reader, writer, &worker, &mut controls), far);
        assert_eq!(end.unwrap(), End::DrainTimeout(0));
        assert_eq!(before.elapsed().as_secs(), 5);
    });
}

#[test]
fn heartbeats_come_every_second() {
    let worker = worker(&Arc::default(), 1);
    paused(async {
        let ((reader, writer), mut proxy, mut controls) = pipe();
        let far = async {
            proxy.welcome().await;
            let before = tokio::time::Instant::now();
            let mut beats = 0;
            while beats < 10 {
                if let Some(Frame::Heartbeat(heartbeat)) = proxy.reader.next().await.unwrap() {
                    assert_eq!((heartbeat.steps, heartbeat.silence_ms), (0, 30_000));
                    beats += 1;
                }
            }
            assert_eq!(before.elapsed().as_secs(), 9);
            drop(proxy);
        };
        let (end, ()) = tokio::join!(run(reader, writer, &worker, &mut controls), far);
        assert!(matches!(end, Ok(End::Lost { .. })));
    });
}

#[test]
fn a_proxy_that_does_not_answer_is_given_up() {
    let worker = worker(&Arc::default(), 1);
    paused(async {
        let ((reader, writer), proxy, mut controls) = pipe();
        let before = tokio::time::Instant::now();
        let error = run(reader, writer, &worker, &mut controls).await.unwrap_err();
        assert!(matches!(error, HandshakeError::Silence));
        assert_eq!(before.elapsed().as_secs(), 5);
        drop(proxy);
    });
}
