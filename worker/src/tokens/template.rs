//! A model's chat template: how it wants a chat to be written.
//!
//! Templates are Jinja's, as Hugging Face's tokenizers use them: in `chat_template.jinja`, or as `chat_template` in
//! `tokenizer_config.json`. A model that has neither gets a plain one.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind as Fault, Value, context};
use pillion_protocol::frame::Message;
use serde::Deserialize;

use crate::model::ModelError;

/// For models that have none: each message on a line behind its role, and then the assistant's turn.
const PLAIN: &str = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:";

const FILE: &str = "chat_template.jinja";
const CONFIG: &str = "tokenizer_config.json";
const NAME: &str = "chat";

/// A template, ready to be filled in.
#[derive(Debug)]
pub(super) struct Template {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    /// The file that it was in; none for the plain one.
    file: Option<&'static str>,
}

/// What matters here of `tokenizer_config.json`.
#[derive(Debug, Default, Deserialize)]
struct Config {
    chat_template: Option<Templates>,
    bos_token: Option<SpecialToken>,
    eos_token: Option<SpecialToken>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
    template: String,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Text(String),
    Object { content: String },
}

impl SpecialToken {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Object { content: text } => text,
        }
    }
}

impl Template {
    /// The template of the model in this directory.
    ///
    /// # Errors
    /// A file cannot be read, or holds no template.
    pub(super) fn load(directory: &Path) -> Result<Self, ModelError> {
        let config = directory.join(CONFIG);
        let read: Config = match optional(&config)? {
            None => Config::default(),
            Some(text) => serde_json::from_str(&text).map_err(|error| ModelError::new(&config, error.to_string()))?,
        };
        let own = directory.join(FILE);
        let (file, source) = match (optional(&own)?, read.chat_template) {
            (Some(source), _) => (Some(FILE), source),
            (None, Some(Templates::One(source))) => (Some(CONFIG), source),
            (None, Some(Templates::Named(all))) => {
                let default = all.into_iter().find(|named| named.name == "default").map(|named| named.template);
                let Some(source) = default else {
                    return Err(ModelError::new(&config, "has several chat templates, but none is named \"default\""));
                };
                (Some(CONFIG), source)
            }
            (None, None) => (None, PLAIN.to_owned()),
        };
        let text = |token: Option<SpecialToken>| token.map(SpecialToken::into_text).unwrap_or_default();
        let (bos, eos) = (text(read.bos_token), text(read.eos_token));
        let template = Self::new(source, bos, eos).map_err(|error| {
            let path = directory.join(file.unwrap_or(FILE));
            ModelError::new(path, format!("has a chat template that cannot be used: {}", told(&error)))
        })?;
        Ok(Self { file, ..template })
    }

    /// The file that it was in, if it is the model's own.
    pub(super) fn file(&self) -> Option<&'static str> {
        self.file
    }

    /// The plain one.
    #[cfg(test)]
    pub(super) fn plain() -> Self {
        Self::new(PLAIN.to_owned(), String::new(), String::new()).expect("it is sound")
    }

    pub(super) fn new(source: String, bos: String, eos: String) -> Result<Self, Error> {
        let mut environment = Environment::new();
        // As Hugging Face sets Jinja up.
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(Fault::InvalidOperation, message))
        });
        environment.add_template_owned(NAME, source)?;
        Ok(Self { environment, bos, eos, file: None })
    }

    /// The chat as a text, with the beginning of the assistant's answer.
    ///
    /// # Errors
    /// The template refuses the messages, or cannot be filled in: why.
    pub(super) fn render(&self, messages: &[Message]) -> Result<String, String> {
        let fill = || {
            let said = |message: &Message| context! { role => &message.role, content => &message.content };
            self.environment.get_template(NAME)?.render(context! {
                messages => messages.iter().map(said).collect::<Vec<Value>>(),
                add_generation_prompt => true,
                bos_token => &self.bos,
                eos_token => &self.eos,
            })
        };
        fill().map_err(|error| told(&error))
    }
}

fn told(error: &Error) -> String {
    match (error.detail(), error.line()) {
        (Some(detail), _) if error.kind() == Fault::InvalidOperation => detail.to_owned(),
        (_, Some(line)) => format!("{error} (line {line})"),
        _ => error.to_string(),
    }
}

/// A file's text, if there is such a file.
fn optional(path: &Path) -> Result<Option<String>, ModelError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ModelError::new(path, format!("cannot be read: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(role: &str, content: &str) -> Message {
        Message { role: role.to_owned(), content: content.to_owned() }
    }

    fn chat() -> Vec<Message> {
        vec![said("system", "Be brief."), said("user", " 2+3? "), said("assistant", "5"), said("user", "And 4?")]
    }

    #[test]
    fn a_model_without_a_template_gets_a_plain_one() {
        let text = Template::plain().render(&chat()).unwrap();
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
        let template = Template::new(source.to_owned(), "<s>".to_owned(), "</s>".to_owned()).unwrap();
        let text = template.render(&chat()[1..3]).unwrap();
        assert_eq!(text, "<s><|im_start|>USER\n2+3?<|im_end|>\n<|im_start|>ASSISTANT\n5<|im_end|>\n");
        let refused = template.render(&[said("tool", "x")]).unwrap_err();
        assert_eq!(refused, "Unknown role: tool");
    }

    #[test]
    fn a_template_is_found_where_models_keep_it() {
        let folder = std::env::temp_dir().join(format!("pillion-template-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        let hello = [said("user", "hello")];
        let render = || Template::load(&folder).unwrap().render(&hello).unwrap();
        let file = || Template::load(&folder).unwrap().file();
        assert_eq!(file(), None);
        assert_eq!(render(), "user: hello\nassistant:");
        write(
            CONFIG,
            r#"{"bos_token": {"content": "<s>"}, "chat_template": "{{ bos_token }}{{ messages[0].content }}"}"#,
        );
        assert_eq!((render().as_str(), file()), ("<s>hello", Some(CONFIG)));
        let named = r#"{"chat_template": [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]}"#;
        write(CONFIG, named);
        assert_eq!(render(), "yes");
        write(FILE, "from {{ 'its own file' }}");
        assert_eq!((render().as_str(), file()), ("from its own file", Some(FILE)));
        write(FILE, "{% if %}");
        let error = Template::load(&folder).unwrap_err();
        assert!(error.path.ends_with(FILE) && error.problem.contains("cannot be used"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
    }
}
