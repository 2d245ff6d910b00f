//! The dialect of the OpenAI API (`/v1/…`). It parses requests into the same calls as `/generate`, and writes answers in
//! OpenAI's format.
//!
//! An option that the engine does not support is refused by name, never ignored silently. Its neutral values, which change
//! nothing, are accepted, because clients send them by default.

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
