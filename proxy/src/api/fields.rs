//! Reads the fields of a request's body one by one. Errors name the invalid field and say what is allowed. A field that was
//! not read is unknown and refused by name.
//!
//! A value is parsed only when it is read, straight into the type that is wanted, up to the first thing that does not fit. So a
//! body costs no more than the time to find the ends of its fields, and the memory of what is read.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

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

/// The error for a field that is absent and must be there.
pub(super) fn missing(name: &str, expected: &str) -> ApiError {
    field_error(name, format!("{name} is missing; it must be {expected}"))
}

/// A whole number. It may be written with a decimal point or an exponent.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "f64")]
pub(super) struct Whole(pub u32);

impl TryFrom<f64> for Whole {
    type Error = &'static str;

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked first")]
    fn try_from(n: f64) -> Result<Self, Self::Error> {
        let fits = n.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&n);
        if fits { Ok(Self(n as u32)) } else { Err("not a whole number of 32 bits") }
    }
}

/// The fields of a JSON object that were not read yet. A field that is `null` counts as absent.
pub(super) struct Fields<'a>(BTreeMap<String, &'a RawValue>);

impl<'a> Fields<'a> {
    /// Parses a body, which must be a JSON object.
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, ApiError> {
        let wrong = |error: serde_json::Error| {
            let error = if error.is_data() { serde_json::from_slice::<IgnoredAny>(body).err() } else { Some(error) };
            match error {
                Some(error) => ApiError::NotJson(error.to_string()),
                None => ApiError::Field { param: None, message: "the body must be a JSON object".into() },
            }
        };
        serde_json::from_slice(body).map_err(wrong).map(Self)
    }

    /// The fields of the object `raw`, whose name is `name`.
    pub(super) fn of_object(name: &str, raw: &'a RawValue) -> Result<Self, ApiError> {
        typed(name, raw, "an object").map(Self)
    }

