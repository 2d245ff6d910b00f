//! A model's chat template: how it wants a chat to be written.
//!
//! Templates are Jinja's, as Hugging Face's tokenizers use them: in `chat_template.jinja`, or as `chat_template` in
//! `tokenizer_config.json`. A model that has neither gets a plain one.

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use pillion_protocol::frame::Message;
use serde_json::Map;

use crate::model::file::{ModelError, optional_text};
use crate::model::tokenizer_config::{FILE as CONFIG, Templates, TokenizerConfig};

/// For models that have none: each message on a line behind its role, and then the assistant's turn.
const PLAIN: &str = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:";

const FILE: &str = "chat_template.jinja";
const NAME: &str = "chat";
/// The special tokens that templates know by these names.
const SPECIAL: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

/// A template, ready to be filled in, or what is wrong with it.
#[derive(Debug)]
pub struct Template {
    environment: Result<Environment<'static>, String>,
    special: Vec<(&'static str, String)>,
    /// The file that it was in; none for the plain one.
    file: Option<&'static str>,
}

impl Template {
    /// The template of the model in this directory.
    ///
    /// # Errors
    /// A file cannot be read. One that holds no template that can be used is refused when a chat comes.
    pub(super) fn load(directory: &Path, config: &TokenizerConfig) -> Result<Self, ModelError> {
        let (file, source) = match (optional_text(&directory.join(FILE))?, &config.chat_template) {
            (Some(source), _) => (Some(FILE), Ok(source)),
            (None, Some(Templates::One(source))) => (Some(CONFIG), Ok(source.clone())),
            (None, Some(Templates::Named(all))) => {
                let default = all.iter().find(|named| named.name == "default").map(|named| named.template.clone());
                (Some(CONFIG), default.ok_or_else(|| "there are several, but none is named \"default\"".to_owned()))
            }
            (None, None) => (None, Ok(PLAIN.to_owned())),
        };
        let environment = source.and_then(|source| environment(&source).map_err(|error| told(&error)));
        let special = SPECIAL.map(|name| (name, config.special(name).unwrap_or_default().to_owned())).to_vec();
        Ok(Self { environment, special, file })
    }

    /// The plain one.
    #[cfg(test)]
    pub(super) fn plain() -> Self {
        Self { file: None, ..Self::of(PLAIN) }
    }

    /// That of a file of its own.
    #[cfg(test)]
    pub(super) fn of(source: &str) -> Self {
        let environment = environment(source).map_err(|error| told(&error));
        Self { environment, special: vec![("bos_token", "<s>".to_owned())], file: Some(FILE) }
    }

    /// The file that it was in, if it is the model's own.
    pub fn file(&self) -> Option<&'static str> {
        self.file
    }

    /// Whether it is the one for models that have none.
    pub fn is_plain(&self) -> bool {
        self.file.is_none()
    }

    /// Why it cannot be used, if it cannot.
    pub fn problem(&self) -> Option<&str> {
        self.environment.as_ref().err().map(String::as_str)
    }

    /// The chat as a text, with the beginning of the assistant's answer. `kwargs` are variables beside the messages.
    ///
    /// # Errors
    /// The template cannot be used, refuses the messages, or cannot be filled in: why.
    pub(super) fn render(
        &self,
        messages: &[Message],
        kwargs: &Map<String, serde_json::Value>,
    ) -> Result<String, String> {
        let environment = self.environment.as_ref().map_err(|problem| {
            let file = self.file.unwrap_or(FILE);
            format!("the model's chat template ({file}) cannot be used: {problem}")
        })?;
        let said = |message: &Message| context! { role => &message.role, content => &message.content };
        let mut variables = self.special.iter().map(|(name, token)| ((*name).to_owned(), Value::from(token.as_str())));
        let mut all: std::collections::BTreeMap<String, Value> = variables.by_ref().collect();
        all.extend(["tools", "documents"].map(|name| (name.to_owned(), Value::from(()))));
        all.insert("add_generation_prompt".to_owned(), true.into());
        all.extend(kwargs.iter().map(|(name, value)| (name.clone(), Value::from(Serde(value)))));
        all.insert("messages".to_owned(), messages.iter().map(said).collect::<Vec<Value>>().into());
        let fill = || environment.get_template(NAME)?.render(Value::from(all));
        fill().map_err(|error| format!("the model's chat template does not take these messages: {}", told(&error)))
    }
}

