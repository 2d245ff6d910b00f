//! Models as people have them: files that are missing, broken or say something unusual cost what they must, and no more.

use std::path::Path;

use pillion_tests::client::Answer;
use pillion_tests::folder::Folder;
use pillion_tests::reference::{builtin, skipped, worker};
use pillion_tests::stack::Stack;
use serde_json::{Value, json};

/// A copy of the built-in model, changed; `None` where something that the test needs is missing.
fn changed(test: &str, change: impl FnOnce(&Path)) -> Option<Folder> {
    let model = builtin();
    if skipped(test, &[worker(), model.clone()]) {
        return None;
    }
    let folder = Folder::new();
    for entry in std::fs::read_dir(model.expect("it is there")).expect("a folder") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("it can be copied");
    }
    change(folder.path());
    Some(folder)
}

async fn serving(model: &Folder, flags: &[&str]) -> Stack {
    let mut stack = Stack::proxy(&[]).await;
    let socket = stack.socket();
    let model = ["--model", model.path().to_str().expect("a plain path"), "--device", "cpu", "--threads", "1"];
    stack.worker("pillion-worker", &[&model, flags].concat(), &socket);
    stack.ready().await;
    stack
}

fn edit(file: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_str(&std::fs::read_to_string(file).expect("it is there")).expect("JSON");
    edit(&mut value);
    std::fs::write(file, value.to_string()).expect("it can be written");
}

async fn chat(stack: &Stack, more: Value) -> Answer {
    let client = stack.client();
    let name = client.get("/v1/models").await.json()["data"][0]["id"].clone();
    let messages = json!([{"role": "user", "content": "What is 17 + 25?"}]);
    let mut body = json!({"model": name, "messages": messages, "temperature": 0, "max_tokens": 6});
    body.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    client.post("/v1/chat/completions", &body).await
}

fn content(answer: &Answer) -> (String, Value) {
    let choice = &answer.json()["choices"][0];
    (choice["message"]["content"].as_str().expect("a text").to_owned(), choice["finish_reason"].clone())
}

#[tokio::test]
async fn an_answer_ends_at_any_of_the_models_end_tokens_and_at_those_that_are_asked_for() {
    let test = "an_answer_ends_at_any_of_the_models_end_tokens_and_at_those_that_are_asked_for";
    let right = ("42".to_owned(), json!("stop"));
    let Some(own) = changed(test, |_| {}) else { return };
    let stack = serving(&own, &[]).await;
    assert_eq!(content(&chat(&stack, json!({})).await), right);
    drop(stack);

    let without =
        changed(test, |model| std::fs::remove_file(model.join("generation_config.json")).expect("it is there"));
    let without = without.expect("as above");
    let stack = serving(&without, &[]).await;
    assert_eq!(content(&chat(&stack, json!({})).await).1, "length", "nothing says that a turn ends an answer");
    for more in
        [json!({"stop": "<|end|>"}), json!({"stop_token_ids": [6]}), json!({"stop": ["<|end|>", "x"], "stream": false})]
    {
        assert_eq!(content(&chat(&stack, more.clone()).await), right, "{more}");
    }
    let stopped = json!({"text": "What is 17 + 25?", "stop_token_ids": [6, 280, 1_000_000]});
    let answer = stack.client().generate(&stopped).await.json();
    assert_eq!((&answer["text"], &answer["finish_reason"]), (&json!("4"), &json!("stop")), "280 is 2: {answer}");
    let least = json!({"text": "What is 17 + 25?", "stop_token_ids": [280], "min_new_tokens": 2, "max_new_tokens": 2});
    let answer = stack.client().generate(&least).await.json();
    assert_eq!(answer["text"], "42", "not before the least: {answer}");
    drop(stack);

    let stack = serving(&without, &["--end-token", "<|end|>"]).await;
    assert_eq!(content(&chat(&stack, json!({})).await), right);
}

