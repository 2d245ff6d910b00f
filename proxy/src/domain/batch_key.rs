//! Which texts can share a batch, and which workers can serve them.

use std::hash::{DefaultHasher, Hash, Hasher};

use pillion_protocol::frame::Options;

/// A model, by number. The proxy numbers the model names that workers announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId(u32);

impl ModelId {
    /// Stands for any model.
    pub const ANY: Self = Self(0);

    /// The model with this number, which is at least 1.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }
}

/// A hash of a worker's fingerprint. Workers with the same fingerprint can continue each other's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelFingerprint(u64);

impl ModelFingerprint {
    /// Stands for any fingerprint.
    pub const ANY: Self = Self(0);

    /// The hash of this fingerprint; never [`ANY`](Self::ANY).
    pub fn of(fingerprint: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        fingerprint.hash(&mut hasher);
        Self(hasher.finish().max(1))
    }
}

/// A worker's model, which decides which jobs the worker can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkerModel {
    /// The number of the model's name.
    pub model: ModelId,
    /// The fingerprint of the model and its tokenizer.
    pub fingerprint: ModelFingerprint,
}

/// Which workers can serve a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// The model that was asked for, or [any](ModelId::ANY).
    pub model: ModelId,
    /// The only fingerprint with which the answer can be continued, or [any](ModelFingerprint::ANY).
    pub fingerprint: ModelFingerprint,
}

/// How many jobs may share a batch with a job that may be the cause of workers' deaths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Quarantine {
    /// The job is not quarantined: its batch may have any size.
    None,
    /// The job shares a batch with a few other quarantined jobs.
    Few,
    /// The job is alone in its batch.
    Alone,
}

impl Quarantine {
    /// The most members of the job's batch.
    pub fn max_size(self) -> usize {
        match self {
            Self::None => usize::MAX,
            Self::Few => 8,
            Self::Alone => 1,
        }
    }
}

/// Jobs with equal keys can share a batch: the engine takes the options for a whole call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BatchKey {
    /// The engine's options.
    pub options: Options,
    /// The least number of tokens to produce.
    pub min_new_tokens: u32,
    /// Which workers can serve the jobs.
    pub target: Target,
    /// How the jobs are quarantined, if workers have died with them.
    pub quarantine: Quarantine,
}

impl BatchKey {
    /// The key of requests with these options, for any model.
    pub fn new(options: Options, min_new_tokens: u32) -> Self {
        Self { options, min_new_tokens, target: Target::ANY, quarantine: Quarantine::None }
    }
}

impl Target {
    /// Any worker.
    pub const ANY: Self = Self { model: ModelId::ANY, fingerprint: ModelFingerprint::ANY };

    /// Whether only workers with one fingerprint can serve these jobs.
    pub fn is_tied(&self) -> bool {
        self.fingerprint != ModelFingerprint::ANY
    }

    /// Whether a worker with this model can serve these jobs.
    pub fn is_for(&self, model: WorkerModel) -> bool {
        (self.model == ModelId::ANY || self.model == model.model)
            && (!self.is_tied() || self.fingerprint == model.fingerprint)
    }

    /// Whether one worker could serve jobs with both targets, as far as these tell.
    pub fn may_share_a_worker(&self, other: &Self) -> bool {
        let models = [self.model, other.model];
        let fingerprints = [self.fingerprint, other.fingerprint];
        (models[0] == models[1] || models.contains(&ModelId::ANY))
            && (fingerprints[0] == fingerprints[1] || fingerprints.contains(&ModelFingerprint::ANY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_for_workers_with_its_model_and_fingerprint() {
        let any = Target::ANY;
        let model = |model, fingerprint| WorkerModel {
            model: ModelId::new(model),
            fingerprint: ModelFingerprint::of(fingerprint),
        };
        let named = Target { model: ModelId::new(1), ..any };
        assert!(any.is_for(model(1, "a")) && named.is_for(model(1, "a")) && !named.is_for(model(2, "a")));
        let tied = Target { fingerprint: ModelFingerprint::of("a"), ..named };
        assert!(tied.is_tied() && tied.is_for(model(1, "a")) && !tied.is_for(model(1, "b")));
        assert!(any.may_share_a_worker(&named) && named.may_share_a_worker(&any) && any.may_share_a_worker(&tied));
        assert!(!Target { model: ModelId::new(2), ..any }.may_share_a_worker(&named));
        assert!(!tied.may_share_a_worker(&Target { fingerprint: ModelFingerprint::of("b"), ..any }));
    }

    #[test]
    fn requests_with_different_penalties_have_different_keys() {
        let one = BatchKey::new(Options::default(), 0);
        let other = BatchKey::new(Options { repetition_penalty: 1.1, ..Options::default() }, 0);
        assert_ne!(one, other);
    }
}
