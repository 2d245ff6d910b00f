//! The options that both kinds of completions take, and what becomes of them.

use std::sync::Arc;

use pillion_protocol::frame::Options;
use serde_json::Value;

use super::common::id_of;
use crate::api::call::Limits;
use crate::api::error::ApiError;
use crate::api::fields::{Fields, LEAST, MOST_NEW_TOKENS, field_error};
use crate::domain::{BatchKey, Stops};
use crate::scheduler::models::Model;

/// Candidates among which top-p draws: the engine takes no more than some thousands, and what is less likely than the
/// thousand likeliest tokens weighs next to nothing.
const TOP_P_CANDIDATES: u32 = 1024;

/// What they come to.
#[derive(Debug)]
pub(super) struct Sampling {
    pub key: BatchKey,
    pub stop: Arc<Stops>,
    /// No end of sequence before so many tokens.
    pub min_tokens: u32,
    /// Answers to each prompt.
    pub n: usize,
}

/// The most answers to one prompt.
const MOST_ANSWERS: u32 = 128;

impl Sampling {
    /// `max_tokens` is the limit that was given, if one was.
    pub(super) fn read(fields: &mut Fields, model: Option<&Model>, max_tokens: Option<u32>) -> Result<Self, ApiError> {
        let temperature = fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0);
        let top_p = fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0);
        let vocabulary = model.map_or(u32::MAX, |model| model.vocabulary);
        let top_k = fields.integer("top_k", 0, MOST_NEW_TOKENS)?.map(|k| k.min(vocabulary));
        let (sampling_topk, sampling_temperature) = if temperature < LEAST || top_p < LEAST {
            (1, 1.0)
        } else if top_p < 1.0 {
            let most = TOP_P_CANDIDATES.min(vocabulary);
            (top_k.filter(|&k| k > 0).map_or(most, |k| k.min(most)), temperature)
        } else {
            (top_k.unwrap_or(0), temperature)
        };
        let min_tokens = fields.integer("min_tokens", 0, MOST_NEW_TOKENS)?.unwrap_or(0);
        if let Some(max_tokens) = max_tokens
            && min_tokens > max_tokens
        {
            let message = format!("min_tokens is {min_tokens}, more than the most tokens, {max_tokens}");
            return Err(field_error("min_tokens", message));
        }
        let options = Options {
            sampling_topk,
            sampling_topp: if sampling_topk == 1 { 1.0 } else { top_p },
            sampling_temperature,
            repetition_penalty: fields.number("repetition_penalty", LEAST..=100.0)?.unwrap_or(1.0),
            no_repeat_ngram_size: fields.integer("no_repeat_ngram_size", 0, 1024)?.unwrap_or(0),
        };
        let n = fields.integer("n", 1, MOST_ANSWERS)?.unwrap_or(1);
        let key = BatchKey { model: id_of(model), ..BatchKey::new(&options, min_tokens) };
        Ok(Self { key, stop: Arc::new(fields.stops()?), min_tokens, n: n as usize })
    }
}

/// Each of several answers has its prompt for itself: together they may be no larger than a body.
pub(super) fn several(n: usize, prompts: usize, limits: &Limits) -> Result<(), ApiError> {
    let (all, most) = (prompts.saturating_mul(n), limits.body_bytes);
    if n > 1 && all > most {
        return Err(field_error(
            "n",
            format!("{n} answers to prompts of {prompts} bytes make {all} bytes, more than {most}"),
        ));
    }
    Ok(())
}

/// Takes options that change nothing where they are neutral, and refuses them where they are not. What is said for the
/// server's own use (`user`, `metadata`, …) is taken whatever it is.
pub(super) fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    for name in ["user", "safety_identifier", "metadata", "prompt_cache_key", "service_tier"] {
        fields.take(name);
    }
    for name in ["frequency_penalty", "presence_penalty"] {
        neutral(fields, name, "the engine has no such penalty; repetition_penalty is the nearest", |value| {
            value.as_f64() == Some(0.0)
        })?;
    }
    neutral(fields, "logit_bias", "the engine cannot change single tokens' chances", |value| {
        value.as_object().is_some_and(serde_json::Map::is_empty)
    })?;
    neutral(fields, "logprobs", "the engine does not tell its tokens' probabilities", |value| {
        *value == Value::Bool(false)
    })?;
    neutral(fields, "top_logprobs", "the engine does not tell its tokens' probabilities", |value| {
        value.as_u64() == Some(0)
    })?;
    neutral(fields, "seed", "the engine draws its seed once, not for each request", |_| false)?;
    neutral(fields, "store", "nothing is stored here", |value| *value == Value::Bool(false))?;
    Ok(())
}

/// Takes an option that may be there only with a value that changes nothing.
pub(super) fn neutral(
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
