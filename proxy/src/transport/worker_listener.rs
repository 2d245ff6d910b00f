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
use crate::socket::{PathLeadsTo, WorkerSocket};

/// Accepts workers forever. Each holds one of `places` until its connection ends. If the socket's file is removed, it is
/// created again. If another proxy takes the path, a warning says so.
pub async fn accept_workers(mut socket: WorkerSocket, links: Links, metrics: Arc<Metrics>, places: Arc<Semaphore>) {
    let mut check = interval(Duration::from_secs(1));
    let (mut failures, mut refusals) = (RateLimitedLog::default(), RateLimitedLog::default());
    let mut was_taken = false;
    loop {
        let (accepted, place) = tokio::select! {
            accepted = async {
                let place = places.clone().acquire_owned().await;
                (socket.accept().await, place)
            } => accepted,
            _ = check.tick() => {
                match socket.path_leads_to() {
                    PathLeadsTo::Us => was_taken = false,
                    PathLeadsTo::Nothing => match socket.bind_again() {
                        Ok(()) => warn!("the workers' socket was removed; created it again"),
                        Err(error) => error!(%error, "the workers' socket was removed and cannot be created; trying again"),
                    },
                    PathLeadsTo::Another => {
                        if !std::mem::replace(&mut was_taken, true) {
                            warn!("another proxy has taken the workers' socket; workers that connect from now on serve that one");
                        }
                    }
                }
                continue;
            }
        };
        let Ok(place) = place else { return };
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
