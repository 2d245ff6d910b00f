//! Every family of decoders that CTranslate2 converts: a tiny model of each, with its kind of tokenizer and chat template,
//! answers as CTranslate2's Python package does (`tests/model/families.py` writes both): token ids, texts, ends, chats.
//!
//! `PILLION_TEST_FAMILIES` names another folder of such models, which `tests/models/run` makes with the real converter.

use std::path::{Path, PathBuf};

use pillion_protocol::frame::Prompt;
use pillion_tests::client::{Answer, Client};
use pillion_tests::folder::Folder;
use pillion_tests::reference::{families, python, skipped, worker};
use pillion_tests::say;
use pillion_tests::stack::Stack;
use pillion_tests::tap::Tap;
use serde_json::{Value, json};

const FAMILIES: &str = "PILLION_TEST_FAMILIES";
/// A difference of log-probabilities that rounding may decide, where the engine computes in float32.
const NEAR_TIE: f64 = 0.002;
/// The character for what is none.
const REPLACEMENT: char = '\u{fffd}';

/// What went wrong in one family, and what was looked at.
#[derive(Default)]
struct Report {
    faults: Vec<String>,
    answers: usize,
    texts: usize,
    chats: usize,
    ends: std::collections::BTreeSet<u64>,
}

impl Report {
    fn hold(&mut self, is_right: bool, fault: impl FnOnce() -> String) {
        if !is_right {
            self.faults.push(fault());
        }
    }

    /// Holds an answer against Python's.
    fn judge(&mut self, what: &str, expected: &Value, said: &Said) {
        let near = expected["margin"].as_f64().is_some_and(|margin| margin < NEAR_TIE);
        if near {
            return;
        }
        self.answers += 1;
        self.ends.extend(expected["end"].as_u64());
        let ids = expected["ids"].as_array().expect("ids");
        self.hold(said.prompt_tokens == expected["prompt_ids"].as_array().map_or(0, Vec::len), || {
            format!("{what}: {} prompt tokens, not those of {expected}", said.prompt_tokens)
        });
        self.hold(said.reason == expected["finish_reason"] && said.tokens == ids.len(), || {
            format!("{what}: ended by {} after {} tokens, not as {expected}", said.reason, said.tokens)
        });
        if let Some(text) = expected["answer"].as_str() {
            self.texts += 1;
            self.hold(said.text == text, || format!("{what}: {:?}, not {text:?} ({expected})", said.text));
        } else {
            self.hold(!ids.is_empty() || said.text.is_empty(), || format!("{what}: {:?} of no tokens", said.text));
        }
    }
}

/// An answer, however it was asked for.
#[derive(Clone, Debug, PartialEq)]
struct Said {
    text: String,
    reason: String,
    prompt_tokens: usize,
    tokens: usize,
}

fn count(value: &Value) -> usize {
    value.as_u64().and_then(|n| usize::try_from(n).ok()).expect("a count")
}

impl Said {
    fn of(text: &Value, reason: &Value, usage: &Value) -> Self {
        Self {
            text: text.as_str().expect("a text").to_owned(),
            reason: reason.as_str().expect("a reason").to_owned(),
            prompt_tokens: count(&usage["prompt_tokens"]),
            tokens: count(&usage["completion_tokens"]),
        }
    }
}

async fn whole(client: &Client, request: &Value) -> Result<Said, Answer> {
    let answer = client.generate(request).await;
    if answer.status != 200 {
        return Err(answer);
    }
    let body = answer.json();
    Ok(Said::of(&body["text"], &body["finish_reason"], &body["usage"]))
}

async fn streamed(client: &Client, request: &Value) -> Said {
    let mut text = String::new();
    let mut last = Value::Null;
    for event in client.events("/generate_stream", request).await.rest().await {
        last = event.json();
        text.push_str(last["text"].as_str().unwrap_or_default());
    }
    Said::of(&text.into(), &last["finish_reason"], &last["usage"])
}

async fn chat(client: &Client, request: &Value) -> Result<Said, Answer> {
    let answer = client.post("/v1/chat/completions", request).await;
    if answer.status != 200 {
        return Err(answer);
    }
    let body = answer.json();
    let choice = &body["choices"][0];
    Ok(Said::of(&choice["message"]["content"], &choice["finish_reason"], &body["usage"]))
}

