//! An HTTP server that does nothing: the limit that the proxy is measured against.
//!
//! It reads a request's body to the end and answers a constant, with the runtime, the socket options and the hyper
//! settings of `pillion-proxy`. What the proxy adds to it is what Pillion costs.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

const BAD_FLAG: u8 = 64;
const UNAVAILABLE: u8 = 69;

const ANSWER: &[u8] = br#"{"text":"ok"}"#;

// As in `proxy/src/http/connection.rs` and `proxy/src/app.rs`, which do not show theirs.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
const MAX_HEAD: usize = 16 * 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Answers every request with the same few bytes, until it is killed.
#[derive(Debug, Parser)]
#[command(version)]
struct Flags {
    /// The address for clients.
    #[arg(long)]
    listen: SocketAddr,
}

fn main() -> ExitCode {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { BAD_FLAG } else { 0 });
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Err(error) = runtime.and_then(|runtime| runtime.block_on(live(flags.listen))) else {
        return ExitCode::SUCCESS;
    };
    eprintln!("error: cannot listen on {}: {error}", flags.listen);
    ExitCode::from(UNAVAILABLE)
}

/// Serves for ever, unless it cannot listen.
async fn live(address: SocketAddr) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(stream));
            }
            // No descriptor left, most likely.
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn serve(stream: TcpStream) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    // How a client leaves is its own affair.
    let _ = connection.await;
}

async fn answer(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    while let Some(frame) = request.body_mut().frame().await {
        frame?;
    }
    let mut answer = Response::new(Full::new(Bytes::from_static(ANSWER)));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(answer)
}
