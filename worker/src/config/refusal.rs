//! The error of a wrong flag: one sentence with the flag, its value and the allowed values.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Why the settings are not valid.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FlagError(String);

impl FlagError {
    /// A flag does not take this value.
    pub fn refused(flag: &str, value: &str, allowed: &str) -> Self {
        Self(format!("{flag} does not take {value:?}, only {allowed}"))
    }

    pub(super) fn missing(flag: &str, takes: &str) -> Self {
        Self(format!("{flag} is missing: it takes {takes}"))
    }
}

pub(super) fn refuse<T>(flag: &str, value: &str, allowed: &str) -> Result<T, FlagError> {
    Err(FlagError::refused(flag, value, allowed))
}

/// Shortens clap's message of several lines to one sentence.
pub(super) fn explain(error: &clap::Error) -> FlagError {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(" "),
        _ => String::new(),
    };
    let argument = context(ContextKind::InvalidArg);
    let flag = argument.split([' ', '=']).next().unwrap_or_default().to_owned();
    let value = context(ContextKind::InvalidValue);
    FlagError(match error.kind() {
        ErrorKind::UnknownArgument => {
            format!("there is no flag {flag}; pillion-worker --help lists the flags")
        }
        ErrorKind::ArgumentConflict => format!("{flag} is given more than once"),
        ErrorKind::InvalidValue if value.is_empty() => format!("{flag} needs a value"),
        ErrorKind::TooManyValues => return FlagError::refused(&flag, &value, "no value"),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            return FlagError::refused(&flag, &value, "true or false");
        }
        _ => error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    })
}
