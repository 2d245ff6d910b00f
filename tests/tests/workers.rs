//! What happens to requests when workers die, leave, lie and return.

mod busy;

use busy::{all_answered, ask, busy};
use nix::sys::signal::Signal;
use pillion_tests::eventually;
use pillion_tests::gate::Gate;
use pillion_tests::stack::Stack;
use pillion_tests::tap::Tap;
use serde_json::json;

#[tokio::test]
async fn a_killed_workers_requests_are_served_when_another_comes() {
    let (mut stack, _gate, asked) = busy(&[], 3).await;
    stack.workers[0].signal(Signal::SIGKILL);
    stack.metric("pillion_workers_connected", |workers| workers == 0).await;
    let client = stack.client();
    assert_eq!(client.get("/livez").await.status, 200);
    assert_eq!(client.get("/readyz").await.status, 503);
    stack.simulated_worker(&[]);
    all_answered(asked).await;
    assert!(stack.metrics().await.with("pillion_resumed_total", &[("reason", "worker_lost")]) > 0);
    assert!(stack.metrics().await.sum("pillion_worker_reconnects_total") > 0);
}

#[tokio::test]
async fn a_member_goes_on_elsewhere_from_where_its_worker_died() {
    let mut stack = Stack::proxy(&[]).await;
    let tap = Tap::between(&stack.folder().join("tap.sock"), &stack.socket());
    let flags = ["--eager", "--fault", "close", "--fault-step", "3"];
    stack.worker("simulated-worker", &flags, tap.socket());
    let answer = stack.client().generate(&json!({"text": "five little words in all"})).await;
    assert_eq!(answer.json()["text"], "all in words little five");
    assert_eq!(answer.json()["usage"]["completion_tokens"], 5);
    let rides = tap.rides();
    assert_eq!(rides.len(), 2);
    let (first, second) = (&rides[0].ends[0], &rides[1]);
    assert_eq!(second.batch.members[0].produced, first.ids);
    assert_eq!(second.batch.members[0].sent, first.text.len() as u64);
    assert_eq!((first.ids.len(), second.ends[0].ids.len()), (3, 2));
    assert_eq!(second.ends[0].text, " little five");
}

#[tokio::test]
async fn a_request_that_outlives_its_attempts_fails() {
    let flags = ["--fault", "close", "--fault-step", "1"];
    let stack = Stack::simulated(&["--max-attempts", "1"], &flags).await;
    let answer = stack.client().generate(&json!({"text": "two words"})).await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    let answer = stack.client().generate(&json!({"text": "two words"})).await;
    assert_eq!(answer.status, 200, "the next one is none the worse");
}

#[tokio::test]
async fn whatever_a_worker_does_wrong_its_requests_are_answered_and_the_proxy_goes_on() {
    for (fault, counted) in [
        ("close", 0),
        ("half-frame", 0),
        ("abort", 0),
        ("garbage", 1),
        ("answer-twice", 1),
        ("unknown-member", 1),
        ("unknown-batch", 1),
    ] {
        let mut stack = Stack::simulated(&[], &["--fault", fault, "--fault-step", "1"]).await;
        stack.simulated_worker(&[]);
        let client = stack.client();
        let asked = (0..4).map(|k| format!("one two {k}")).map(|text| {
            let answer = ask(&client, &text);
            (text, answer)
        });
        all_answered(asked.collect()).await;
        // The faulty worker may have had none of them yet: it is asked until it has.
        eventually(fault, async || {
            all_answered(vec![("once more".to_owned(), ask(&client, "once more"))]).await;
            let lost = stack.metrics().await;
            (lost.sum("pillion_worker_reconnects_total") > 0 || !stack.workers[0].runs()).then_some(())
        })
        .await;
        let seen = stack.metrics().await.sum("pillion_protocol_errors_total");
        assert_eq!(seen, counted, "protocol errors of {fault}");
    }
}

#[tokio::test]
async fn a_stalled_worker_costs_a_request_no_more_than_its_deadline() {
    let stack = Stack::simulated(&[], &["--slots", "2", "--fault", "stall", "--fault-step", "0"]).await;
    let client = stack.client();
    let answer = client.generate(&json!({"text": "into the void", "timeout_ms": 300})).await;
    assert_eq!(answer.status, 504, "{}", answer.text());
    let answer = client.generate(&json!({"text": "by the other slot"})).await;
    assert_eq!(answer.json()["text"], "slot other the by");
}

