//! A model's chat template, which writes a chat as the text that the model was trained on.
//!
//! Templates are written in Jinja, as Hugging Face's tokenizers use them. A template is in `chat_template.jinja`, or in the field
//! `chat_template` of `tokenizer_config.json`. A model that has neither gets a plain template.

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use pillion_protocol::frame::Message;
use serde_json::Map;

use crate::model::file::{ModelError, optional_text};
use crate::model::tokenizer_config::{FILE as CONFIG, Templates, TokenizerConfig};

/// The plain template: each message on a line after its role, then the assistant's role.
const PLAIN: &str = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:";

const FILE: &str = "chat_template.jinja";
const NAME: &str = "chat";
/// The names by which templates use special tokens.
const SPECIAL: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

/// A template that is ready to be rendered, or the reason why it cannot be used.
#[derive(Debug)]
pub struct Template {
    environment: Result<Environment<'static>, String>,
    special: Vec<(&'static str, String)>,
    /// The template's file; `None` for the plain template.
    file: Option<&'static str>,
}

impl Template {
    /// The template of the model in this directory.
    ///
    /// # Errors
    /// A file cannot be read. If a file holds no usable template, only chats are refused.
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
        let environment = source.and_then(|source| environment(&source).map_err(|error| describe(&error)));
        let special = SPECIAL.map(|name| (name, config.special(name).unwrap_or_default().to_owned())).to_vec();
        Ok(Self { environment, special, file })
    }

    /// The plain template.
    #[cfg(test)]
    pub(super) fn plain() -> Self {
        Self { file: None, ..Self::of(PLAIN) }
    }

    /// The template of a `chat_template.jinja`.
    #[cfg(test)]
    pub(super) fn of(source: &str) -> Self {
        let environment = environment(source).map_err(|error| describe(&error));
        Self { environment, special: vec![("bos_token", "<s>".to_owned())], file: Some(FILE) }
    }

    /// The template's file; `None` for the plain template.
    pub fn file(&self) -> Option<&'static str> {
        self.file
    }

    /// Whether this is the plain template.
    pub fn is_plain(&self) -> bool {
        self.file.is_none()
    }

    /// Why the template cannot be used, if so.
    pub fn problem(&self) -> Option<&str> {
        self.environment.as_ref().err().map(String::as_str)
    }

    /// Renders a chat up to the beginning of the assistant's answer. `kwargs` are variables besides the messages.
    ///
    /// # Errors
    /// The template cannot be used, refuses the messages, or fails: the reason.
    pub(super) fn render(
        &self,
        messages: &[Message],
        kwargs: &Map<String, serde_json::Value>,
    ) -> Result<String, String> {
        let environment = self.environment.as_ref().map_err(|problem| {
            let file = self.file.unwrap_or(FILE);
            format!("the model's chat template ({file}) cannot be used: {problem}")
        })?;
        let variables_of = |message: &Message| context! { role => &message.role, content => &message.content };
        let mut variables = self.special.iter().map(|(name, token)| ((*name).to_owned(), Value::from(token.as_str())));
        let mut all: std::collections::BTreeMap<String, Value> = variables.by_ref().collect();
        all.extend(["tools", "documents"].map(|name| (name.to_owned(), Value::from(()))));
        all.insert("add_generation_prompt".to_owned(), true.into());
        all.extend(kwargs.iter().map(|(name, value)| (name.clone(), Value::from(Serde(value)))));
        all.insert("messages".to_owned(), messages.iter().map(variables_of).collect::<Vec<Value>>().into());
        let render = || environment.get_template(NAME)?.render(Value::from(all));
        render()
            .map_err(|error| format!("the model's chat template does not take these messages: {}", describe(&error)))
    }
}

/// Jinja with the settings and functions of Hugging Face.
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
    // minijinja can iterate over none; Jinja cannot, so its test `iterable` is false for none.
    environment.add_test("iterable", |value: Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_template_owned(NAME, without_generation_blocks(source))?;
    Ok(environment)
}

/// Replaces `{% generation %}` blocks, which mark the assistant's text for training and do not change what is rendered.
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

fn describe(error: &Error) -> String {
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

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.to_owned(), content: content.to_owned() }
    }

    fn chat() -> Vec<Message> {
        vec![
            message("system", "Be brief."),
            message("user", " 2+3? "),
            message("assistant", "5"),
            message("user", "And 4?"),
        ]
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
        // Like templates of real models: blocks that leave no lines, methods of Python strings, a namespace.
        let source = "{%- set ns = namespace(last='') %}\n{{ bos_token }}{% for message in messages %}\n    \
            {% if message['role'] not in ['system', 'user', 'assistant'] %}\n    \
            {{ raise_exception('Unknown role: ' + message['role']) }}\n    {% endif %}\n\
            <|im_start|>{{ message['role'].upper() }}\n{{ message['content'].strip() }}<|im_end|>\n\
            {% set ns.last = message.role %}{% endfor %}\n\
            {% if add_generation_prompt and ns.last != 'assistant' %}<|im_start|>assistant\n{% endif %}";
        let text = render(source, &chat()[1..3]).unwrap();
        assert_eq!(text, "<s><|im_start|>USER\n2+3?<|im_end|>\n<|im_start|>ASSISTANT\n5<|im_end|>\n");
        let refused = render(source, &[message("tool", "x")]).unwrap_err();
        assert!(refused.ends_with(": Unknown role: tool"), "{refused}");
    }

    #[test]
    fn text_marked_for_training_is_rendered_normally() {
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
    fn there_are_no_tools_and_variables_of_the_client_arrive() {
        let source = "{% if tools is none and documents is none and tools is not iterable %}none{% endif %}\
            {% if enable_thinking is defined and enable_thinking is false %} no thinking{% endif %}";
        assert_eq!(render(source, &[]).unwrap(), "none");
        let kwargs = serde_json::from_str(r#"{"enable_thinking": false}"#).unwrap();
        assert_eq!(Template::of(source).render(&[], &kwargs).unwrap(), "none no thinking");
    }

    /// Compares with published templates that transformers itself rendered. `tests/models/run` writes the cases and names their
    /// file.
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
                // These iterate over tools that are none: an error in Jinja, an empty list here.
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
        let rendered = |template: &Template| template.render(&[message("user", "hello")], &Map::new());
        let plain = load("{}");
        assert_eq!((rendered(&plain).unwrap().as_str(), plain.file()), ("user: hello\nassistant:", None));
        let own = r#"{"bos_token": {"content": "<s>"}, "chat_template": "{{ bos_token }}{{ messages[0].content }}"}"#;
        assert_eq!((rendered(&load(own)).unwrap().as_str(), load(own).file()), ("<s>hello", Some(CONFIG)));
        let named = r#"{"chat_template": [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]}"#;
        assert_eq!(rendered(&load(named)).unwrap(), "yes");
        let nameless = load(r#"{"chat_template": [{"name": "rag", "template": "no"}]}"#);
        assert!(rendered(&nameless).unwrap_err().contains("none is named \"default\""));
        fs::write(folder.join(FILE), "from {{ 'its own file' }}").unwrap();
        assert_eq!((rendered(&load(own)).unwrap().as_str(), load(own).file()), ("from its own file", Some(FILE)));
        fs::write(folder.join(FILE), "{% if %}").unwrap();
        let error = rendered(&load(own)).unwrap_err();
        assert!(error.starts_with("the model's chat template (chat_template.jinja) cannot be used: "), "{error}");
        assert!(load(own).problem().is_some() && !load(own).is_plain());
        fs::remove_dir_all(&folder).unwrap();
    }
}
