//! A stack with work in it.

use pillion_tests::client::{Answer, Client};
use pillion_tests::fake_worker::echo::expected;
use pillion_tests::gate::Gate;
use pillion_tests::stack::Stack;
use serde_json::json;
use tokio::task::JoinHandle;

/// Asks for the answer to a text.
pub(crate) fn ask(client: &Client, text: &str) -> JoinHandle<Answer> {
    let (client, request) = (client.clone(), json!({"text": text}));
    tokio::spawn(async move { client.generate(&request).await })
}

/// A stack whose worker's engine waits behind a gate. The worker holds one request, and `waiting` requests are in the queue.
pub(crate) async fn busy(proxy: &[&str], waiting: usize) -> (Stack, Gate, Vec<(String, JoinHandle<Answer>)>) {
    let mut stack = Stack::proxy(proxy).await;
    let gate = Gate::shut(stack.folder());
    stack.simulated_worker(&gate.flags());
    stack.ready().await;
    let client = stack.client();
    let mut asked = vec![("at work".to_owned(), ask(&client, "at work"))];
    stack.metric("pillion_running", |running| running == 1).await;
    asked.extend((0..waiting).map(|k| format!("waiting {k}")).map(|text| {
        let answer = ask(&client, &text);
        (text, answer)
    }));
    let depth = i64::try_from(waiting).unwrap();
    stack.metric("pillion_queue_depth", |seen| seen == depth).await;
    (stack, gate, asked)
}

/// Every text gets its own answer.
pub(crate) async fn all_answered(asked: Vec<(String, JoinHandle<Answer>)>) {
    for (text, answer) in asked {
        assert_eq!(answer.await.unwrap().json()["text"], expected(&text, 128, 0));
    }
}