async fn chat_streamed(client: &Client, request: &Value) -> Said {
    let mut request = request.clone();
    request["stream"] = json!(true);
    request["stream_options"] = json!({"include_usage": true});
    let (mut text, mut reason, mut usage) = (String::new(), Value::Null, Value::Null);
    for event in client.events("/v1/chat/completions", &request).await.rest().await {
        if event.data == "[DONE]" {
            break;
        }
        let event = event.json();
        text.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        if !event["choices"][0]["finish_reason"].is_null() {
            reason = event["choices"][0]["finish_reason"].clone();
        }
        if !event["usage"].is_null() {
            usage = event["usage"].clone();
        }
    }
    Said::of(&text.into(), &reason, &usage)
}

/// All at once, so that they share batches as far as they may.
async fn all<F: Future + Send + 'static>(asked: impl Iterator<Item = F>) -> Vec<F::Output>
where
    F::Output: Send,
{
    let tasks: Vec<_> = asked.map(tokio::spawn).collect();
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.push(task.await.expect("no client fails"));
    }
    outcomes
}

fn list(expected: &Value, name: &str) -> Vec<Value> {
    expected[name].as_array().cloned().unwrap_or_default()
}

async fn try_family(model: &Path, name: &str) -> Report {
    let text = std::fs::read_to_string(model.join("expected.json")).expect("what Python answered");
    let expected: Value = serde_json::from_str(&text).expect("JSON");
    let mut stack = Stack::proxy(&[]).await;
    let tap = Tap::between(&stack.folder().join("tap.sock"), &stack.socket());
    let flags = ["--model", model.to_str().expect("a plain path"), "--device", "cpu", "--compute-type", "float32"];
    stack.worker("pillion-worker", &[&flags[..], &["--threads", "1"]].concat(), tap.socket());
    stack.ready().await;
    let client = stack.client();
    let mut report = Report::default();
    completions(&client, &tap, &expected, &mut report).await;
    chats(&client, name, &expected, &mut report).await;
    for text in list(&expected, "refused") {
        let refused = client.generate(&json!({"text": text})).await;
        report.hold(refused.status == 422 && refused.text().contains("there is no token"), || {
            format!("{text} was answered with {}: {}", refused.status, refused.text())
        });
    }
    report
}

fn request(expected: &Value) -> Value {
    json!({"text": expected["text"], "max_new_tokens": expected["max_new_tokens"]})
}

async fn completions(client: &Client, tap: &Tap, expected: &Value, report: &mut Report) {
    let cases: Vec<Value> = [list(expected, "completions"), list(expected, "windowed")].concat();
    let asked = cases.iter().map(|case| {
        let (client, request) = (client.clone(), request(case));
        async move { whole(&client, &request).await.unwrap_or_else(|answer| panic!("{request}: {}", answer.text())) }
    });
    let wholes = all(asked).await;
    for (case, said) in cases.iter().zip(&wholes) {
        report.judge("whole", case, said);
        let rides = tap.rides();
        let prompt = Prompt::Text(case["text"].as_str().expect("a text").to_owned());
        let end = rides.iter().flat_map(pillion_tests::tap::Ride::members).find(|(member, _)| member.prompt == prompt);
        let ids = json!(end.expect("it rode").1.ids);
        let near = case["margin"].as_f64().is_some_and(|margin| margin < NEAR_TIE);
        report.hold(near || ids == case["ids"], || format!("the ids are {ids}, not those of {case}"));
    }
    let asked = cases.iter().map(|case| {
        let (client, request) = (client.clone(), request(case));
        async move { streamed(&client, &request).await }
    });
    for ((case, whole), stream) in cases.iter().zip(&wholes).zip(all(asked).await) {
        report.hold(stream == *whole, || format!("streamed {stream:?}, whole {whole:?}: {case}"));
    }
    // Two of one length, so that they would share a call: beyond a sliding window CTranslate2 answers the second wrongly.
    for (case, whole) in cases.iter().zip(&wholes).skip(list(expected, "completions").len()) {
        let mut twice = request(case);
        twice["text"] = json!([case["text"], case["text"]]);
        let answer = client.generate(&twice).await.json();
        report.hold(answer["text"] == json!([whole.text, whole.text]), || {
            format!("asked twice: {answer}, not {whole:?}")
        });
    }
    // The same prompts as ids, and a text in the answer that ends it there.
    for (case, whole) in cases.iter().zip(&wholes).filter(|(_, whole)| !whole.text.contains(REPLACEMENT)) {
        let ids = json!({"model": "any", "prompt": case["prompt_ids"], "max_tokens": case["max_new_tokens"],
                         "temperature": 0});
        let answer = client.post("/v1/completions", &with_model(client, ids).await).await.json();
        report.hold(answer["usage"]["completion_tokens"] == whole.tokens, || format!("by its ids {answer}: {case}"));
        let Some((at, stop)) = stop_string(&whole.text) else { continue };
        let mut stopping = request(case);
        stopping["stop"] = json!(stop);
        for said in [self::whole(client, &stopping).await.ok(), Some(streamed(client, &stopping).await)] {
            let is_right = said.as_ref().is_some_and(|said| said.text == whole.text[..at] && said.reason == "stop");
            report.hold(is_right, || format!("{stopping} gave {said:?}, of {:?}", whole.text));
        }
    }
}

