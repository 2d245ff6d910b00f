//! The endpoints of the OpenAI API.

mod expect;

use expect::{carries_on, error};
use hyper::Method;
use pillion_tests::client::Client;
use pillion_tests::events::Event;
use pillion_tests::fake_worker::echo::expected;
use pillion_tests::stack::Stack;
use pillion_tests::tap::Tap;
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn completion(prompt: impl Into<Value>) -> Value {
    json!({"model": "simulated", "prompt": prompt.into()})
}

fn chat(content: &str) -> Value {
    json!({"model": "simulated", "messages": [{"role": "user", "content": content}]})
}

fn with(mut body: Value, more: Value) -> Value {
    let Value::Object(more) = more else { panic!("fields") };
    body.as_object_mut().unwrap().extend(more);
    body
}

/// The events of a stream, without the last one, which is `[DONE]`.
async fn events(client: &Client, path: &str, body: Value) -> Vec<Value> {
    let mut events = client.events(path, &with(body, json!({"stream": true}))).await.rest().await;
    assert_eq!(events.pop().map(|event| event.data).as_deref(), Some("[DONE]"));
    assert!(events.iter().all(|event| event.name.is_empty()), "{events:?}");
    events.iter().map(Event::json).collect()
}

#[tokio::test]
async fn a_completion_has_openais_format() {
    let stack = Stack::simulated(&[], &[]).await;
    let client = stack.client();
    let body = client.post(COMPLETIONS, &completion("one two three")).await.json();
    assert!(body["id"].as_str().unwrap().starts_with("cmpl-"), "{body}");
    assert!(body["created"].as_u64().unwrap() > 1_700_000_000, "{body}");
    assert_eq!((&body["object"], &body["model"]), (&json!("text_completion"), &json!("simulated")));
    let choice = json!({"text": "three two one", "index": 0, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(body["choices"], json!([choice]));
    assert_eq!(body["usage"], json!({"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}));
    let body = client.post(COMPLETIONS, &with(completion("one two three"), json!({"max_tokens": 2}))).await.json();
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    let long = "w ".repeat(100);
    let body = client.post(COMPLETIONS, &completion(long)).await.json();
    assert_eq!(body["usage"]["completion_tokens"], 16, "OpenAI's default");
}

#[tokio::test]
async fn a_prompt_may_be_a_list_or_token_ids_and_may_have_several_answers() {
    let stack = Stack::simulated(&[], &[]).await;
    let client = stack.client();
    let texts = async |body: Value| {
        let body = client.post(COMPLETIONS, &body).await.json();
        let texts = body["choices"].as_array().unwrap().iter().map(|choice| choice["text"].clone());
        (texts.collect::<Vec<_>>(), body["usage"]["prompt_tokens"].clone())
    };
    assert_eq!(texts(completion(json!(["a b", "c d e"]))).await, (vec![json!("b a"), json!("e d c")], json!(5)));
    assert_eq!(texts(completion(json!([7, 8]))).await, (vec![json!("8 7")], json!(2)));
    assert_eq!(texts(completion(json!([[7, 8], [9]]))).await, (vec![json!("8 7"), json!("9")], json!(3)));
    let twice = with(completion(json!(["a b", "c"])), json!({"n": 2, "echo": true}));
    let expected = vec![json!("a bb a"), json!("a bb a"), json!("cc"), json!("cc")];
    assert_eq!(texts(twice).await, (expected, json!(3)), "a prompt counts once, however many answers it has");
}

#[tokio::test]
async fn a_completion_may_be_streamed() {
    let stack = Stack::simulated(&[], &["--step-cost", "1ms"]).await;
    let client = stack.client();
    let body = with(completion(json!(["a b c", "d e"])), json!({"echo": true}));
    let events = events(&client, COMPLETIONS, body).await;
    let mut texts = [String::new(), String::new()];
    for event in &events {
        assert_eq!((&event["object"], event.get("usage")), (&json!("text_completion"), None));
        let index = usize::try_from(event["choices"][0]["index"].as_u64().unwrap()).unwrap();
        texts[index].push_str(event["choices"][0]["text"].as_str().unwrap());
    }
    assert_eq!(texts, ["a b cc b a", "d ee d"]);
    assert_eq!(events.iter().filter(|event| event["choices"][0]["finish_reason"] == "stop").count(), 2);
}

#[tokio::test]
async fn a_chat_is_answered_and_streamed() {
    let stack = Stack::simulated(&[], &["--step-cost", "1ms"]).await;
    let client = stack.client();
    let body = client.post(CHAT, &chat("hello there")).await.json();
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"), "{body}");
    assert_eq!(body["object"], "chat.completion");
    let message = json!({"role": "assistant", "content": "there hello", "refusal": null});
    let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(body["choices"], json!([choice]));
    let options = json!({"n": 2, "stream_options": {"include_usage": true}});
    let events = events(&client, CHAT, with(chat("one two three"), options)).await;
    let ids: Vec<_> = events.iter().map(|event| &event["id"]).collect();
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk"));
    let of = |index: usize| events.iter().filter(move |event| event["choices"][0]["index"] == index);
    for index in 0..2 {
        let deltas: Vec<_> = of(index).map(|event| event["choices"][0]["delta"].clone()).collect();
        assert_eq!(deltas[0], json!({"role": "assistant", "content": ""}));
        assert_eq!(deltas.last(), Some(&json!({})));
        let said: String = deltas.iter().filter_map(|delta| delta["content"].as_str()).collect();
        assert_eq!(said, "three two one");
        assert_eq!(of(index).next_back().unwrap()["choices"][0]["finish_reason"], "stop");
    }
    let (last, before) = events.split_last().unwrap();
    assert!(before.iter().all(|event| event["usage"].is_null() && event.get("usage").is_some()));
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"], json!({"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}));
}

#[tokio::test]
async fn messages_may_have_parts_and_different_roles() {
    let stack = Stack::simulated(&[], &[]).await;
    let parts = json!([{"type": "text", "text": "of "}, {"type": "text", "text": "parts"}]);
    let messages = json!([
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "hi", "name": "bob"},
        {"role": "assistant", "content": "yes", "refusal": null},
        {"role": "user", "content": parts},
    ]);
    let body = stack.client().post(CHAT, &json!({"model": "simulated", "messages": messages})).await.json();
    assert_eq!(body["choices"][0]["message"]["content"], "parts of yes hi brief be");
}

#[tokio::test]
async fn without_a_limit_an_answer_may_fill_the_positions_that_the_prompt_leaves() {
    let stack = Stack::simulated(&[], &["--positions", "10"]).await;
    let client = stack.client();
    let body = client.post(CHAT, &with(chat("one two three"), json!({"min_tokens": 7}))).await.json();
    assert_eq!(body["usage"], json!({"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}));
    let answer = client.post(CHAT, &with(chat("one two three"), json!({"max_tokens": 8}))).await;
    assert_eq!(error(&answer, 400)["param"], "max_completion_tokens");
    // The default of 16 shrinks to what fits. A given limit that does not fit is refused, and so is a prompt without room.
    let answer = client.post(COMPLETIONS, &completion("w ".repeat(9))).await;
    assert_eq!(answer.json()["usage"]["completion_tokens"], 1, "{}", answer.text());
    let given = with(completion("w ".repeat(9)), json!({"max_tokens": 2}));
    assert_eq!(error(&client.post(COMPLETIONS, &given).await, 400)["param"], "max_tokens");
    assert_eq!(error(&client.post(COMPLETIONS, &completion("w ".repeat(10))).await, 400)["param"], "max_tokens");
    let answer = client.generate(&json!({"text": "w ".repeat(9)})).await;
    assert_eq!(answer.json()["usage"]["completion_tokens"], 1, "{}", answer.text());
    let answer = client.generate(&json!({"text": "w ".repeat(9), "max_new_tokens": 2})).await;
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (422, &json!("max_new_tokens")));
}

#[tokio::test]
async fn sampling_options_are_translated_to_those_of_the_engine() {
    let mut stack = Stack::proxy(&[]).await;
    let tap = Tap::between(&stack.folder().join("tap.sock"), &stack.socket());
    stack.worker("simulated-worker", &["--vocabulary", "2000"], tap.socket());
    stack.ready().await;
    let client = stack.client();
    for (asked, (topk, topp, temperature)) in [
        (json!({}), (0, 1.0, 1.0)),
        (json!({"temperature": 0, "top_p": 0.5}), (1, 1.0, 1.0)),
        (json!({"temperature": 1.5, "top_p": 0}), (1, 1.0, 1.0)),
        (json!({"temperature": 0.5}), (0, 1.0, 0.5)),
        (json!({"top_p": 0.5}), (1024, 0.5, 1.0)),
        (json!({"top_p": 0.5, "top_k": 40}), (40, 0.5, 1.0)),
        (json!({"top_k": 9999}), (2000, 1.0, 1.0)),
    ] {
        assert_eq!(client.post(COMPLETIONS, &with(completion("a"), asked.clone())).await.status, 200, "{asked}");
        let options = tap.rides().last().unwrap().batch.options;
        let seen = (options.sampling_topk, options.sampling_topp, options.sampling_temperature);
        assert_eq!(seen, (topk, topp, temperature), "{asked}");
    }
}

#[tokio::test]
async fn an_unsupported_option_is_refused_by_name_unless_its_value_is_neutral() {
    let stack = Stack::simulated(&[], &[]).await;
    let client = stack.client();
    let neutral = json!({
        "user": "u", "metadata": {"a": "b"}, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "n": 1,
        "seed": null, "store": false, "stop": null, "logprobs": null
    });
    assert_eq!(client.post(COMPLETIONS, &with(completion("a"), neutral.clone())).await.status, 200);
    let more = json!({"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "logprobs": false});
    assert_eq!(client.post(CHAT, &with(with(chat("a"), neutral), more)).await.status, 200);
    for (path, field, value) in [
        (COMPLETIONS, "seed", json!(1)),
        (COMPLETIONS, "logprobs", json!(1)),
        (COMPLETIONS, "suffix", json!("x")),
        (COMPLETIONS, "best_of", json!(2)),
        (COMPLETIONS, "logit_bias", json!({"1": 1})),
        (COMPLETIONS, "frequency_penalty", json!(0.5)),
        (CHAT, "seed", json!(1)),
        (CHAT, "tools", json!([{"type": "function"}])),
        (CHAT, "tool_choice", json!("required")),
        (CHAT, "response_format", json!({"type": "json_object"})),
        (CHAT, "logprobs", json!(true)),
        (CHAT, "modalities", json!(["audio"])),
    ] {
        let plain = if path == CHAT { chat("a") } else { completion("a") };
        let answer = client.post(path, &with(plain, json!({field: value}))).await;
        let error = error(&answer, 400);
        assert_eq!((&error["param"], &error["code"]), (&json!(field), &json!("unsupported")), "{error}");
    }
    carries_on(&client).await;
}

#[tokio::test]
async fn an_error_names_the_invalid_field() {
    let stack = Stack::simulated(&["--max-queue", "8"], &[]).await;
    let client = stack.client();
    for (path, change, param) in [
        (COMPLETIONS, json!({"prompt": null}), "prompt"),
        (COMPLETIONS, json!({"prompt": ""}), "prompt"),
        (COMPLETIONS, json!({"prompt": []}), "prompt"),
        (COMPLETIONS, json!({"prompt": [[]]}), "prompt"),
        (COMPLETIONS, json!({"prompt": [1, "a"]}), "prompt"),
        (COMPLETIONS, json!({"prompt": [-1]}), "prompt"),
        (COMPLETIONS, json!({"prompt": ["a", 1]}), "prompt"),
        (COMPLETIONS, json!({"prompt": ["a", "a", "a", "a", "a"], "n": 2}), "n"),
        (COMPLETIONS, json!({"max_tokens": 0}), "max_tokens"),
        (COMPLETIONS, json!({"temperature": 2.1}), "temperature"),
        (COMPLETIONS, json!({"top_p": -0.1}), "top_p"),
        (COMPLETIONS, json!({"n": 0}), "n"),
        (COMPLETIONS, json!({"min_tokens": 17, "max_tokens": 16}), "min_tokens"),
        (COMPLETIONS, json!({"stream": 1}), "stream"),
        (COMPLETIONS, json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (COMPLETIONS, json!({"echo": true, "prompt": [1]}), "echo"),
        (COMPLETIONS, json!({"modle": "x"}), "modle"),
        (COMPLETIONS, json!({"model": 5}), "model"),
        (COMPLETIONS, json!({"model": null}), "model"),
        (CHAT, json!({"messages": null}), "messages"),
        (CHAT, json!({"messages": []}), "messages"),
        (CHAT, json!({"messages": ["a"]}), "messages[0]"),
        (CHAT, json!({"messages": [{"role": "robot", "content": "a"}]}), "messages[0].role"),
        (CHAT, json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (CHAT, json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "messages[0].content"),
        (CHAT, json!({"messages": [{"role": "user", "content": "a", "tool_calls": []}]}), "messages[0].tool_calls"),
        (CHAT, json!({"max_tokens": 3, "max_completion_tokens": 4}), "max_tokens"),
        (CHAT, json!({"n": 9}), "n"),
    ] {
        let plain = if path == CHAT { chat("a") } else { completion("a") };
        let answer = client.post(path, &with(plain, change.clone())).await;
        assert_eq!(error(&answer, 400)["param"], param, "{change}");
    }
    error(&client.send(Method::POST, CHAT, &[], "{").await, 400);
    error(&client.get(CHAT).await, 405);
}

#[tokio::test]
async fn models_are_listed_and_an_unknown_one_is_404() {
    let mut stack = Stack::simulated(&[], &["--model-name", "org/first"]).await;
    let client = stack.client();
    stack.simulated_worker(&["--model-name", "second", "--positions", "8"]);
    stack.metric("pillion_workers_connected", |workers| workers == 2).await;
    let list = client.get("/v1/models").await.json();
    let names: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect();
    assert_eq!((&list["object"], names), (&json!("list"), vec![json!("org/first"), json!("second")]));
    for path in ["/v1/models/org/first", "/v1/models/org%2Ffirst"] {
        let model = client.get(path).await.json();
        assert_eq!((&model["id"], &model["object"]), (&json!("org/first"), &json!("model")));
    }
    let missing = client.get("/v1/models/third").await;
    assert_eq!(error(&missing, 404)["code"], "model_not_found");
    error(&client.post("/v1/models", &json!({})).await, 405);
    let missing = client.post(COMPLETIONS, &json!({"model": "third", "prompt": "a"})).await;
    assert_eq!(error(&missing, 404)["param"], "model");
    // Each request goes to its own model. The second model has too few positions for this one.
    for _ in 0..10 {
        let ask = async |model: &str| {
            client.post(COMPLETIONS, &json!({"model": model, "prompt": "a b c", "max_tokens": 10})).await.status
        };
        assert_eq!((ask("org/first").await, ask("second").await), (200, 400));
    }
}

#[tokio::test]
async fn while_no_model_is_known_a_request_waits_for_one() {
    let mut stack = Stack::proxy(&[]).await;
    let client = stack.client();
    let waiting = tokio::spawn(async move { client.post(CHAT, &chat("patience pays")).await });
    stack.metric("pillion_queue_depth", |depth| depth == 1).await;
    stack.simulated_worker(&[]);
    let answer = waiting.await.unwrap().json();
    assert_eq!(answer["choices"][0]["message"]["content"], expected("patience pays", 9, 0));
}

#[tokio::test]
async fn an_error_in_a_stream_has_the_form_that_openais_clients_expect() {
    let flags = ["--fault", "close", "--fault-step", "1"];
    let stack = Stack::simulated(&[], &flags).await;
    let client = stack.client();
    // With repetition_penalty, no worker can continue the answer of another.
    let body = with(chat("one two"), json!({"stream": true, "repetition_penalty": 1.5}));
    let answer = client.events(CHAT, &body).await.rest().await;
    let error =
        answer.iter().map(|event| (event.name.clone(), event.data.clone())).find(|(_, data)| data.contains("error"));
    let (name, data) = error.unwrap_or_else(|| panic!("{answer:?}"));
    assert!(name.is_empty() && data.starts_with("{\"error\":{\"message\""), "{data}");
    carries_on(&client).await;
}

#[tokio::test]
async fn one_failed_answer_fails_the_request_and_a_deadline_is_a_length() {
    let stack = Stack::simulated(&[], &["--step-cost", "20ms"]).await;
    let client = stack.client();
    let failed = client.post(COMPLETIONS, &completion(json!(["a b", "!fail:engine"]))).await;
    assert_eq!(error(&failed, 502)["code"], "worker_failed");
    let long = json!({"min_tokens": 1000, "max_tokens": 1000, "timeout_ms": 300});
    let cut = client.post(COMPLETIONS, &with(completion("a b c"), long)).await.json();
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    assert!((1..1000).contains(&cut["usage"]["completion_tokens"].as_i64().unwrap()), "{cut}");
}
