//! The fields of a request's body, read one by one: every fault told by the field's name, with what is allowed, and what
//! nobody has read is refused by name.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Map, Value};

use super::error::ApiError;
use crate::domain::Stops;

/// More than any model has positions; the model's own limit is the worker's to check.
pub(super) const MOST_NEW_TOKENS: u32 = 1 << 24;
/// The least of what must be over 0: what is less is 0 to an engine that divides by it in single precision.
pub(super) const LEAST: f32 = 0.000_001;
const MOST_STOPS: usize = 16;
const LONGEST_STOP: usize = 1024;
const MOST_STOP_TOKENS: usize = 128;

pub(super) fn field_error(param: &str, message: impl Into<String>) -> ApiError {
    ApiError::Field { param: Some(param.into()), message: message.into() }
}

/// The fields that have not been read yet.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// Those of a body.
    pub(super) fn of(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body).map_err(|error| ApiError::NotJson(error.to_string()))? {
            Value::Object(map) => Ok(Self(map)),
            _ => Err(ApiError::Field { param: None, message: "the body must be a JSON object".into() }),
        }
    }

    /// Those of an object within it.
    pub(super) fn inner(map: Map<String, Value>) -> Self {
        Self(map)
    }

    /// The field's value; `null` counts as absent.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    pub(super) fn integer(&mut self, name: &str, least: u32, most: u32) -> Result<Option<u32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = whole(&value).filter(|n| (least..=most).contains(n));
        let wrong = || {
            field_error(name, format!("{name} must be a whole number from {least} to {most}, not {}", display(&value)))
        };
        number.map(Some).ok_or_else(wrong)
    }

    /// A number in this range.
    #[allow(clippy::cast_possible_truncation, reason = "the engine computes in single precision")]
    pub(super) fn number(&mut self, name: &str, range: RangeInclusive<f32>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().map(|n| n as f32).filter(|n| range.contains(n));
        let (least, most) = (range.start(), range.end());
        let wrong =
            || field_error(name, format!("{name} must be a number from {least} to {most}, not {}", display(&value)));
        number.map(Some).ok_or_else(wrong)
    }

    /// A truth value.
    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let wrong = || field_error(name, format!("{name} must be true or false, not {}", display(&value)));
        value.as_bool().map(Some).ok_or_else(wrong)
    }

    /// How long the request may take: a field of its own, at most and by default the longest of all.
    pub(super) fn timeout(&mut self, longest: Duration) -> Result<Duration, ApiError> {
        let most = u32::try_from(longest.as_millis()).unwrap_or(u32::MAX);
        let timeout = self.integer("timeout_ms", 1, most)?;
        Ok(timeout.map_or(longest, |ms| Duration::from_millis(u64::from(ms))))
    }

    /// Where the answer ends: `stop` and `stop_token_ids`.
    pub(super) fn stops(&mut self) -> Result<Stops, ApiError> {
        Ok(Stops { strings: self.stop()?, token_ids: self.stop_token_ids()? })
    }

    fn stop_token_ids(&mut self) -> Result<Vec<u32>, ApiError> {
        const NAME: &str = "stop_token_ids";
        match self.take(NAME) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) if items.len() > MOST_STOP_TOKENS => {
                Err(field_error(NAME, format!("{NAME} must hold at most {MOST_STOP_TOKENS} ids, not {}", items.len())))
            }
            Some(Value::Array(items)) => items.iter().map(whole).collect::<Option<_>>().ok_or_else(|| {
                field_error(NAME, format!("{NAME} must hold token ids: whole numbers from 0 to 4294967295"))
            }),
            Some(other) => Err(field_error(NAME, format!("{NAME} must be a list of token ids, not {}", kind(&other)))),
        }
    }

    fn stop(&mut self) -> Result<Vec<String>, ApiError> {
        let items = match self.take("stop") {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(one) => vec![one],
        };
        if items.len() > MOST_STOPS {
            return Err(field_error(
                "stop",
                format!("stop must hold at most {MOST_STOPS} strings, not {}", items.len()),
            ));
        }
        let strings = items.into_iter().map(|item| match item {
            Value::String(text) if (1..=LONGEST_STOP).contains(&text.len()) => Ok(text),
            Value::String(_) => Err(field_error("stop", format!("a stop string must have 1 to {LONGEST_STOP} bytes"))),
            other => {
                Err(field_error("stop", format!("stop must be a string or a list of strings, not {}", kind(&other))))
            }
        });
        strings.collect()
    }

    pub(super) fn no_more(self) -> Result<(), ApiError> {
        match self.0.into_iter().next() {
            Some((name, _)) => {
                let name: String = name.chars().take(64).collect();
                Err(field_error(&name, format!("{name} is not a field of this request")))
            }
            None => Ok(()),
        }
    }
}

/// A whole number of 32 bits; 1.0 is one too, in JSON's eyes.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "its range is looked at first")]
pub(super) fn whole(value: &Value) -> Option<u32> {
    if let Some(n) = value.as_u64() {
        return u32::try_from(n).ok();
    }
    value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(n)).map(|n| n as u32)
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A number as it was written; of anything else only what it is, because it may be long or secret.
pub(super) fn display(value: &Value) -> String {
    match value {
        Value::Number(number) => number.to_string(),
        other => kind(other).to_owned(),
    }
}
