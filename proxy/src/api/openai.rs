//! The OpenAI API's dialect (`/v1/…`), as far as it goes: requests become the same calls as those of `/generate`, and the
//! answers are written in OpenAI's words.
//!
//! An option with a meaning that this engine cannot give it is refused by name, never silently ignored; its neutral values
//! are taken, since clients send them unasked.

mod chat;
mod common;
mod completions;
pub(crate) mod models;
mod options;

use super::call::Dialect;

/// `POST /v1/completions`.
pub(crate) static COMPLETIONS: Dialect =
    Dialect { parse: completions::parse, fields: completions::FIELDS, has_unprocessable: false };

/// `POST /v1/chat/completions`.
pub(crate) static CHAT_COMPLETIONS: Dialect =
    Dialect { parse: chat::parse, fields: chat::FIELDS, has_unprocessable: false };
