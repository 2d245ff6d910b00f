//! With few file descriptors clients wait, but workers and probes do not.

use std::net::TcpListener;
use std::time::Duration;

use pillion_tests::client::Client;
use pillion_tests::eventually;
use pillion_tests::folder::Folder;
use pillion_tests::stack::Stack;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::timeout;

#[tokio::test]
async fn clients_that_take_all_connections_block_no_worker_and_no_probe() {
    // Workers and probes could need all of so few descriptors. Then clients get half of them.
    const DESCRIPTORS: usize = 64;
    const ROOM: usize = DESCRIPTORS / 2;
    let limit = format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}");
    let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let flags = ["--admin-listen", &admin.to_string()];
    let mut stack = Stack::proxy_by(&["prlimit", &limit], Folder::new(), &flags).await;
    let told = format!("\"connections\":{ROOM}");
    stack.proxy.logged("fewer connections", |line| line.contains(&told).then_some(())).await;

    let mut idle = Vec::new();
    for _ in 0..ROOM {
        idle.push(TcpStream::connect(stack.address()).await.unwrap());
    }
    let client = stack.client();
    let mut waiting = tokio::spawn(async move { client.generate(&json!({"text": "a b"})).await });
    stack.simulated_worker(&[]);
    let admin = Client::new(admin);
    eventually("/readyz says 200", async || (admin.try_get("/readyz").await?.status == 200).then_some(())).await;
    // If the connection were accepted, the answer would come at once.
    let early = timeout(Duration::from_millis(300), &mut waiting).await;
    assert!(early.is_err(), "a connection beyond the limit was accepted");

    drop(idle);
    let answer = waiting.await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(!stack.proxy.log().contains("cannot accept"), "{}", stack.proxy.log());
}
