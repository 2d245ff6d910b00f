//! The load generator counts what happened: every request once, and as what it was.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use pillion_tests::eventually;
use pillion_tests::folder::Folder;
use pillion_tests::load::arrivals::Arrivals;
use pillion_tests::load::tally::Report;
use pillion_tests::load::target::Target;
use pillion_tests::load::{Load, Plan, drive};
use pillion_tests::process::Process;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

/// A bare server, and where it listens.
async fn bare_server(folder: &Folder) -> (Process, SocketAddr) {
    // The program does not say which port it got, so it is given one that was free a moment ago, on an address of the
    // loopback network that no other test uses.
    let free = std::net::TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let server = Process::start("bare-server", &["--listen", &address.to_string()], folder.path().join("server.log"));
    eventually("the bare server listens", async || TcpStream::connect(address).await.ok()).await;
    (server, address)
}

/// A server that gives every request this status and body, or, without one, no answer at all.
async fn stub(answer: Option<(u16, &'static str)>, keep_alive: bool) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = move |request: Request<Incoming>| async move {
        request.into_body().collect().await.unwrap();
        let Some((status, body)) = answer else { return std::future::pending().await };
        Ok::<_, Infallible>(
            Response::builder().status(status).body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap(),
        )
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let connection =
                http1::Builder::new().keep_alive(keep_alive).serve_connection(TokioIo::new(stream), service_fn(answer));
            tokio::spawn(connection);
        }
    });
    address
}

/// Runs the program with these flags besides the usual ones: its exit code and its log.
async fn load_driver(folder: &Folder, address: SocketAddr, flags: &str) -> (Option<i32>, String) {
    let usual = format!("--url http://{address}/generate --body {{}} --duration 300ms --warm-up 100ms {flags}");
    let arguments: Vec<_> = usual.split_whitespace().collect();
    let mut driver = Process::start("load-driver", &arguments, folder.path().join("driver.log"));
    let code = driver.ended().await;
    (code, driver.log())
}

fn plan(address: SocketAddr, load: Load) -> Plan {
    Plan {
        target: Target::new(&format!("http://{address}/generate")).unwrap().or("all", 1.0, "{}".into(), None),
        load,
        warm_up: Duration::ZERO,
        duration: Duration::from_millis(200),
        grace: Duration::from_millis(200),
        max_connections: 8,
        seed: 1,
        obey: false,
    }
}

async fn fifty(address: SocketAddr) -> Report {
    drive(plan(address, Load::Open(Arrivals::Bursts { size: 50, every: Duration::from_secs(1) }))).await.unwrap()
}

#[tokio::test]
async fn every_request_to_a_server_that_answers_is_answered() {
    let folder = Folder::new();
    let (_server, address) = bare_server(&folder).await;
    for (flags, sent) in [
        ("--rate 1000 --arrivals constant", Some(300)),
        ("--rate 1000 --arrivals constant --max-connections 1", Some(300)),
        ("--rate 1000 --seed 7 --expect-field text=ok", None),
        ("--users 4 --expect-field text=ok", None),
        ("--users 4 --think 10ms", None),
        ("--burst 50 --every 100ms --max-connections 10", Some(150)),
    ] {
        let (code, log) = load_driver(&folder, address, flags).await;
        assert_eq!(code, Some(0), "{flags}: {log}");
        let report: Value = serde_json::from_str(&log).unwrap();
        let count = |name: &str| report[name].as_u64().unwrap();
        assert!(sent.is_none_or(|sent| count("sent") == sent), "{flags}: {report}");
        assert!(count("sent") > 0, "{flags}: {report}");
        assert_eq!(count("answered"), count("sent"), "{flags}: {report}");
        assert_eq!((count("failed"), count("unfinished"), count("wrong")), (0, 0, 0), "{flags}: {report}");
        let latency = |name: &str| report["latency_ms"][name].as_f64().unwrap();
        let names = ["p50", "p90", "p99", "p999", "max"];
        assert!(names.map(latency).is_sorted() && latency("p50") > 0.0 && latency("mean") > 0.0, "{flags}: {report}");
        assert!(report["duration_s"] == 0.3 && report["rate"].is_f64(), "{flags}: {report}");
    }
}

#[tokio::test]
async fn an_answer_without_the_expected_field_is_wrong() {
    let folder = Folder::new();
    let (_server, address) = bare_server(&folder).await;
    let (_, log) = load_driver(&folder, address, "--rate 500 --expect-field usage.completion_tokens=10").await;
    let report: Value = serde_json::from_str(&log).unwrap();
    assert_eq!((&report["wrong"], &report["failed"]), (&report["answered"], &0.into()), "{report}");
    assert_ne!(report["wrong"], 0, "{report}");
}

