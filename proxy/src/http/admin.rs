//! Probes, metrics and the API's description: what an operator asks.

use std::sync::LazyLock;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;

use super::response::{description, metrics, probe};
use super::{Answer, Service};
use crate::metrics::Endpoint;

/// The API's own description (`OpenAPI` 3.1), as it is sent.
static DESCRIPTION: LazyLock<Bytes> = LazyLock::new(|| {
    let text = include_str!("openapi.json").replacen("\"VERSION\"", concat!("\"", env!("CARGO_PKG_VERSION"), "\""), 1);
    text.into()
});

impl Service {
    pub(super) fn tell(&self, endpoint: Endpoint) -> Answer {
        match endpoint {
            Endpoint::Readyz => probe(self.unready()),
            Endpoint::Metrics => metrics(self.metrics.render()),
            Endpoint::OpenApi => description(&DESCRIPTION),
            _ => probe(None),
        }
    }

    /// Why the service is not ready; `None` where it is. A full queue is no reason: it must not take the pod away.
    fn unready(&self) -> Option<&'static str> {
        if self.leaving.load(Relaxed) {
            Some("draining: the proxy is shutting down")
        } else if self.handle.workers_leaving().is_some() {
            Some("draining: the last worker was told to stop")
        } else if self.handle.workers_serving() == 0 {
            Some("no worker is connected")
        } else {
            None
        }
    }
}
