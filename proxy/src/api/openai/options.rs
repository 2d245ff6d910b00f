//! Options of completions and chat completions: those for sampling, and those that are not supported.

use std::sync::Arc;

use pillion_protocol::frame::Options;
use serde_json::{Value, json};

use crate::api::call::Limits;
use crate::api::error::ApiError;
use crate::api::fields::{EPSILON, Fields, MAX_NEW_TOKENS, field_error};
use crate::domain::{BatchKey, ModelId, Stops};
use crate::scheduler::models::Model;

/// The most candidates for top-p sampling. The engine accepts only some thousands, and tokens less likely than the first
/// thousand have almost no weight.
const TOP_P_CANDIDATES: u32 = 1024;

/// The sampling options of a request.
#[derive(Debug)]
pub(super) struct Sampling {
    pub key: BatchKey,
    pub stop: Arc<Stops>,
    /// Answers to each prompt.
    pub n: usize,
}

/// The most answers to one prompt.
const MAX_ANSWERS: u32 = 128;

impl Sampling {
    /// Takes the options. `max_tokens` is the limit of an answer, if there is one already.
    pub(super) fn read(
        fields: &mut Fields<'_>,
        model: Option<&Model>,
        max_tokens: Option<u32>,
    ) -> Result<Self, ApiError> {
        let temperature = fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0);
        let top_p = fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0);
        let vocabulary = model.map_or(u32::MAX, |model| model.vocabulary);
        let top_k = fields.integer("top_k", 0, MAX_NEW_TOKENS)?.map(|k| k.min(vocabulary));
        let (sampling_topk, sampling_temperature) = if temperature < EPSILON || top_p < EPSILON {
            (1, 1.0)
        } else if top_p < 1.0 {
            let most = TOP_P_CANDIDATES.min(vocabulary);
            (top_k.filter(|&k| k > 0).map_or(most, |k| k.min(most)), temperature)
        } else {
            (top_k.unwrap_or(0), temperature)
        };
        let min_tokens = fields.least_tokens("min_tokens", "max_tokens", max_tokens)?;
        let options = Options {
            sampling_topk,
            sampling_topp: if sampling_topk == 1 { 1.0 } else { top_p },
            sampling_temperature,
            repetition_penalty: fields.number("repetition_penalty", EPSILON..=100.0)?.unwrap_or(1.0),
            no_repeat_ngram_size: fields.integer("no_repeat_ngram_size", 0, 1024)?.unwrap_or(0),
        };
        let n = fields.integer("n", 1, MAX_ANSWERS)?.unwrap_or(1);
        let mut key = BatchKey::new(options, min_tokens);
        key.target.model = model.map_or(ModelId::ANY, |model| model.id);
        Ok(Self { key, stop: Arc::new(fields.stops()?), n: n as usize })
    }
}

/// Refuses prompts that need too much memory: each of `n` answers needs a copy, and all copies may be no larger than a body.
pub(super) fn check_prompt_bytes(n: usize, prompts: usize, limits: &Limits) -> Result<(), ApiError> {
    let (all, most) = (prompts.saturating_mul(n), limits.body_bytes);
    if n > 1 && all > most {
        return Err(field_error(
            "n",
            format!("{n} answers to prompts of {prompts} bytes need {all} bytes, more than the {most} allowed"),
        ));
    }
    Ok(())
}

/// Options that do not change an answer. They are accepted with any value.
const IGNORED: [&str; 5] = ["user", "safety_identifier", "metadata", "prompt_cache_key", "service_tier"];

/// An option that the engine does not support: its name, whether a value is neutral (it changes nothing), and why it is not
/// supported.
pub(super) type Unsupported = (&'static str, fn(&Value) -> bool, &'static str);

/// The options of both endpoints that the engine does not support.
const UNSUPPORTED: [Unsupported; 7] = [
    ("frequency_penalty", is_zero, "the engine has no such penalty; use repetition_penalty"),
    ("presence_penalty", is_zero, "the engine has no such penalty; use repetition_penalty"),
    ("logit_bias", |value| *value == json!({}), "the engine cannot change single tokens' weights"),
    ("logprobs", |value| *value == false, "the engine does not report token probabilities"),
    ("top_logprobs", is_zero, "the engine does not report token probabilities"),
    ("seed", |_| false, "the engine has one seed for all requests"),
    ("store", |value| *value == false, "the server stores no requests"),
];

fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

/// Refuses options that the engine does not support, those of one endpoint (`more`) included, unless their value is neutral.
/// Then nothing else may be left.
pub(super) fn refuse_others(mut fields: Fields<'_>, more: &[Unsupported]) -> Result<(), ApiError> {
    for name in IGNORED {
        fields.take(name);
    }
    for &(name, is_neutral, why) in UNSUPPORTED.iter().chain(more) {
        let Some(raw) = fields.take(name) else { continue };
        // A neutral value is short.
        let value = Some(raw.get()).filter(|text| text.len() <= 256).and_then(|text| serde_json::from_str(text).ok());
        if !value.is_some_and(|value| is_neutral(&value)) {
            return Err(ApiError::Unsupported { param: name.into(), why: why.into() });
        }
    }
    fields.refuse_unknown()
}
