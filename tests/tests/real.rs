//! The real worker and a real model behind the proxy.

use std::path::Path;

use hyper::Method;
use pillion_tests::client::{Answer, Client};
use pillion_tests::events::Event;
use pillion_tests::folder::Folder;
use pillion_tests::process::binary;
use pillion_tests::reference::{builtin, python, random_model, skipped, worker};
use pillion_tests::stack::Stack;
use pillion_tests::tap::{Ride, Tap};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// A proxy and a real worker with this model, and a tap between them.
async fn serving(model: &Path) -> (Stack, Tap) {
    let mut stack = Stack::proxy(&[]).await;
    let tap = Tap::between(&stack.folder().join("tap.sock"), &stack.socket());
    let flags = ["--model", model.to_str().unwrap(), "--device", "cpu"];
    stack.worker("pillion-worker", &flags, tap.socket());
    stack.ready().await;
    (stack, tap)
}

/// The same with the built-in model; `None` where something that the test needs is missing.
async fn serving_builtin(test: &str) -> Option<(Stack, Tap)> {
    let model = builtin();
    if skipped(test, &[worker(), model.clone()]) {
        return None;
    }
    Some(serving(&model.ok()?).await)
}

fn ask(client: &Client, request: Value) -> JoinHandle<Answer> {
    let client = client.clone();
    tokio::spawn(async move { client.generate(&request).await })
}

/// Occupies the one slot for so many steps, then sends `requests`, which so ride together in the next batch.
async fn together(stack: &Stack, steps: u32, requests: Vec<Value>) -> Vec<JoinHandle<Answer>> {
    let client = stack.client();
    let blocker = ask(&client, json!({"text": "the blocker", "max_new_tokens": steps, "min_new_tokens": steps}));
    stack.metric("pillion_running", |running| running == 1).await;
    let asked: Vec<_> = requests.into_iter().map(|request| ask(&client, request)).collect();
    assert_eq!(blocker.await.unwrap().status, 200);
    asked
}

fn ride_of<'a>(rides: &'a [Ride], request: &Value) -> &'a Ride {
    let text = request["text"].as_str().unwrap();
    let prompt = pillion_protocol::frame::Prompt::Text(text.to_owned());
    rides.iter().find(|ride| ride.members().any(|(member, _)| member.prompt == prompt)).expect("it rode")
}

#[tokio::test]
async fn the_built_in_model_adds() {
    let Some((stack, _tap)) = serving_builtin("the_built_in_model_adds").await else { return };
    let client = stack.client();
    for (a, b) in [(2, 3), (17, 25), (40, 2), (60, 39)] {
        let answer = client.generate(&json!({"text": format!("What is {a} + {b}?")})).await;
        let body = answer.json();
        assert_eq!(body["text"].as_str().map(str::trim), Some((a + b).to_string().as_str()), "{body}");
        assert_eq!(body["finish_reason"], "stop");
    }
    let answer = client.generate(&json!({"text": "What is 1 + 1?", "max_new_tokens": 1_000_000})).await;
    assert_eq!(answer.status, 422, "{}", answer.text());
    assert_eq!(answer.json()["error"]["param"], "max_new_tokens");
}

