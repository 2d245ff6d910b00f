//! `GET /v1/models`, `GET /v1/models/{id}`: what connected workers have.

use percent_encoding::percent_decode_str;
use serde::Serialize;

use super::common::seconds;
use crate::api::error::ApiError;
use crate::api::write;
use crate::scheduler::models::{Model, Models};

/// The path of the list; a model's own follows it.
const PATH: &str = "/v1/models";

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

/// The answer for a path that begins with [`PATH`]: a JSON body.
pub(crate) fn answer(path: &str, models: &Models) -> Result<Vec<u8>, ApiError> {
    let Some(name) = path.strip_prefix(PATH).and_then(|rest| rest.strip_prefix('/')) else {
        return Ok(write::json(&List { object: "list", data: models.connected().map(One::of).collect() }));
    };
    let name = percent_decode_str(name).decode_utf8_lossy();
    match models.connected().find(|model| *model.name == *name) {
        Some(model) => Ok(write::json(&One::of(model))),
        None => Err(ApiError::NoModel { name: name.into_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::models::tests::hello;

    #[test]
    fn a_models_name_may_be_escaped() {
        let mut models = Models::default();
        models.announced(&hello("a/b/c\u{e9}%zz%4", 10), std::time::SystemTime::UNIX_EPOCH);
        assert!(answer("/v1/models/a%2Fb/c%C3%A9%zz%4", &models).is_ok());
        assert!(answer("/v1/models/a%2Fb", &models).is_err());
    }
}
