//! The batching policies: one for each model, so that no model waits for what is expected of another. Plain data.
//!
//! A hold is decided again whenever something happens that concerns its model. What happens to other models neither ends nor
//! prolongs it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::ModelId;
use crate::policy::Policy;

/// The policies of all models.
#[derive(Debug)]
pub(super) struct Policies {
    max_batch_size: usize,
    batch_timeout: Duration,
    by_model: BTreeMap<ModelId, Entry>,
}

#[derive(Debug)]
struct Entry {
    policy: Policy,
    /// Until when a batch is held, unless something happens before that concerns the model.
    held_until: Option<Instant>,
}

impl Policies {
    pub(super) fn new(max_batch_size: usize, batch_timeout: Duration) -> Self {
        Self { max_batch_size, batch_timeout, by_model: BTreeMap::new() }
    }

    /// The policy of a model, which begins here if there was none. What it is told may end a hold.
    pub(super) fn of(&mut self, model: ModelId) -> &mut Policy {
        let entry = self.entry(model);
        entry.held_until = None;
        &mut entry.policy
    }

    fn entry(&mut self, model: ModelId) -> &mut Entry {
        let Self { max_batch_size, batch_timeout, by_model } = self;
        let new = || Entry { policy: Policy::new(*max_batch_size, *batch_timeout), held_until: None };
        by_model.entry(model).or_insert_with(new)
    }

    /// The policy of a model, if there is one.
    pub(super) fn get(&self, model: ModelId) -> Option<&Policy> {
        self.by_model.get(&model).map(|entry| &entry.policy)
    }

    /// Records that something has happened that concerns this model, or any model.
    pub(super) fn concerns(&mut self, model: ModelId) {
        let concerned = self.by_model.iter_mut().filter(|(other, _)| model == ModelId::ANY || **other == model);
        concerned.for_each(|(_, entry)| entry.held_until = None);
    }

    /// Records that a batch for this model is held.
    pub(super) fn hold(&mut self, model: ModelId, until: Instant) {
        self.entry(model).held_until = Some(until);
    }

    /// The models whose batch is held, and until when, as far as nothing has happened since that concerns them.
    pub(super) fn held(&self, now: Instant) -> Vec<(ModelId, Instant)> {
        let held = self.by_model.iter().filter_map(|(model, entry)| Some((*model, entry.held_until?)));
        held.filter(|(_, until)| *until > now).collect()
    }

    /// The texts for a model that came in a second lately.
    pub(super) fn texts_per_second(&self, model: ModelId, now: Instant) -> f64 {
        self.get(model).map_or(0.0, |policy| policy.texts_per_second(now))
    }

    /// Ends the holds of all models but these.
    pub(super) fn end_holds_but(&mut self, held: &[ModelId]) {
        for (_, entry) in self.by_model.iter_mut().filter(|(model, _)| !held.contains(model)) {
            entry.policy.nobody_waits();
            entry.held_until = None;
        }
    }

    /// Forgets the policies of models that are forgotten.
    pub(super) fn retain(&mut self, is_remembered: impl Fn(ModelId) -> bool) {
        self.by_model.retain(|model, _| is_remembered(*model));
    }
}
