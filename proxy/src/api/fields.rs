//! Reads the fields of a request's body one by one. Errors name the invalid field and say what is allowed. A field that was
//! not read is unknown and refused by name.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Map, Value};

use super::error::ApiError;
use crate::domain::Stops;

/// The upper limit for numbers of tokens: more than any model has positions. The worker checks the model's own limit.
pub(super) const MAX_NEW_TOKENS: u32 = 1 << 24;
/// The least value of an option that must be over 0. The engine divides by it in single precision, in which less may be 0.
pub(super) const EPSILON: f32 = 0.000_001;
const MAX_STOPS: usize = 16;
const MAX_STOP_LEN: usize = 1024;
const MAX_STOP_TOKENS: usize = 128;

pub(super) fn field_error(param: &str, message: impl Into<String>) -> ApiError {
    ApiError::Field { param: Some(param.into()), message: message.into() }
}

/// The fields of a JSON object that were not read yet.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// Parses a body, which must be a JSON object.
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body).map_err(|error| ApiError::NotJson(error.to_string()))? {
            Value::Object(map) => Ok(Self(map)),
            _ => Err(ApiError::Field { param: None, message: "the body must be a JSON object".into() }),
        }
    }

    /// The fields of an object inside the body.
    pub(super) fn of_object(map: Map<String, Value>) -> Self {
        Self(map)
    }

    /// Takes a field's value. `null` counts as absent.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    pub(super) fn integer(&mut self, name: &str, least: u32, most: u32) -> Result<Option<u32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = as_u32(&value).filter(|n| (least..=most).contains(n));
        let wrong = || {
            field_error(name, format!("{name} must be a whole number from {least} to {most}, not {}", display(&value)))
        };
        number.map(Some).ok_or_else(wrong)
    }

    /// Takes a number in this range.
    #[allow(clippy::cast_possible_truncation, reason = "the engine computes in single precision")]
    pub(super) fn number(&mut self, name: &str, range: RangeInclusive<f32>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().map(|n| n as f32).filter(|n| range.contains(n));
        let (least, most) = (range.start(), range.end());
        let wrong =
            || field_error(name, format!("{name} must be a number from {least} to {most}, not {}", display(&value)));
        number.map(Some).ok_or_else(wrong)
    }

    /// Takes a boolean.
    pub(super) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let wrong = || field_error(name, format!("{name} must be true or false, not {}", display(&value)));
        value.as_bool().map(Some).ok_or_else(wrong)
    }

    /// Takes `timeout_ms`, the request's timeout: at most `longest`, which is also the default.
    pub(super) fn timeout(&mut self, longest: Duration) -> Result<Duration, ApiError> {
        let most = u32::try_from(longest.as_millis()).unwrap_or(u32::MAX);
        let timeout = self.integer("timeout_ms", 1, most)?;
        Ok(timeout.map_or(longest, |ms| Duration::from_millis(u64::from(ms))))
    }

    /// Takes `stop` and `stop_token_ids`, which end an answer.
    pub(super) fn stops(&mut self) -> Result<Stops, ApiError> {
        Ok(Stops { strings: self.stop()?, token_ids: self.stop_token_ids()? })
    }

    fn stop_token_ids(&mut self) -> Result<Vec<u32>, ApiError> {
        const NAME: &str = "stop_token_ids";
        match self.take(NAME) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) if items.len() > MAX_STOP_TOKENS => {
                Err(field_error(NAME, format!("{NAME} must hold at most {MAX_STOP_TOKENS} ids, not {}", items.len())))
            }
            Some(Value::Array(items)) => items.iter().map(as_u32).collect::<Option<_>>().ok_or_else(|| {
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
        if items.len() > MAX_STOPS {
            return Err(field_error(
                "stop",
                format!("stop must hold at most {MAX_STOPS} strings, not {}", items.len()),
            ));
        }
        let strings = items.into_iter().map(|item| match item {
            Value::String(text) if (1..=MAX_STOP_LEN).contains(&text.len()) => Ok(text),
            Value::String(_) => Err(field_error("stop", format!("a stop string must have 1 to {MAX_STOP_LEN} bytes"))),
            other => {
                Err(field_error("stop", format!("stop must be a string or a list of strings, not {}", kind(&other))))
            }
        });
        strings.collect()
    }

    pub(super) fn refuse_unknown(self) -> Result<(), ApiError> {
        match self.0.into_iter().next() {
            Some((name, _)) => {
                let name: String = name.chars().take(64).collect();
                Err(field_error(&name, format!("{name} is not a field of this request")))
            }
            None => Ok(()),
        }
    }
}

/// A value as a whole number of 32 bits. JSON does not distinguish 1.0 from 1, so 1.0 counts.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked first")]
pub(super) fn as_u32(value: &Value) -> Option<u32> {
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

/// Describes a value in an error: a number as it is, any other value by its type, since the value may be long or private.
pub(super) fn display(value: &Value) -> String {
    match value {
        Value::Number(number) => number.to_string(),
        other => kind(other).to_owned(),
    }
}
