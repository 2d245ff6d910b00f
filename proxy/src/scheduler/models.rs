//! The models that workers have announced. Plain data; the time of day is passed in.

use std::sync::Arc;
use std::time::SystemTime;

use pillion_protocol::frame::Hello;

use crate::domain::ModelId;

/// So many are remembered; more only while workers that have them are connected.
const REMEMBERED: usize = 64;

/// A model, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Its number, which is never used again.
    pub id: ModelId,
    /// Its name, as workers announce it.
    pub name: Arc<str>,
    /// When it was first announced.
    pub since: SystemTime,
    /// The most tokens that a prompt and its answer may have together; the latest worker's.
    pub positions: u32,
    /// The largest `sampling_topk`; the latest worker's.
    pub vocabulary: u32,
    /// Whether chats are taken as prompts; the latest worker says.
    pub chat: bool,
    /// Connected workers that have it.
    pub workers: usize,
}

/// All of them, in the order in which they were first announced.
#[derive(Clone, Debug, Default)]
pub struct Models {
    all: Vec<Model>,
    last: u32,
}

impl Models {
    /// A worker has connected.
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

    /// A worker that had it is gone.
    pub fn left(&mut self, id: ModelId) {
        if let Some(model) = self.all.iter_mut().find(|model| model.id == id) {
            model.workers = model.workers.saturating_sub(1);
        }
    }

    /// The one of this name. Its workers may be gone: they may come back.
    pub fn named(&self, name: &str) -> Option<&Model> {
        self.all.iter().find(|model| &*model.name == name)
    }

    /// Those that connected workers have.
    pub fn connected(&self) -> impl Iterator<Item = &Model> {
        self.all.iter().filter(|model| model.workers > 0)
    }

    /// Whether none has ever been announced.
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
    fn a_model_is_one_however_many_workers_have_it() {
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
    fn those_that_left_are_not_remembered_for_ever() {
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