/// As Hugging Face sets Jinja up.
fn environment(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| -> Result<String, Error> {
        let now = jiff::fmt::strtime::format(&format, &jiff::Zoned::now());
        now.map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}")))
    });
    // Nothing can be gone through like a list of nothing, but to Jinja it is none.
    environment.add_test("iterable", |value: Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_template_owned(NAME, without_generation_blocks(source))?;
    Ok(environment)
}

/// `{% generation %}` marks what the assistant said, for training; to what is rendered it means nothing.
fn without_generation_blocks(source: &str) -> String {
    let mut all = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, block) = rest.split_at(at);
        let end = block.find("%}").map_or(block.len(), |end| end + 2);
        let (block, after) = block.split_at(end);
        let word = block.trim_matches(|c: char| "{%-+}".contains(c) || c.is_whitespace());
        all.push_str(before);
        match word {
            "generation" => all.push_str(&block.replace(word, "if true")),
            "endgeneration" => all.push_str(&block.replace(word, "endif")),
            _ => all.push_str(block),
        }
        rest = after;
    }
    all + rest
}

fn told(error: &Error) -> String {
    match (error.detail(), error.line()) {
        (Some(detail), _) if error.kind() == ErrorKind::InvalidOperation => detail.to_owned(),
        (_, Some(line)) => format!("{error} (line {line})"),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn said(role: &str, content: &str) -> Message {
        Message { role: role.to_owned(), content: content.to_owned() }
    }

    fn chat() -> Vec<Message> {
        vec![said("system", "Be brief."), said("user", " 2+3? "), said("assistant", "5"), said("user", "And 4?")]
    }

    fn render(source: &str, messages: &[Message]) -> Result<String, String> {
        Template::of(source).render(messages, &Map::new())
    }

    #[test]
    fn a_model_without_a_template_gets_a_plain_one() {
        let text = Template::plain().render(&chat(), &Map::new()).unwrap();
        assert_eq!(text, "system: Be brief.\nuser:  2+3? \nassistant: 5\nuser: And 4?\nassistant:");
    }

    #[test]
    fn templates_use_what_jinja_and_python_have() {
        // In the manner of those that come with models: blocks that leave no lines, methods of Python's strings, a namespace.
        let source = "{%- set ns = namespace(last='') %}\n{{ bos_token }}{% for message in messages %}\n    \
            {% if message['role'] not in ['system', 'user', 'assistant'] %}\n    \
            {{ raise_exception('Unknown role: ' + message['role']) }}\n    {% endif %}\n\
            <|im_start|>{{ message['role'].upper() }}\n{{ message['content'].strip() }}<|im_end|>\n\
            {% set ns.last = message.role %}{% endfor %}\n\
            {% if add_generation_prompt and ns.last != 'assistant' %}<|im_start|>assistant\n{% endif %}";
        let text = render(source, &chat()[1..3]).unwrap();
        assert_eq!(text, "<s><|im_start|>USER\n2+3?<|im_end|>\n<|im_start|>ASSISTANT\n5<|im_end|>\n");
        let refused = render(source, &[said("tool", "x")]).unwrap_err();
        assert!(refused.ends_with(": Unknown role: tool"), "{refused}");
    }

    #[test]
    fn what_is_marked_for_training_is_rendered_as_all_else() {
        let source = "{% for m in messages %}{%- if m.role == 'assistant' %}{%- generation -%} {{ m.content }}! \
            {%- endgeneration %}{% else %}{{ m.content }}{% endif %}\n{%endfor%}{% generation %}{% endgeneration %}";
        assert_eq!(render(source, &chat()[2..]).unwrap(), "5!And 4?");
    }

    #[test]
    fn the_date_is_todays() {
        let text = render("{{ strftime_now('%Y-%m-%d %B') }}", &[]).unwrap();
        assert_eq!(text, jiff::Zoned::now().strftime("%Y-%m-%d %B").to_string());
        assert!(render("{{ strftime_now('%') }}", &[]).unwrap_err().contains("strftime_now"));
    }

    #[test]
    fn there_are_no_tools_and_what_a_client_tells_arrives() {
        let source = "{% if tools is none and documents is none and tools is not iterable %}none{% endif %}\
            {% if enable_thinking is defined and enable_thinking is false %} no thinking{% endif %}";
        assert_eq!(render(source, &[]).unwrap(), "none");
        let kwargs = serde_json::from_str(r#"{"enable_thinking": false}"#).unwrap();
        assert_eq!(Template::of(source).render(&[], &kwargs).unwrap(), "none no thinking");
    }

    /// Published templates, filled in by transformers' own code: `tests/models/run` writes the cases and names their file. One
    /// whose date has changed since is not compared.
    #[test]
    fn published_templates_are_rendered_as_by_transformers() {
        #[derive(serde::Deserialize)]
        struct Case {
            name: String,
            template: String,
            messages: Vec<Message>,
            kwargs: Map<String, serde_json::Value>,
            rendered: Option<String>,
        }
        let Some(file) = std::env::var_os("PILLION_TEST_TEMPLATES") else { return };
        let cases: Vec<Case> = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        let mut faults = std::collections::BTreeMap::new();
        let mut equal = 0;
        for case in &cases {
            let rendered = Template::of(&case.template).render(&case.messages, &case.kwargs);
            match (&rendered, &case.rendered) {
                (Ok(ours), Some(theirs)) if ours == theirs => equal += 1,
                (Err(_), None) => equal += 1,
                // They go through the tools though there are none: to Jinja an error, here as if the list were empty.
                (Ok(_), None) if case.name.contains("tool_use") => {}
                _ => {
                    let (count, _) = faults.entry(&case.name).or_insert((0, (rendered.clone(), &case.rendered)));
                    *count += 1;
                }
            }
        }
        for (name, (count, (ours, theirs))) in &faults {
            eprintln!("{name}: {count} differ, such as {ours:?}, not {theirs:?}");
        }
        eprintln!("{equal} of {} cases are equal, {} templates differ", cases.len(), faults.len());
        assert!(faults.is_empty());
    }

    #[test]
    fn a_template_is_found_where_models_keep_it() {
        let folder = std::env::temp_dir().join(format!("pillion-template-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let load = |config: &str| Template::load(&folder, &serde_json::from_str(config).unwrap()).unwrap();
        let said = |template: &Template| template.render(&[said("user", "hello")], &Map::new());
        let plain = load("{}");
        assert_eq!((said(&plain).unwrap().as_str(), plain.file()), ("user: hello\nassistant:", None));
        let own = r#"{"bos_token": {"content": "<s>"}, "chat_template": "{{ bos_token }}{{ messages[0].content }}"}"#;
        assert_eq!((said(&load(own)).unwrap().as_str(), load(own).file()), ("<s>hello", Some(CONFIG)));
        let named = r#"{"chat_template": [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]}"#;
        assert_eq!(said(&load(named)).unwrap(), "yes");
        let nameless = load(r#"{"chat_template": [{"name": "rag", "template": "no"}]}"#);
        assert!(said(&nameless).unwrap_err().contains("none is named \"default\""));
        fs::write(folder.join(FILE), "from {{ 'its own file' }}").unwrap();
        assert_eq!((said(&load(own)).unwrap().as_str(), load(own).file()), ("from its own file", Some(FILE)));
        fs::write(folder.join(FILE), "{% if %}").unwrap();
        let error = said(&load(own)).unwrap_err();
        assert!(error.starts_with("the model's chat template (chat_template.jinja) cannot be used: "), "{error}");
        assert!(load(own).problem().is_some() && !load(own).is_plain());
        fs::remove_dir_all(&folder).unwrap();
    }
}
