//! Options of completions and chat completions: those for sampling, and those that are not supported.

use std::sync::Arc;

use pillion_protocol::frame::Options;
use serde_json::Value;

use super::common::model_id;
use crate::api::call::Limits;
use crate::api::error::ApiError;
use crate::api::fields::{EPSILON, Fields, MAX_NEW_TOKENS, field_error};
use crate::domain::{BatchKey, Stops};
use crate::scheduler::models::Model;

/// The most candidates for top-p sampling. The engine accepts only some thousands, and tokens less likely than the first
/// thousand have almost no weight.
const TOP_P_CANDIDATES: u32 = 1024;

/// The sampling options of a request.
#[derive(Debug)]
pub(super) struct Sampling {
    pub key: BatchKey,
    pub stop: Arc<Stops>,
    /// The least number of tokens before an end of sequence.
    pub min_tokens: u32,
    /// Answers to each prompt.
    pub n: usize,
}

/// The most answers to one prompt.
const MAX_ANSWERS: u32 = 128;

impl Sampling {
    /// Takes the options. `max_tokens` is the limit of an answer, if there is one already.
    pub(super) fn read(fields: &mut Fields, model: Option<&Model>, max_tokens: Option<u32>) -> Result<Self, ApiError> {
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
        let min_tokens = fields.integer("min_tokens", 0, MAX_NEW_TOKENS)?.unwrap_or(0);
        if let Some(max_tokens) = max_tokens
            && min_tokens > max_tokens
        {
            let message = format!("min_tokens {min_tokens} is larger than max_tokens {max_tokens}");
            return Err(field_error("min_tokens", message));
        }
        let options = Options {
            sampling_topk,
            sampling_topp: if sampling_topk == 1 { 1.0 } else { top_p },
            sampling_temperature,
            repetition_penalty: fields.number("repetition_penalty", EPSILON..=100.0)?.unwrap_or(1.0),
            no_repeat_ngram_size: fields.integer("no_repeat_ngram_size", 0, 1024)?.unwrap_or(0),
        };
        let n = fields.integer("n", 1, MAX_ANSWERS)?.unwrap_or(1);
        let key = BatchKey { model: model_id(model), ..BatchKey::new(&options, min_tokens) };
        Ok(Self { key, stop: Arc::new(fields.stops()?), min_tokens, n: n as usize })
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

/// Refuses options that the engine does not support, unless their value is neutral. Fields that do not change an answer
/// (`user`, `metadata`, …) are accepted with any value.
pub(super) fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    for name in ["user", "safety_identifier", "metadata", "prompt_cache_key", "service_tier"] {
        fields.take(name);
    }
    for name in ["frequency_penalty", "presence_penalty"] {
        allow_neutral(fields, name, "the engine has no such penalty; use repetition_penalty", |value| {
            value.as_f64() == Some(0.0)
        })?;
    }
    allow_neutral(fields, "logit_bias", "the engine cannot change single tokens' weights", |value| {
        value.as_object().is_some_and(serde_json::Map::is_empty)
    })?;
    allow_neutral(fields, "logprobs", "the engine does not report token probabilities", |value| {
        *value == Value::Bool(false)
    })?;
    allow_neutral(fields, "top_logprobs", "the engine does not report token probabilities", |value| {
        value.as_u64() == Some(0)
    })?;
    allow_neutral(fields, "seed", "the engine has one seed for all requests", |_| false)?;
    allow_neutral(fields, "store", "the server stores no requests", |value| *value == Value::Bool(false))?;
    Ok(())
}

/// Takes an option, and refuses it unless its value is neutral.
pub(super) fn allow_neutral(
    fields: &mut Fields,
    name: &str,
    why: &str,
    is_neutral: impl Fn(&Value) -> bool,
) -> Result<(), ApiError> {
    match fields.take(name) {
        Some(value) if !is_neutral(&value) => Err(ApiError::Unsupported { param: name.into(), why: why.into() }),
        _ => Ok(()),
    }
}