#[tokio::test]
async fn a_short_member_is_answered_while_its_companion_runs_on() {
    const NAME: &str = "a_short_member_is_answered_while_its_companion_runs_on";
    if skipped(NAME, &[worker(), python()]) {
        return;
    }
    let folder = Folder::new();
    // Wide enough for steps of a millisecond or more: the long member runs on for a fifth of a second.
    random_model(folder.path(), &["--layers", "8", "--width", "512", "--heads", "8", "--ffn", "2048"]);
    let (stack, tap) = serving(folder.path()).await;
    // Not so much shorter that they would better ride apart.
    let short = json!({"text": "a short one", "max_new_tokens": 50, "min_new_tokens": 50});
    let long = json!({"text": "a longer one", "max_new_tokens": 200, "min_new_tokens": 50});
    let before = stack.metrics().await.sum("pillion_batches_total");
    let mut asked = together(&stack, 100, vec![short.clone(), long.clone()]).await;
    let long_answer = asked.pop().unwrap();
    let short_answer = asked.pop().unwrap().await.unwrap();
    assert!(!long_answer.is_finished(), "the short one had to wait for its companion");
    assert_eq!(short_answer.json()["usage"]["completion_tokens"], 50, "{}", short_answer.text());
    let long_answer = long_answer.await.unwrap();
    assert_eq!(long_answer.json()["finish_reason"], "length", "{}", long_answer.text());
    assert_eq!(long_answer.json()["usage"]["completion_tokens"], 200);
    let ride = ride_of(&tap.rides(), &short).id;
    assert_eq!(ride, ride_of(&tap.rides(), &long).id, "they rode together");
    let batches = stack.metrics().await.sum("pillion_batches_total") - before;
    assert_eq!(batches, 2, "the blocker's and theirs");
}

#[tokio::test]
async fn a_one_token_prompt_gets_its_own_answer_beside_long_ones() {
    const NAME: &str = "a_one_token_prompt_gets_its_own_answer_beside_long_ones";
    if skipped(NAME, &[worker(), python()]) {
        return;
    }
    let folder = Folder::new();
    random_model(folder.path(), &["--no-bos"]);
    let (stack, tap) = serving(folder.path()).await;
    // So many that decoding, not the prompts, is most of the cost: all are alike then and ride together.
    let request = |text: String| json!({"text": text, "max_new_tokens": 24});
    let texts = ["x".to_owned(), "lorem ipsum dolor sit amet ".repeat(4), "dolor ".repeat(30), "sit amet".to_owned()];
    let mut alone = Vec::new();
    for text in &texts {
        alone.push(stack.client().generate(&request(text.clone())).await.json());
    }
    assert_eq!(alone[0]["usage"]["prompt_tokens"], 1, "the test needs a prompt of one token");
    let asked = together(&stack, 400, texts.iter().cloned().map(request).collect()).await;
    for (asked, alone) in asked.into_iter().zip(alone) {
        assert_eq!(asked.await.unwrap().json(), alone);
    }
    let rides = tap.rides();
    assert_eq!(rides.last().unwrap().batch.members.len(), texts.len(), "they rode together");
}

#[tokio::test]
async fn the_built_in_model_chats_and_streams() {
    let Some((stack, _tap)) = serving_builtin("the_built_in_model_chats_and_streams").await else { return };
    let client = stack.client();
    let name = client.get("/v1/models").await.json()["data"][0]["id"].clone();
    let messages = json!([{"role": "user", "content": "What is 17 + 25?"}]);
    let body = json!({"model": name, "messages": messages, "temperature": 0, "max_tokens": 10});
    let answer = client.post("/v1/chat/completions", &body).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "42", "{answer}");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
    let body = json!({"model": name, "prompt": "What is 17 + 25?", "temperature": 0, "max_tokens": 10});
    let answer = client.post("/v1/completions", &body).await.json();
    assert_eq!(answer["choices"][0]["text"], "42", "{answer}");
    let events = client.events("/generate_stream", &json!({"text": "What is 17 + 25?"})).await.rest().await;
    let text: String = events.iter().filter_map(|event| event.json()["text"].as_str().map(str::to_owned)).collect();
    assert_eq!(text, "42");
}

