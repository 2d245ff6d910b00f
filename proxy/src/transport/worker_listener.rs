//! Accepts workers' connections.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, interval, sleep};
use tracing::{error, warn};

use super::listener::ACCEPT_PAUSE;
use super::rate_limited_log::RateLimitedLog;
use crate::link::{self, Links};
use crate::metrics::Metrics;
use crate::socket::WorkerSocket;

/// Accepts workers forever. Each holds one of `places` until its connection ends. If the socket's file is removed, it is
/// created again, unless another proxy has bound the path.
pub async fn accept_workers(mut socket: WorkerSocket, links: Links, metrics: Arc<Metrics>, places: Arc<Semaphore>) {
    let mut check = interval(Duration::from_secs(1));
    let (mut failures, mut refusals) = (RateLimitedLog::default(), RateLimitedLog::default());
    while let Ok(place) = places.clone().acquire_owned().await {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = check.tick() => {
                if socket.is_gone() {
                    match socket.bind_again() {
                        Ok(()) => warn!("the workers' socket was removed; created it again"),
                        Err(error) => error!(%error, "the workers' socket was removed and cannot be created; trying again"),
                    }
                }
                continue;
            }
        };
        match accepted {
            Ok(Ok(stream)) => {
                let links = links.clone();
                tokio::spawn(async move {
                    link::serve(stream, links).await;
                    drop(place);
                });
            }
            Ok(Err(user)) => {
                metrics.workers_refused.increment(1);
                if let Some(times) = refusals.count(Instant::now()) {
                    let uid = user.as_raw();
                    error!(uid, times, "refused another user's connection to the workers' socket; see --allow-peer");
                }
            }
            Err(error) => {
                if let Some(times) = failures.count(Instant::now()) {
                    warn!(%error, times, "cannot accept a worker's connection; trying again");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
