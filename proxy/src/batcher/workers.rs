//! The workers that are connected and the credit they have granted. Plain data.

use std::sync::Arc;

use pillion_protocol::frame::Hello;
use tokio::sync::mpsc::Sender;

use super::ToLink;

/// A connection of a worker; a worker that returns is a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u64);

/// A connected worker.
#[derive(Debug)]
pub struct Worker {
    /// Its connection.
    pub id: WorkerId,
    /// What it said of itself.
    pub hello: Hello,
    /// The same as in its HELLO, to be shared with what it produces.
    pub fingerprint: Arc<str>,
    /// Its link's inbox.
    pub link: Sender<ToLink>,
    /// Batches it will take.
    pub credit: u32,
    /// Members it holds.
    pub members: usize,
    /// It wants to leave.
    pub draining: bool,
    /// It was told that it may; nothing more goes to it.
    pub released: bool,
}

/// All that are connected.
#[derive(Debug, Default)]
pub struct Workers {
    all: Vec<Worker>,
}

impl Workers {
    /// A worker has connected.
    pub fn add(&mut self, id: WorkerId, hello: Hello, link: Sender<ToLink>) {
        let fingerprint = Arc::from(hello.fingerprint.as_str());
        let (credit, members, draining, released) = (0, 0, false, false);
        self.all.push(Worker { id, hello, fingerprint, link, credit, members, draining, released });
    }

    /// A worker's connection has ended.
    pub fn remove(&mut self, id: WorkerId) -> Option<Worker> {
        let at = self.all.iter().position(|worker| worker.id == id)?;
        Some(self.all.swap_remove(at))
    }

    /// The worker on that connection.
    pub fn get_mut(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.all.iter_mut().find(|worker| worker.id == id)
    }

    /// The worker that the next batch goes to: of those with credit the least loaded, one that wants to leave only if
    /// no other has credit.
    pub fn least_loaded(&mut self) -> Option<&mut Worker> {
        self.all
            .iter_mut()
            .filter(|worker| worker.credit > 0 && !worker.released)
            .min_by_key(|worker| (worker.draining, worker.members, worker.id))
    }

    /// Every worker.
    pub fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.all.iter()
    }

    /// Whether none is connected that takes batches.
    pub fn none_serving(&self) -> bool {
        self.all.iter().all(|worker| worker.released)
    }

    /// The workers that want to leave and are not needed: an equal one stays, or nothing waits and they hold nothing.
    pub fn releasable(&self, queue_is_empty: bool) -> Vec<WorkerId> {
        let staying = |leaver: &Worker| {
            self.all.iter().any(|worker| !worker.draining && worker.fingerprint == leaver.fingerprint)
        };
        self.all
            .iter()
            .filter(|worker| worker.draining && !worker.released)
            .filter(|worker| staying(worker) || (queue_is_empty && worker.members == 0))
            .map(|worker| worker.id)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    fn workers(fingerprints: &[&str]) -> Workers {
        let mut workers = Workers::default();
        for (id, fingerprint) in (1..).zip(fingerprints) {
            let hello = Hello {
                versions: vec![1],
                software: "test".into(),
                pid: 0,
                model: "model".into(),
                fingerprint: (*fingerprint).into(),
                positions: 1024,
                vocabulary: 512,
                max_batch_tokens: 4096,
                slots: 1,
                cost: pillion_protocol::frame::UnitCost::default(),
            };
            workers.add(WorkerId(id), hello, mpsc::channel(1).0);
            workers.get_mut(WorkerId(id)).unwrap().credit = 1;
        }
        workers
    }

    #[test]
    fn the_least_loaded_with_credit_is_next() {
        let mut workers = workers(&["a", "a", "a"]);
        workers.get_mut(WorkerId(1)).unwrap().members = 5;
        workers.get_mut(WorkerId(2)).unwrap().members = 2;
        workers.get_mut(WorkerId(3)).unwrap().credit = 0;
        assert_eq!(workers.least_loaded().unwrap().id, WorkerId(2));
        workers.get_mut(WorkerId(2)).unwrap().credit = 0;
        assert_eq!(workers.least_loaded().unwrap().id, WorkerId(1));
        workers.get_mut(WorkerId(1)).unwrap().credit = 0;
        assert!(workers.least_loaded().is_none());
    }

    #[test]
    fn a_lone_worker_that_wants_to_leave_is_kept_while_somebody_waits() {
        let mut workers = workers(&["a", "b"]);
        workers.get_mut(WorkerId(1)).unwrap().draining = true;
        assert!(workers.releasable(false).is_empty(), "the other one has another model");
        assert_eq!(workers.releasable(true), [WorkerId(1)]);
        workers.get_mut(WorkerId(1)).unwrap().members = 1;
        assert!(workers.releasable(true).is_empty(), "it holds a member");
    }

    #[test]
    fn a_worker_with_an_equal_beside_it_may_leave_at_once() {
        let mut workers = workers(&["a", "a"]);
        workers.get_mut(WorkerId(2)).unwrap().draining = true;
        assert_eq!(workers.releasable(false), [WorkerId(2)]);
        assert_eq!(workers.least_loaded().unwrap().id, WorkerId(1));
    }

    #[test]
    fn a_released_worker_serves_no_more() {
        let mut workers = workers(&["a"]);
        workers.get_mut(WorkerId(1)).unwrap().released = true;
        assert!(workers.least_loaded().is_none() && workers.none_serving());
    }
}