/// Streams of a real model, many at once, are byte for byte what the whole answers are.
#[tokio::test]
async fn a_thousand_streams_at_once_are_each_the_whole_answer() {
    const NAME: &str = "a_thousand_streams_at_once_are_each_the_whole_answer";
    if skipped(NAME, &[worker(), python()]) {
        return;
    }
    let folder = Folder::new();
    random_model(folder.path(), &[]);
    let (stack, _tap) = serving(folder.path()).await;
    let texts: Vec<String> = (0..1000).map(|k| format!("{k} {}", "lorem ipsum ".repeat(1 + k % 5))).collect();
    let request = |text: &Value| json!({"text": text, "max_new_tokens": 12});
    let whole = stack.client().generate(&request(&json!(texts))).await.json();
    let asked = texts.iter().map(|text| {
        let (client, request) = (stack.client(), request(&json!(text)));
        tokio::spawn(async move { client.events("/generate_stream", &request).await.rest().await })
    });
    let asked: Vec<_> = asked.collect();
    for (place, asked) in asked.into_iter().enumerate() {
        let events: Vec<Value> = asked.await.unwrap().iter().map(Event::json).collect();
        let text: String = events.iter().filter_map(|event| event["text"].as_str()).collect();
        assert_eq!(Some(&*text), whole["text"][place].as_str(), "{}", texts[place]);
    }
}

#[tokio::test]
async fn a_trace_is_told_in_the_workers_log_too() {
    let Some((mut stack, _tap)) = serving_builtin("a_trace_is_told_in_the_workers_log_too").await else { return };
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    let headers = [("traceparent", &*parent), ("x-request-id", "mine")];
    let answer = stack.client().send(Method::POST, "/generate", &headers, r#"{"text": "a private word"}"#).await;
    assert_eq!(answer.status, 200);
    let named = |line: &str| (line.contains(trace) && line.contains("mine")).then(|| line.to_owned());
    let line = stack.workers[0].logged("the member's line", named).await;
    assert!(!line.contains("private"), "{line}");
}

/// The worker with an engine that some prompts crash.
const POISONABLE: &str = "examples/poisonable-worker";

/// The engine crashes on a prompt, in a worker built for it. Whoever rode along is answered as ever.
#[tokio::test]
async fn a_prompt_that_crashes_the_engine_fails_alone() {
    const NAME: &str = "a_prompt_that_crashes_the_engine_fails_alone";
    let model = builtin();
    if skipped(NAME, &[binary(POISONABLE), model.clone()]) {
        return;
    }
    let model = model.unwrap();
    let flags = ["--model", model.to_str().unwrap(), "--device", "cpu", "--threads", "1"];
    let mut stack = Stack::proxy(&[]).await;
    let socket = stack.socket();
    stack.worker(POISONABLE, &flags, &socket);
    stack.ready().await;
    let texts: Vec<String> = (1..40).map(|k| format!("What is {k} + {k}?")).chain(["~".repeat(12)]).collect();
    // They leave the queue together, and later whoever is suspected leaves it with less and less company.
    let together = ask(&stack.client(), json!({"text": texts, "max_new_tokens": 10}));
    serving_until_answered(&mut stack, &flags, &together).await;
    let answer = together.await.unwrap().json();
    for k in 1..40 {
        assert_eq!(answer["text"][k - 1].as_str().map(str::trim), Some(&*(2 * k).to_string()), "{answer}");
    }
    assert_eq!(answer["text"][39], Value::Null, "{answer}");
    assert_eq!(answer["finish_reason"][39], "error");
    let resumed = stack.metrics().await.with("pillion_resumed_total", &[("reason", "worker_lost")]);
    assert!(resumed > 3, "nobody rode with it");
    let alone = ask(&stack.client(), json!({"text": texts[39], "max_new_tokens": 10}));
    serving_until_answered(&mut stack, &flags, &alone).await;
    let alone = alone.await.unwrap();
    assert_eq!(alone.status, 502, "{}", alone.text());
}

/// Starts another poisonable worker whenever the last one has died.
async fn serving_until_answered(stack: &mut Stack, flags: &[&str], asked: &JoinHandle<Answer>) {
    while !asked.is_finished() {
        if !stack.workers.last_mut().unwrap().runs() {
            let socket = stack.socket();
            stack.worker(POISONABLE, flags, &socket);
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
