//! `GET /v1/models`, `GET /v1/models/{id}`: the models of the connected workers.

use percent_encoding::percent_decode_str;
use serde::Serialize;

use super::common::unix_seconds;
use crate::api::error::ApiError;
use crate::api::write;
use crate::scheduler::models::{Model, Models};

/// The path of the list. A model's path is this path, a slash and the model's name.
const PATH: &str = "/v1/models";

#[derive(Debug, Serialize)]
struct ModelList {
    object: &'static str,
    data: Vec<ModelObject>,
}

#[derive(Debug, Serialize)]
struct ModelObject {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// The most tokens of a prompt and its answer together. OpenAI's format does not have this field.
    max_model_len: u32,
}

impl ModelObject {
    fn of(model: &Model) -> Self {
        let (id, created) = (model.name.to_string(), unix_seconds(model.since));
        Self { id, object: "model", created, owned_by: "pillion", max_model_len: model.positions }
    }
}

/// Answers a path that begins with [`PATH`] with a JSON body. Fails if no connected worker has the model.
pub(crate) fn answer(path: &str, models: &Models) -> Result<Vec<u8>, ApiError> {
    let Some(name) = path.strip_prefix(PATH).and_then(|rest| rest.strip_prefix('/')) else {
        return Ok(write::json(&ModelList { object: "list", data: models.connected().map(ModelObject::of).collect() }));
    };
    let name = percent_decode_str(name).decode_utf8_lossy();
    match models.connected().find(|model| *model.name == *name) {
        Some(model) => Ok(write::json(&ModelObject::of(model))),
        None => Err(ApiError::NoModel { name: name.into_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::models::tests::hello;

    #[test]
    fn a_model_name_may_be_percent_encoded() {
        let mut models = Models::default();
        models.announced(&hello("a/b/c\u{e9}%zz%4", 10), std::time::SystemTime::UNIX_EPOCH);
        assert!(answer("/v1/models/a%2Fb/c%C3%A9%zz%4", &models).is_ok());
        assert!(answer("/v1/models/a%2Fb", &models).is_err());
    }
}
