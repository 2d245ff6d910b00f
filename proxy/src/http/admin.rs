//! Probes and metrics: what an operator asks.

use super::response::{metrics, probe};
use super::{Answer, Service};
use crate::metrics::Endpoint;

impl Service {
    pub(super) fn tell(&self, endpoint: Endpoint) -> Answer {
        match endpoint {
            Endpoint::Readyz => probe(self.unready()),
            Endpoint::Metrics => metrics(self.metrics.render()),
            _ => probe(None),
        }
    }

    /// Why the service is not ready; `None` where it is. A full queue is no reason: it must not take the pod away.
    fn unready(&self) -> Option<&'static str> {
        if self.is_draining() {
            Some("draining: the proxy is shutting down")
        } else if self.handle.workers_serving() == 0 {
            Some("no worker is connected")
        } else {
            None
        }
    }
}
