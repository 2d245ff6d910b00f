//! A client that says anything, and then a decent one: the decent one is served, and nothing is left over.

#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use pillion_fuzz::{Proxied, after};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATHS: [&str; 8] = [
    "/generate",
    "/generate_stream",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/models",
    "/metrics",
    "/livez",
    "/openapi.json",
];

#[derive(Arbitrary, Debug)]
enum Said<'a> {
    /// Bytes as they are.
    Raw(&'a [u8]),
    /// A body for one of the paths.
    Body(u8, &'a str),
    /// A request with a body of the wrong length, or of chunks.
    Head(u8, u16, bool, &'a [u8]),
    /// The preface of HTTP/2, and frames: type, flags, stream, payload.
    Http2(Vec<(u8, u8, u8, &'a [u8])>),
}

impl Said<'_> {
    fn bytes(&self) -> Vec<u8> {
        let path = |nth: u8| PATHS[usize::from(nth) % PATHS.len()];
        match self {
            Self::Raw(bytes) => bytes.to_vec(),
            Self::Body(nth, body) => pillion_fuzz::request(path(*nth), body, "keep-alive"),
            Self::Head(nth, length, chunked, bytes) => {
                let framing = if *chunked { "transfer-encoding: chunked\r\n" } else { "" };
                let head =
                    format!("POST {} HTTP/1.1\r\nhost: a\r\n{framing}content-length: {length}\r\n\r\n", path(*nth));
                [head.as_bytes(), bytes].concat()
            }
            Self::Http2(frames) => {
                let mut wire = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
                wire.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
                for (kind, flags, stream, payload) in frames.iter().take(64) {
                    let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
                    wire.extend(&length[1..]);
                    wire.extend([kind % 10, *flags, 0, 0, 0, *stream]);
                    wire.extend(*payload);
                }
                wire
            }
        }
    }
}

fuzz_target!(|said: Vec<Said<'_>>| {
    let bytes: Vec<Vec<u8>> = said.iter().take(8).map(Said::bytes).collect();
    pillion_fuzz::run(async move {
        let proxied = Proxied::new();
        let client = proxied.client();
        let (mut heard, mut says) = tokio::io::split(client);
        let speak = async {
            for bytes in bytes {
                if says.write_all(&bytes).await.is_err() {
                    break;
                }
                after(1).await;
            }
            let _ = says.shutdown().await;
        };
        let hear = async {
            let mut buffer = vec![0; 65536];
            while heard.read(&mut buffer).await.is_ok_and(|bytes| bytes > 0) {}
        };
        // A silent one is closed in the end.
        let both = async { tokio::join!(speak, hear) };
        tokio::time::timeout(std::time::Duration::from_secs(600), both).await.expect("everything ends");
        let answer = proxied.ask("/livez", "").await.expect("no client panics");
        assert!(answer.starts_with(b"HTTP/1.1 405 "), "{}", String::from_utf8_lossy(&answer));
        proxied.is_empty().await;
    });
});