#[tokio::test]
async fn a_template_that_cannot_be_used_costs_chats_only() {
    let test = "a_template_that_cannot_be_used_costs_chats_only";
    let broken = changed(test, |model| {
        std::fs::write(model.join("chat_template.jinja"), "{% for m in messages %}{{ m.content").expect("a file");
    });
    let Some(broken) = broken else { return };
    let mut stack = serving(&broken, &[]).await;
    let refused = chat(&stack, json!({})).await;
    assert_eq!(refused.status, 400, "{}", refused.text());
    let message = "the model's chat template (chat_template.jinja) cannot be used: ";
    assert!(refused.text().contains(message), "{}", refused.text());
    let answer = stack.client().generate(&json!({"text": "What is 17 + 25?"})).await;
    assert_eq!(answer.json()["text"], "42");
    let warned = |line: &str| line.contains("cannot be used, so chats are refused").then_some(());
    stack.workers[0].logged("a warning", warned).await;
}

#[tokio::test]
async fn a_tokenizer_that_panics_costs_the_one_request() {
    let test = "a_tokenizer_that_panics_costs_the_one_request";
    let panicking = changed(test, |model| {
        // The crate divides a text into pieces of this length.
        edit(&model.join("tokenizer.json"), |tokenizer| {
            tokenizer["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0});
        });
    });
    let Some(panicking) = panicking else { return };
    let stack = serving(&panicking, &[]).await;
    let client = stack.client();
    for _ in 0..3 {
        let failed = client.generate(&json!({"text": "What is 17 + 25?"})).await;
        assert_eq!((failed.status, &failed.json()["error"]["code"]), (500, &json!("internal")), "{}", failed.text());
    }
    let name = client.get("/v1/models").await.json()["data"][0]["id"].clone();
    let ids = json!({"model": name, "prompt": [1, 300, 279, 280], "temperature": 0, "max_tokens": 3});
    assert_eq!(client.post("/v1/completions", &ids).await.status, 200, "the same worker serves on");
    assert_eq!(stack.metrics().await.sum("pillion_worker_reconnects_total"), 0);
}

#[tokio::test]
async fn prompts_are_bounded_by_the_positions_that_somebody_sets() {
    let test = "prompts_are_bounded_by_the_positions_that_somebody_sets";
    let Some(own) = changed(test, |_| {}) else { return };
    let stack = serving(&own, &["--max-positions", "40"]).await;
    let client = stack.client();
    let refused = client.generate(&json!({"text": "What is 17 + 25?", "max_new_tokens": 30})).await;
    assert_eq!(refused.status, 422);
    assert!(refused.text().contains("11 prompt tokens and 30 new tokens are more than the model's 40 positions"));
    assert_eq!(client.generate(&json!({"text": "What is 17 + 25?"})).await.json()["text"], "42");
    // Two million tokens: not one of them is looked for.
    let refused = client.generate(&json!({"text": "1".repeat(1_900_000)})).await;
    assert_eq!(refused.status, 422);
    assert!(refused.text().contains("the prompt has at least"), "{}", refused.text());
}

#[tokio::test]
async fn an_echoed_prompt_and_its_answer_are_one_text() {
    let test = "an_echoed_prompt_and_its_answer_are_one_text";
    let Some(own) = changed(test, |_| {}) else { return };
    let stack = serving(&own, &[]).await;
    let client = stack.client();
    let name = client.get("/v1/models").await.json()["data"][0]["id"].clone();
    let body =
        |prompt: &str| json!({"model": name, "prompt": prompt, "temperature": 0, "echo": true, "max_tokens": 20});
    // The second number begins with a space, which the tokenizer's decoder strips from what it takes for a beginning.
    for (prompt, text) in
        [("Count from 3 to 6.", "Count from 3 to 6.3 4 5 6"), ("Count from 3 to 6.3", "Count from 3 to 6.3 4 5 6")]
    {
        let answer = client.post("/v1/completions", &body(prompt)).await.json();
        assert_eq!(answer["choices"][0]["text"], text, "{answer}");
    }
    let mut stopping = body("Count from 3 to 6.3");
    stopping["stop"] = json!(" 4");
    let answer = client.post("/v1/completions", &stopping).await.json();
    assert_eq!(answer["choices"][0]["text"], "Count from 3 to 6.3", "{answer}");
}