#[tokio::test]
async fn a_prompt_that_kills_workers_is_the_only_one_to_fail() {
    let (stack, gate, mut asked) = busy(&["--max-attempts", "3"], 0).await;
    let client = stack.client();
    let guilty = ask(&client, "!die now");
    asked.extend((0..30).map(|k| format!("innocent {k}")).map(|text| {
        let answer = ask(&client, &text);
        (text, answer)
    }));
    stack.metric("pillion_queue_depth", |depth| depth == 31).await;
    gate.open();
    let answer = guilty.await.unwrap();
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (502, Some("worker_lost")),
        "{}",
        answer.text()
    );
    all_answered(asked).await;
    let lost = stack.metrics().await.sum("pillion_workers_lost_total");
    assert_eq!(lost, 4, "twice together, once among a few, once alone");
    assert_eq!(client.generate(&json!({"text": "one more"})).await.json()["text"], "more one");
}

#[tokio::test]
async fn a_stuck_worker_is_dropped_and_its_members_go_on_elsewhere() {
    let flags = ["--fault", "stall", "--fault-step", "2", "--silence", "100ms", "--eager"];
    let mut stack = Stack::simulated(&[], &flags).await;
    let asked = vec![("one two three four".to_owned(), ask(&stack.client(), "one two three four"))];
    // It is alive: its heartbeats go on.
    stack.metric("pillion_running", |running| running == 1).await;
    stack.simulated_worker(&[]);
    all_answered(asked).await;
    assert_eq!(stack.metrics().await.with("pillion_workers_lost_total", &[("reason", "stuck")]), 1);
}

#[tokio::test]
async fn a_stopped_worker_is_dropped_and_comes_back_when_it_goes_on() {
    let mut stack = Stack::simulated(&[], &["--silence", "100ms", "--batch-cost", "1s"]).await;
    let asked = vec![("held up".to_owned(), ask(&stack.client(), "held up"))];
    stack.metric("pillion_running", |running| running == 1).await;
    stack.workers[0].signal(Signal::SIGSTOP);
    stack.simulated_worker(&[]);
    stack.metric("pillion_workers_connected", |workers| workers == 2).await;
    all_answered(asked).await;
    assert_eq!(stack.metrics().await.with("pillion_workers_lost_total", &[("reason", "stuck")]), 1);
    stack.workers[0].signal(Signal::SIGCONT);
    stack.metric("pillion_workers_connected", |workers| workers == 2).await;
}

#[tokio::test]
async fn a_newer_model_takes_the_new_requests_and_the_older_one_ends_its_own_and_leaves() {
    let mut stack = Stack::proxy(&[]).await;
    let gate = Gate::shut(stack.folder());
    // With a slot free: what comes to it waits before the gate.
    stack.simulated_worker(&[&gate.flags()[..], &["--slots", "2"]].concat());
    stack.ready().await;
    let asked = vec![("at work".to_owned(), ask(&stack.client(), "at work"))];
    stack.metric("pillion_running", |running| running == 1).await;
    stack.simulated_worker(&["--fingerprint", "01"]);
    stack.metric("pillion_workers_connected", |workers| workers == 2).await;
    for k in 0..5 {
        all_answered(vec![(format!("new {k}"), ask(&stack.client(), &format!("new {k}")))]).await;
    }
    stack.workers[0].signal(Signal::SIGTERM);
    // It holds a member, which the other cannot go on with.
    all_answered(vec![("still served".to_owned(), ask(&stack.client(), "still served"))]).await;
    assert!(stack.workers[0].runs());
    gate.open();
    all_answered(asked).await;
    assert_eq!(stack.workers[0].ended().await, Some(0));
    assert_eq!(stack.metrics().await.sum("pillion_resumed_total"), 0);
}

#[tokio::test]
async fn a_lone_worker_told_to_stop_serves_until_nothing_waits() {
    let (mut stack, gate, asked) = busy(&["--max-batch-size", "2"], 5).await;
    stack.workers[0].signal(Signal::SIGTERM);
    gate.open();
    all_answered(asked).await;
    assert_eq!(stack.workers[0].ended().await, Some(0));
    eventually("not ready", async || (stack.client().get("/readyz").await.status == 503).then_some(())).await;
}

#[tokio::test]
async fn a_worker_told_to_stop_hands_its_members_to_an_equal_one() {
    let (mut stack, _gate, asked) = busy(&[], 0).await;
    stack.simulated_worker(&[]);
    stack.metric("pillion_workers_connected", |workers| workers == 2).await;
    stack.workers[0].signal(Signal::SIGTERM);
    all_answered(asked).await;
    assert_eq!(stack.workers[0].ended().await, Some(0));
    assert!(stack.metrics().await.with("pillion_resumed_total", &[("reason", "yielded")]) > 0);
}

#[tokio::test]
async fn a_worker_of_another_protocol_is_told_so_and_makes_nothing_ready() {
    let mut stack = Stack::proxy(&[]).await;
    stack.simulated_worker(&["--versions", "7,9"]);
    stack.workers[0].logged("GOODBYE for its version", |line| line.contains("Version").then_some(())).await;
    assert_eq!(stack.client().get("/readyz").await.status, 503);
    stack.simulated_worker(&[]);
    stack.ready().await;
}