#[tokio::test]
async fn kinds_of_requests_are_sent_as_often_as_the_mix_says_and_counted_apart() {
    let folder = Folder::new();
    let (_server, address) = bare_server(&folder).await;
    let mix = folder.path().join("mix.jsonl");
    std::fs::write(
        &mix,
        r#"{"name": "often", "weight": 9, "body": {}, "expect": "text=ok"}
           {"name": "rare", "body": {}, "expect": "text=other"}"#,
    )
    .unwrap();
    let flags = format!("--rate 2000 --arrivals constant --duration 1s --mix {}", mix.display());
    let usual = format!("--url http://{address}/generate {flags}");
    let arguments: Vec<_> = usual.split_whitespace().collect();
    let mut driver = Process::start("load-driver", &arguments, folder.path().join("driver.log"));
    assert_eq!(driver.ended().await, Some(0), "{}", driver.log());
    let report: Value = serde_json::from_str(&driver.log()).unwrap();
    let answered = |name: &str| report["kinds"][name]["answered"].as_u64().unwrap();
    assert_eq!(answered("often") + answered("rare"), 2000, "{report}");
    assert!((100..300).contains(&answered("rare")), "{report}");
    assert_eq!(report["wrong"], answered("rare"), "{report}");
}

#[tokio::test]
async fn whoever_is_told_when_to_ask_again_does_so_once() {
    let report = served_again(true).await;
    assert_eq!((report.sent, report.answered), (50, 50 - report.failed));
    assert_eq!(report.asked_again, report.failed);
    // Whoever asks again comes among the others, and is refused too where fewer than fifty have been.
    assert_eq!(report.served_then, 2 * report.failed - 50);
    let report = served_again(false).await;
    assert_eq!((report.failed, report.asked_again), (50, 0));
}

/// Fifty requests to a server that refuses the first fifty that it sees and asks them to come again at once.
async fn served_again(obey: bool) -> Report {
    let refused = Arc::new(AtomicU32::new(0));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = move |_request: Request<Incoming>| {
        let first = refused.fetch_add(1, Relaxed) < 50;
        let response = Response::builder().status(if first { 429 } else { 200 }).header("retry-after", "0");
        async move { response.body(Full::new(Bytes::new())) }
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer.clone())));
        }
    });
    let load = Load::Open(Arrivals::Bursts { size: 50, every: Duration::from_secs(1) });
    drive(Plan { obey, ..plan(address, load) }).await.unwrap()
}

#[tokio::test]
async fn another_status_than_200_is_a_failure_and_has_no_latency() {
    for status in [500, 503, 204] {
        let report = fifty(stub(Some((status, "")), true).await).await;
        assert_eq!((report.sent, report.failed, report.answered), (50, 50, 0), "{status}");
        assert_eq!((report.latency, report.unfinished), (None, 0), "{status}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_a_failure() {
    let folder = Folder::new();
    let (server, address) = bare_server(&folder).await;
    drop(server);
    eventually("the server is gone", async || TcpStream::connect(address).await.err()).await;
    let report = fifty(address).await;
    assert_eq!((report.sent, report.failed), (50, 50));
    let report = drive(plan(address, Load::Closed { users: 2, think: Duration::ZERO })).await.unwrap();
    assert!(report.failed > 0 && report.failed == report.sent, "{report:?}");
}

#[tokio::test]
async fn what_nobody_answers_is_unfinished_also_what_never_got_a_connection() {
    let silent = stub(None, true).await;
    let report = fifty(silent).await;
    assert_eq!((report.sent, report.unfinished, report.failed), (50, 50, 0));
    let report = drive(plan(silent, Load::Closed { users: 20, think: Duration::ZERO })).await.unwrap();
    assert_eq!((report.sent, report.unfinished), (20, 20));
}

#[tokio::test]
async fn a_server_that_closes_after_each_answer_is_dialled_again() {
    let report = fifty(stub(Some((200, "{}")), false).await).await;
    assert_eq!((report.sent, report.answered), (50, 50));
}

#[tokio::test]
async fn flags_that_make_no_sense_are_exit_code_64() {
    let folder = Folder::new();
    let nobody = "127.0.0.1:9".parse().unwrap();
    for flags in [
        "",
        "--rate 0",
        "--rate -1",
        "--rate NaN",
        "--rate 10 --users 2",
        "--rate 10 --think 1s",
        "--rate 10 --every 1s",
        "--users 0",
        "--users 2 --arrivals constant",
        "--users 2 --every 1s",
        "--burst 5",
        "--burst 5 --every 0s",
        "--rate 10 --max-connections 0",
        "--users 2 --think 2h",
        "--rate 10 --expect-field text",
        "--rate 10 --arrivals never",
        "--rate 10 --no-such-flag",
        "--rate 10 --mix nowhere.jsonl",
    ] {
        let (code, log) = load_driver(&folder, nobody, flags).await;
        assert_eq!(code, Some(64), "{flags}: {log}");
        assert!(log.contains("--"), "{flags}: {log}");
    }
    let mut driver = Process::start(
        "load-driver",
        &["--url", "https://127.0.0.1/", "--body", "{}", "--rate", "1"],
        folder.path().join("https.log"),
    );
    assert_eq!(driver.ended().await, Some(64), "{}", driver.log());
}
