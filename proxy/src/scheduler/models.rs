//! The models that workers have announced. Plain data; the time of day is passed in.

use std::sync::Arc;
use std::time::SystemTime;

use pillion_protocol::frame::Hello;

use crate::domain::ModelId;

/// The most models that are remembered. There are more only while workers that have them are connected.
const REMEMBERED: usize = 64;

/// A model that workers have announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The model's number, which is never used again.
    pub id: ModelId,
    /// The model's name, as workers announce it.
    pub name: Arc<str>,
    /// When the model was first announced.
    pub since: SystemTime,
    /// The most tokens of a prompt and its answer together, as the latest worker announced.
    pub positions: u32,
    /// The largest `sampling_topk`, as the latest worker announced.
    pub vocabulary: u32,
    /// Whether chats are accepted as prompts, as the latest worker announced.
    pub chat: bool,
    /// The number of connected workers that have it.
    pub workers: usize,
}

/// All announced models, in the order in which they were first announced.
#[derive(Clone, Debug, Default)]
pub struct Models {
    all: Vec<Model>,
    last: u32,
}

impl Models {
    /// Adds a worker that has connected. Returns its model's number.
    pub fn announced(&mut self, hello: &Hello, now: SystemTime) -> ModelId {
        let Hello { positions, vocabulary, chat, .. } = *hello;
        if let Some(known) = self.all.iter_mut().find(|model| *model.name == *hello.model) {
            (known.positions, known.vocabulary, known.chat) = (positions, vocabulary, chat);
            known.workers += 1;
            return known.id;
        }
        if self.all.len() >= REMEMBERED
            && let Some(gone) = self.all.iter().position(|model| model.workers == 0)
        {
            self.all.remove(gone);
        }
        self.last += 1;
        let (id, name) = (ModelId::new(self.last), Arc::from(hello.model.as_str()));
        self.all.push(Model { id, name, since: now, positions, vocabulary, chat, workers: 1 });
        id
    }

    /// Whether this model is remembered.
    pub fn has(&self, id: ModelId) -> bool {
        self.all.iter().any(|model| model.id == id)
    }

    /// Removes a worker that had this model.
    pub fn left(&mut self, id: ModelId) {
        if let Some(model) = self.all.iter_mut().find(|model| model.id == id) {
            model.workers = model.workers.saturating_sub(1);
        }
    }

    /// The model of this name. It is found even if its workers are gone, since they may come back.
    pub fn named(&self, name: &str) -> Option<&Model> {
        self.all.iter().find(|model| &*model.name == name)
    }

    /// The models that connected workers have.
    pub fn connected(&self) -> impl Iterator<Item = &Model> {
        self.all.iter().filter(|model| model.workers > 0)
    }

    /// Whether no model has ever been announced.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use pillion_protocol::frame::UnitCost;

    use super::*;

    pub(crate) fn hello(model: &str, positions: u32) -> Hello {
        Hello {
            versions: vec![1],
            software: String::new(),
            pid: 0,
            model: model.to_owned(),
            fingerprint: String::new(),
            positions,
            vocabulary: 10,
            max_batch_tokens: 10,
            slots: 1,
            chat: true,
            cost: UnitCost::default(),
            age_ms: 0,
        }
    }

    #[test]
    fn workers_that_announce_the_same_name_have_the_same_model() {
        let mut models = Models::default();
        let now = SystemTime::UNIX_EPOCH;
        let a = models.announced(&hello("a", 100), now);
        let b = models.announced(&hello("b", 100), now);
        assert_ne!(a, b);
        assert_eq!(models.announced(&hello("a", 200), now), a);
        assert_eq!((models.named("a").unwrap().workers, models.named("a").unwrap().positions), (2, 200));
        models.left(a);
        models.left(b);
        assert_eq!(models.connected().map(|model| &*model.name).collect::<Vec<_>>(), ["a"]);
        assert_eq!(models.named("b").unwrap().id, b, "its workers may come back");
        assert!(models.named("c").is_none());
    }

    #[test]
    fn models_without_workers_are_forgotten_when_there_are_too_many() {
        let mut models = Models::default();
        let now = SystemTime::UNIX_EPOCH;
        let stays = models.announced(&hello("stays", 1), now);
        for n in 0..1000 {
            let id = models.announced(&hello(&format!("m{n}"), 1), now);
            models.left(id);
        }
        assert_eq!(models.all.len(), REMEMBERED);
        assert_eq!(models.named("stays").unwrap().id, stays);
        assert!(models.named("m0").is_none() && models.named("m999").is_some());
    }
}
