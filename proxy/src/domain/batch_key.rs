//! What decides which texts can share a batch, and which workers can serve them.

use std::hash::{DefaultHasher, Hash, Hasher};

use pillion_protocol::frame::Options;

/// The model that a job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId(u32);

impl ModelId {
    /// Any will do.
    pub const ANY: Self = Self(0);

    /// That of a model; `number` is at least 1.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }
}

/// Workers that can go on with each other's answers: their models and tokenizers have one fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelFingerprint(u64);

impl ModelFingerprint {
    /// Any will do.
    pub const ANY: Self = Self(0);

    /// That of workers with this fingerprint.
    pub fn of(fingerprint: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        fingerprint.hash(&mut hasher);
        Self(hasher.finish().max(1))
    }
}

/// What a worker is, as far as it decides whom it can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkerModel {
    /// Its model's name.
    pub model: ModelId,
    /// Its model's fingerprint.
    pub fingerprint: ModelFingerprint,
}

/// How much company a job may have that was there when workers died, and may have been why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Quarantine {
    /// It is not suspected.
    None,
    /// It rides with a few others who are suspected too.
    Few,
    /// It rides alone.
    Alone,
}

impl Quarantine {
    /// The most members of its batch.
    pub fn most(self) -> usize {
        match self {
            Self::None => usize::MAX,
            Self::Few => 8,
            Self::Alone => 1,
        }
    }
}

/// What must be equal for two jobs to share a batch: the engine takes these for a whole call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchKey {
    /// The engine's options.
    pub options: OptionBits,
    /// The least number of new tokens.
    pub min_new_tokens: u32,
    /// The model that is asked for, or [any](ModelId::ANY).
    pub model: ModelId,
    /// The fingerprint of the model with which the answer has begun: only workers of it can go on.
    pub fingerprint: ModelFingerprint,
    /// Whether workers have died with it.
    pub quarantine: Quarantine,
}

/// The engine's options, as bits: so they can be compared and hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OptionBits {
    topk: u32,
    topp: u32,
    temperature: u32,
    penalty: u32,
    ngram: u32,
}

impl BatchKey {
    /// The key of requests with these options, for any model.
    pub fn new(options: &Options, min_new_tokens: u32) -> Self {
        let options = OptionBits {
            topk: options.sampling_topk,
            topp: options.sampling_topp.to_bits(),
            temperature: options.sampling_temperature.to_bits(),
            penalty: options.repetition_penalty.to_bits(),
            ngram: options.no_repeat_ngram_size,
        };
        let (model, fingerprint) = (ModelId::ANY, ModelFingerprint::ANY);
        Self { options, min_new_tokens, model, fingerprint, quarantine: Quarantine::None }
    }

    /// Whether only workers of one build can serve it.
    pub fn is_tied(&self) -> bool {
        self.fingerprint != ModelFingerprint::ANY
    }

    /// Whether a worker of this kind can serve it.
    pub fn is_for(&self, model: WorkerModel) -> bool {
        (self.model == ModelId::ANY || self.model == model.model)
            && (!self.is_tied() || self.fingerprint == model.fingerprint)
    }

    /// Whether one worker may serve both, as far as that is known.
    pub fn may_share_a_worker(&self, other: &Self) -> bool {
        let models = [self.model, other.model];
        let fingerprints = [self.fingerprint, other.fingerprint];
        (models[0] == models[1] || models.contains(&ModelId::ANY))
            && (fingerprints[0] == fingerprints[1] || fingerprints.contains(&ModelFingerprint::ANY))
    }

    /// The options that all requests with this key have.
    pub fn options(&self) -> Options {
        let OptionBits { topk, topp, temperature, penalty, ngram } = self.options;
        Options {
            sampling_topk: topk,
            sampling_topp: f32::from_bits(topp),
            sampling_temperature: f32::from_bits(temperature),
            repetition_penalty: f32::from_bits(penalty),
            no_repeat_ngram_size: ngram,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gives_back_its_options() {
        let options = Options { sampling_topp: 0.9, repetition_penalty: 1.2, ..Options::default() };
        assert_eq!(BatchKey::new(&options, 3).options(), options);
    }

    #[test]
    fn a_key_says_which_workers_can_serve_it() {
        let any = BatchKey::new(&Options::default(), 0);
        let model = |model, fingerprint| WorkerModel {
            model: ModelId::new(model),
            fingerprint: ModelFingerprint::of(fingerprint),
        };
        let named = BatchKey { model: ModelId::new(1), ..any };
        assert!(any.is_for(model(1, "a")) && named.is_for(model(1, "a")) && !named.is_for(model(2, "a")));
        let tied = BatchKey { fingerprint: ModelFingerprint::of("a"), ..named };
        assert!(tied.is_tied() && tied.is_for(model(1, "a")) && !tied.is_for(model(1, "b")));
        assert!(any.may_share_a_worker(&named) && named.may_share_a_worker(&any) && any.may_share_a_worker(&tied));
        assert!(!BatchKey { model: ModelId::new(2), ..any }.may_share_a_worker(&named));
        assert!(!tied.may_share_a_worker(&BatchKey { fingerprint: ModelFingerprint::of("b"), ..any }));
    }

    #[test]
    fn requests_with_other_penalties_have_other_keys() {
        let one = BatchKey::new(&Options::default(), 0);
        let other = BatchKey::new(&Options { repetition_penalty: 1.1, ..Options::default() }, 0);
        assert_ne!(one, other);
    }
}