    /// Takes a field's value.
    pub(super) fn take(&mut self, name: &str) -> Option<&'a RawValue> {
        self.0.remove(name).filter(|raw| raw.get() != "null")
    }

    /// Takes a value of a type. `expected` says what it must be.
    pub(super) fn read<T: Deserialize<'a>>(&mut self, name: &str, expected: &str) -> Result<Option<T>, ApiError> {
        self.take(name).map(|raw| typed(name, raw, expected)).transpose()
    }

    /// Takes a value of a type that `convert` accepts.
    fn checked<T: Deserialize<'a>, U>(
        &mut self,
        name: &str,
        expected: impl Display + Copy,
        convert: impl Fn(T) -> Option<U>,
    ) -> Result<Option<U>, ApiError> {
        let Some(raw) = self.take(name) else { return Ok(None) };
        convert(typed(name, raw, expected)?).map(Some).ok_or_else(|| wrong(name, raw, expected))
    }

    /// Takes a whole number in this range.
    pub(super) fn integer(&mut self, name: &str, least: u32, most: u32) -> Result<Option<u32>, ApiError> {
        let expected = format_args!("a whole number from {least} to {most}");
        self.checked(name, expected, |Whole(n)| (least..=most).contains(&n).then_some(n))
    }

    /// Takes the least number of tokens of an answer, 0 without one. It must not be larger than `most`, the value of the field
    /// `most_name`.
    pub(super) fn least_tokens(&mut self, name: &str, most_name: &str, most: Option<u32>) -> Result<u32, ApiError> {
        let least = self.integer(name, 0, MAX_NEW_TOKENS)?.unwrap_or(0);
        match most.filter(|most| least > *most) {
            Some(most) => Err(field_error(name, format!("{name} {least} is larger than {most_name} {most}"))),
            None => Ok(least),
        }
    }

    /// Takes a number in this range.
    #[allow(clippy::cast_possible_truncation, reason = "the engine computes in single precision")]
    pub(super) fn number(&mut self, name: &str, range: RangeInclusive<f32>) -> Result<Option<f32>, ApiError> {
        let expected = format_args!("a number from {} to {}", range.start(), range.end());
        self.checked(name, expected, |n: f64| Some(n as f32).filter(|n| range.contains(n)))
    }

    /// Takes a boolean.
    pub(super) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.read(name, "true or false")
    }

    /// Takes `timeout_ms`, the request's timeout: at most `longest`, which is also the default.
    pub(super) fn timeout(&mut self, longest: Duration) -> Result<Duration, ApiError> {
        let most = u32::try_from(longest.as_millis()).unwrap_or(u32::MAX);
        let timeout = self.integer("timeout_ms", 1, most)?;
        Ok(timeout.map_or(longest, |ms| Duration::from_millis(u64::from(ms))))
    }

    /// Takes a list with this many items.
    pub(super) fn list<T: Deserialize<'a>>(
        &mut self,
        name: &str,
        expected: &str,
        count: RangeInclusive<usize>,
    ) -> Result<Option<Vec<T>>, ApiError> {
        let Some(items) = self.read::<Vec<T>>(name, expected)? else { return Ok(None) };
        if count.contains(&items.len()) {
            return Ok(Some(items));
        }
        let (least, most) = count.into_inner();
        Err(field_error(name, format!("{name} must hold {least} to {most} items, not {}", items.len())))
    }

    /// Takes strings of 1 to `most_bytes` bytes: a list of so many, or a single one, or none if the field is absent. The flag
    /// says whether it is a list.
    pub(super) fn strings(
        &mut self,
        name: &str,
        count: RangeInclusive<usize>,
        most_bytes: usize,
    ) -> Result<(Vec<String>, bool), ApiError> {
        const EXPECTED: &str = "a string or a list of strings";
        let is_list = self.0.get(name).is_some_and(|raw| is_list(raw));
        let one = |raw| match string(name, raw, EXPECTED)? {
            text if (1..=most_bytes).contains(&text.len()) => Ok(text),
            _ => Err(field_error(name, format!("a string in {name} must have 1 to {most_bytes} bytes"))),
        };
        let strings = if is_list {
            self.list(name, EXPECTED, count)?.into_iter().flatten().map(one).collect::<Result<_, _>>()?
        } else {
            Vec::from_iter(self.take(name).map(one).transpose()?)
        };
        Ok((strings, is_list))
    }

    /// Takes `stop` and `stop_token_ids`, which end an answer.
    pub(super) fn stops(&mut self) -> Result<Stops, ApiError> {
        let strings = self.strings("stop", 0..=MAX_STOPS, MAX_STOP_LEN)?.0;
        let expected = "a list of token ids: whole numbers from 0 to 4294967295";
        let ids = self.list("stop_token_ids", expected, 0..=MAX_STOP_TOKENS)?.unwrap_or_default();
        Ok(Stops { strings, token_ids: ids.into_iter().map(|Whole(id)| id).collect() })
    }

    /// The name of a field that was not read.
    pub(super) fn unknown(&self) -> Option<String> {
        let (name, _) = self.0.iter().find(|(_, raw)| raw.get() != "null")?;
        Some(name.chars().take(64).collect())
    }

    /// Refuses a field that was not read.
    pub(super) fn refuse_unknown(self) -> Result<(), ApiError> {
        match self.unknown() {
            Some(name) => Err(field_error(&name, format!("{name} is not a field of this request"))),
            None => Ok(()),
        }
    }
}

/// Parses a value. `expected` says what it must be.
pub(super) fn typed<'a, T: Deserialize<'a>>(
    name: &str,
    raw: &'a RawValue,
    expected: impl Display,
) -> Result<T, ApiError> {
    serde_json::from_str(raw.get()).map_err(|error| {
        if error.is_data() {
            return wrong(name, raw, expected);
        }
        // An escape or a number that no value can have, which is found only here.
        ApiError::NotJson(format!("{name}: {error}"))
    })
}

/// Parses a string. Without escapes it is only copied, since its bytes were checked when its end was found.
pub(super) fn string(name: &str, raw: &RawValue, expected: &str) -> Result<String, ApiError> {
    match raw.get().strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(text) if memchr::memchr(b'\\', text.as_bytes()).is_none() => Ok(text.to_owned()),
        _ => typed(name, raw, expected),
    }
}

/// The error for a value that is not what it must be.
fn wrong(name: &str, raw: &RawValue, expected: impl Display) -> ApiError {
    let text = raw.get();
    let found = match text.as_bytes()[0] {
        b'{' => "an object",
        b'[' => "this list",
        b'"' => "a string",
        b't' | b'f' => "a boolean",
        _ => text.get(..32).unwrap_or(text),
    };
    field_error(name, format!("{name} must be {expected}, not {found}"))
}

/// Whether a value is a list.
pub(super) fn is_list(raw: &RawValue) -> bool {
    raw.get().starts_with('[')
}
