//! How a session ends, and what it leaves behind.

use pillion_protocol::frame::{Goodbye, GoodbyeReason};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_worker_says_at_each_connection_how_long_ago_it_loaded_its_model() {
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
        assert!(matches!(proxy.told().await, Frame::Goodbye(Goodbye { reason: GoodbyeReason::Drained, .. })));
    });
    assert_eq!(end, End::Drained);
}

#[test]
fn a_released_worker_gives_back_what_it_holds() {
    let (script, gate) = Script::gated();
    let worker = worker(&Arc::new(script), 1);
    let end = play(&worker, async |mut proxy: Proxy| {
        proxy.expect_credit(1).await;
        proxy.batch(1, Options::default(), vec![member("ab", 900)]).await;
        proxy.controls.send(Control::Drain).await.unwrap();
        assert_eq!(proxy.told().await, Frame::Draining);
        proxy.send(&Frame::Release).await;
        // The session has heard it by then: it runs on this thread.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        gate.send(()).unwrap();
        let outcome = proxy.outcome(1, 1).await;
        assert_eq!(outcome.yielded, [0]);
        assert!(matches!(proxy.told().await, Frame::Goodbye(Goodbye { reason: GoodbyeReason::Drained, .. })));
    });
    assert_eq!(end, End::Drained);
}

/// Whoever takes it on would feed all of it at once, which the memory does not hold.
#[test]
fn a_member_that_could_not_be_fed_again_is_finished_here() {
    let (script, gate) = Script::gated();
    let worker = worker(&Arc::new(script), 1);
    let end = play(&worker, async |mut proxy: Proxy| {
        proxy.expect_credit(1).await;
        proxy.batch(1, Options::default(), vec![Member { stream: true, ..member("ab", 3) }]).await;
        gate.send(()).unwrap();
        assert!(matches!(proxy.told().await, Frame::Tokens(..)), "it has been let in, and runs");
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

#[test]
fn a_second_signal_ends_at_once_and_counts_what_is_left() {
    let (script, gate) = Script::gated();
    let worker = worker(&Arc::new(script), 1);
    let end = play(&worker, async |mut proxy: Proxy| {
        proxy.expect_credit(1).await;
        proxy.batch(1, Options::default(), vec![member("ab", 900), member("xa", 1)]).await;
        gate.send(()).unwrap();
        assert!(matches!(proxy.told().await, Frame::Tokens(..)));
        proxy.controls.send(Control::Drain).await.unwrap();
        proxy.controls.send(Control::Quit).await.unwrap();
        while proxy.reader.next().await.unwrap().is_some() {}
    });
    drop(gate);
    assert_eq!(end, End::Quit(1));
}

#[test]
fn a_release_that_nobody_asked_for_breaks_the_protocol() {
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
fn a_proxy_that_says_nothing_is_left() {
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
