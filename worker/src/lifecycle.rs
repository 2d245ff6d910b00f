//! Connects to the proxy again and again until the worker is told to stop.
//!
//! The model stays loaded while no proxy is connected. The log has one line when the proxy is lost and one when it is back.

use std::io;
use std::path::Path;
use std::time::Duration;

use interprocess::local_socket::tokio::{Stream, prelude::*};
use interprocess::local_socket::{GenericFilePath, ToFsName};
use pillion_process::socket::check;
use pillion_protocol::frame::GoodbyeReason;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::error::Error;
use crate::session::{self, End, Worker};
use crate::signals::Control;

const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// The pause after the proxy refused this worker: it will refuse again until the proxy or the worker is replaced.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// Connects to a proxy's socket.
///
/// # Errors
/// No proxy listens there, or the socket could be another user's.
pub async fn dial(socket: &Path) -> io::Result<(impl AsyncRead + Unpin + use<>, impl AsyncWrite + Unpin + use<>)> {
    check(socket)?;
    let stream = Stream::connect(socket.to_fs_name::<GenericFilePath>()?).await?;
    Ok(tokio::io::split(stream))
}

/// Serves one connection after the other until the worker is told to stop.
///
/// # Errors
/// The worker stopped while members were still being served.
pub async fn serve<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    worker: &Worker,
    mut dial: impl AsyncFnMut() -> io::Result<(R, W)>,
    controls: &mut mpsc::Receiver<Control>,
) -> Result<(), Error> {
    let mut pause = SHORTEST_PAUSE;
    let mut away = false;
    loop {
        let lost = match dial().await {
            Err(error) => format!("cannot connect to the proxy: {error}"),
            Ok((reader, writer)) => match session::run(reader, writer, worker, controls).await {
                Ok(end) => {
                    // The handshake succeeded, so the proxy was there.
                    (pause, away) = (SHORTEST_PAUSE, false);
                    match end {
                        End::Drained => return Ok(()),
                        End::DrainTimeout(members) => return stopped(members, "--drain-timeout passed"),
                        End::Quit(members) => return stopped(members, "a second signal came"),
                        End::Goodbye { draining: true, .. } | End::Lost { draining: true, .. } => {
                            tracing::info!(
                                "the proxy disconnected while this worker drained: nothing is left to serve, the worker ends"
                            );
                            return Ok(());
                        }
                        End::Goodbye { goodbye, .. } => {
                            if goodbye.reason != GoodbyeReason::Drained {
                                pause = REFUSED_PAUSE;
                            }
                            format!("the proxy said goodbye: {}", goodbye.message)
                        }
                        End::Lost { reason, .. } => reason,
                    }
                }
                Err(error) => {
                    if error.is_about_versions() {
                        pause = REFUSED_PAUSE;
                    }
                    error.to_string()
                }
            },
        };
        if !away {
            tracing::warn!(
                reason = lost,
                "no proxy is connected, waiting for the proxy: trying again until it listens on the socket"
            );
            away = true;
        }
        if wait(pause, controls).await {
            return Ok(());
        }
        pause = (pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
    }
}

/// Waits for the pause to pass. Returns true if the worker is told to stop meanwhile: without a connection no request waits.
async fn wait(pause: Duration, controls: &mut mpsc::Receiver<Control>) -> bool {
    let sleep = tokio::time::sleep(pause);
    tokio::pin!(sleep);
    loop {
        tokio::select! {
            () = &mut sleep => return false,
            Some(control) = controls.recv() => match control {
                Control::Drain | Control::Quit => return true,
                Control::Dump => tracing::info!("dump: not connected to a proxy, no batch in flight"),
            },
        }
    }
}

fn stopped(members: usize, when: &'static str) -> Result<(), Error> {
    if members == 0 { Ok(()) } else { Err(Error::WorkLeft { members, when }) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pillion_protocol::Frame;
    use pillion_protocol::frame::Goodbye;

    use super::*;
    use crate::session::tests::{paused, pipe, worker};

    /// Lets `times` dials fail, and then connects to a proxy that says goodbye for this reason. The worker is told to stop after
    /// that. Returns the times of the dials in milliseconds.
    fn dials(times: usize, reason: Option<GoodbyeReason>) -> (Vec<u128>, Result<(), Error>) {
        let worker = worker(&Arc::default(), 1);
        paused(async {
            let start = tokio::time::Instant::now();
            let mut dials = Vec::new();
            let (controls, mut receiver) = mpsc::channel(8);
            let dial = async || {
                dials.push(start.elapsed().as_millis());
                if dials.len() > times + 1 {
                    controls.send(Control::Drain).await.unwrap();
                }
                if dials.len() != times + 1 {
                    return Err(io::Error::from(io::ErrorKind::NotFound));
                }
                let ((reader, writer), mut proxy, _) = pipe();
                tokio::spawn(async move {
                    if let Some(reason) = reason {
                        proxy.send(&Frame::Goodbye(Goodbye { reason, message: "no".to_owned() })).await;
                    }
                    while proxy.reader.next().await.unwrap().is_some() {}
                });
                Ok((reader, writer))
            };
            let result = serve(&worker, dial, &mut receiver).await;
            (dials, result)
        })
    }

    #[test]
    fn a_missing_proxy_is_dialled_again_within_50_milliseconds() {
        let (times, result) = dials(9, Some(GoodbyeReason::Drained));
        assert_eq!(times[..10], [0, 1, 3, 7, 15, 31, 63, 113, 163, 213]);
        assert!(result.is_ok());
    }

    #[test]
    fn a_proxy_of_other_versions_is_dialled_again_after_a_second() {
        let (times, _) = dials(0, Some(GoodbyeReason::Version));
        assert_eq!(times, [0, 1000]);
    }
}
