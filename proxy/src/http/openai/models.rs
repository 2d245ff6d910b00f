//! `GET /v1/models`, `GET /v1/models/{id}`: what connected workers have.

use serde::Serialize;

use super::super::Answer;
use super::super::response::{ApiError, ok};
use super::seconds;
use crate::batcher::Handle;
use crate::batcher::models::Model;

/// The path of the list; a model's own follows it.
pub(in super::super) const PATH: &str = "/v1/models";

#[derive(Debug, Serialize)]
struct List {
    object: &'static str,
    data: Vec<One>,
}

#[derive(Debug, Serialize)]
struct One {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Not OpenAI's, but what clients ask of a model first.
    max_model_len: u32,
}

impl One {
    fn of(model: &Model) -> Self {
        let (id, created) = (model.name.to_string(), seconds(model.since));
        Self { id, object: "model", created, owned_by: "pillion", max_model_len: model.positions }
    }
}

/// The answer for a path that begins with [`PATH`].
pub(in super::super) fn answer(path: &str, handle: &Handle) -> Result<Answer, ApiError> {
    let models = handle.models();
    let Some(name) = path.strip_prefix(PATH).and_then(|rest| rest.strip_prefix('/')) else {
        return Ok(ok(&List { object: "list", data: models.iter().map(One::of).collect() }));
    };
    let name = unescaped(name);
    match models.iter().find(|model| *model.name == *name) {
        Some(model) => Ok(ok(&One::of(model))),
        None => Err(ApiError::NoModel { name }),
    }
}

/// A path with its `%xx` taken for what they stand for (RFC 3986, section 2.1). What is no such escape stays as it is.
fn unescaped(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
        match (bytes[at], hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                plain.push(u8::try_from(16 * high + low).unwrap_or_default());
                at += 3;
            }
            (byte, ..) => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_name_may_be_escaped() {
        assert_eq!(unescaped("a%2Fb/c%C3%A9%zz%4"), "a/b/c\u{e9}%zz%4");
    }
}