/// Three characters from an answer's middle, or the space that it begins with, and where they are first found.
fn stop_string(text: &str) -> Option<(usize, String)> {
    let characters: Vec<char> = text.chars().collect();
    let from = if text.starts_with(' ') { 0 } else { characters.len() / 2 };
    let stop: String = characters.get(from..(from + 3).min(characters.len()))?.iter().collect();
    let at = text.find(&stop)?;
    (!stop.is_empty()).then_some((at, stop))
}

async fn with_model(client: &Client, mut request: Value) -> Value {
    request["model"] = client.get("/v1/models").await.json()["data"][0]["id"].clone();
    request
}

async fn chats(client: &Client, name: &str, expected: &Value, report: &mut Report) {
    for case in list(expected, "chats") {
        let mut request = json!({"messages": case["messages"], "temperature": 0, "max_tokens": 24});
        if let Some(tokens) = case["max_new_tokens"].as_u64() {
            request["max_tokens"] = json!(tokens);
        }
        if !case["chat_template_kwargs"].is_null() {
            request["chat_template_kwargs"] = case["chat_template_kwargs"].clone();
        }
        let request = with_model(client, request).await;
        report.chats += 1;
        match chat(client, &request).await {
            Err(answer) => {
                let told = answer.text().contains("does not take these messages");
                report.hold(case["error"] == true && answer.status == 400 && told, || {
                    format!("{request} was refused: {}", answer.text())
                });
            }
            Ok(said) => {
                report.hold(case["error"] != true, || format!("{name} answers what its template refuses: {request}"));
                report.judge("chat", &case, &said);
                let stream = chat_streamed(client, &request).await;
                report.hold(stream == said, || format!("a chat streamed {stream:?}, whole {said:?}"));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_family_answers_as_its_reference_does() {
    let test = "every_family_answers_as_its_reference_does";
    let given = std::env::var_os(FAMILIES).map(PathBuf::from);
    if skipped(test, &[worker(), given.clone().map_or_else(python, Ok)]) {
        return;
    }
    let own = Folder::new();
    let folder = given.unwrap_or_else(|| {
        families(own.path());
        own.path().to_owned()
    });
    let mut models: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("a folder of models")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.join("expected.json").is_file())
        .collect();
    models.sort();
    assert!(!models.is_empty(), "no model in {}", folder.display());
    let mut faults = 0;
    for model in &models {
        let name = model.file_name().unwrap_or_default().to_string_lossy();
        let report = try_family(model, &name).await;
        let Report { answers, texts, chats, ends, .. } = &report;
        let verdict = if report.faults.is_empty() { "equal" } else { "WRONG" };
        say(&format!("{name}: {verdict}: {answers} answers, {texts} texts, {chats} chats, ended by {ends:?}"));
        report.faults.iter().for_each(|fault| say(&format!("{name}: {fault}")));
        faults += report.faults.len();
    }
    assert_eq!(faults, 0, "answers that are not the models'");
}
