//! Hostile clients and honest ones together.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::honest::{Honest, Probed, Prober};
use super::hostile::{Crowd, Deed, honest_http2, resets};
use super::{Row, Scale};
use crate::campaign::load::{Tally, ask};
use crate::campaign::setting::{connected, questions};
use crate::client::Client;
use crate::eventually;
use crate::process::Process;
use crate::stack::Stack;
use crate::usage::Usage;

/// What costs a flood may have, beside honest requests', and what times of honest ones.
const MOST: f64 = 2.0;
/// What memory it may leave behind, beside what was taken before.
const LEFT: f64 = 1.2;

/// What is promised to honest clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promise {
    /// Their answers, hardly later than without the flood.
    Time,
    /// Their answers.
    Answers,
}

/// Nine of ten connections trickle.
pub async fn tricklers(scale: Scale) -> Row {
    let deeds = &[Deed::Head, Deed::Body];
    flood(scale, scale.hostile, deeds, Promise::Time, "connections send a head, or a body, a byte every 2 s").await
}

/// The same number says nothing.
pub async fn idlers(scale: Scale) -> Row {
    flood(scale, scale.hostile, &[Deed::Idle], Promise::Time, "connections send nothing").await
}

/// The same number sends nearly all that a head may have.
pub async fn large_heads(scale: Scale) -> Row {
    let flood_of = "connections send 15 KiB of a head that does not end";
    flood(scale, scale.hostile, &[Deed::LargeHead], Promise::Answers, flood_of).await
}

/// Some send most of large bodies.
pub async fn large_bodies(scale: Scale) -> Row {
    let flood_of = "connections send 2 MB of a body of 2 MiB, and no more";
    flood(scale, (scale.hostile / 90).max(32), &[Deed::LargeBody], Promise::Answers, flood_of).await
}

/// Some do not read.
pub async fn unread(scale: Scale) -> Row {
    let flood_of = "connections ask for a stream of 200 words and do not read it";
    flood(scale, scale.hostile / 45, &[Deed::Unread], Promise::Answers, flood_of).await
}

/// Some open all requests that they may.
pub async fn streams(scale: Scale) -> Row {
    let flood_of = "connections of HTTP/2 with 256 requests each whose bodies do not come";
    flood(scale, scale.hostile / 90, &[Deed::Streams], Promise::Answers, flood_of).await
}

async fn flood(scale: Scale, clients: usize, deeds: &'static [Deed], promise: Promise, flood: &str) -> Row {
    let (mut stack, admin) = stack(&[]).await;
    for _ in 0..2 {
        stack.worker("simulated-worker", &["--batch-cost", "10ms", "--step-cost", "1ms"], &stack.socket());
    }
    connected(&stack, 2).await;
    let honest = Honest::new(stack.address(), scale.honest, questions());
    // Connections are made, and memory is taken as for good.
    let warm = honest.watch(Duration::from_secs(2)).await;
    let before = honest.watch(scale.watch).await;
    let calm = Usage::of(&stack.proxy);

    let prober = Prober::start(admin);
    let crowd = Crowd::start(stack.address(), clients, deeds);
    eventually("nearly all of the crowd are in", async || (crowd.opened() * 20 >= clients * 19).then_some(())).await;
    let under = honest.watch(scale.watch).await;
    let opened = crowd.opened();
    drop(crowd);
    let heard = prober.stop().await;
    let most = Usage::of(&stack.proxy).most;
    sleep(scale.calm).await;
    let after = Usage::of(&stack.proxy).resident;

    let ratio = ratio(under.percentiles()[1], before.percentiles()[1]);
    let is_back = ratio_of(after, calm.resident) <= LEFT;
    let is_clean = warm.is_clean() && before.is_clean() && under.is_clean() && heard.failed == 0;
    Row {
        flood: format!("{clients} {flood}"),
        promise: match promise {
            Promise::Time => "honest clients' p99 at most doubles; /livez answers; memory comes back to a fifth more",
            Promise::Answers => "honest clients are answered; /livez answers; memory comes back to a fifth more",
        },
        before,
        under,
        memory: [calm.resident, most, after].map(|bytes| bytes >> 20),
        seen: format!("p99 {ratio:.2} times; {opened} connections opened; {}", told(heard)),
        kept: is_clean && (!scale.judges || is_back && (promise == Promise::Answers || ratio <= MOST)),
    }
}

/// Requests that are reset as soon as they are made, beside honest ones.
pub async fn rapid_resets(scale: Scale) -> Row {
    const CONNECTIONS: usize = 10;
    let (stack, admin) = served_at_once().await;
    let address = stack.address();
    // What is needed once is not counted.
    honest_http2(address, CONNECTIONS, 50, scale.resets / 10).await;
    let calm = Usage::of(&stack.proxy);
    let honest = spent(&stack.proxy, honest_http2(address, CONNECTIONS, 50, scale.resets)).await.0;
    let prober = Prober::start(admin);
    let begun = Instant::now();
    let (reset, (asked, connections)) = spent(&stack.proxy, resets(address, CONNECTIONS, scale.resets)).await;
    let rate = ratio(f64::from(u32::try_from(asked).expect("not so many")), begun.elapsed().as_secs_f64());
    let seen = format!(
        "{rate:.0} a second over {connections} connections; {:.2} times the processor's time of as many honest ones",
        reset / honest
    );
    let flood = format!("{asked} requests of HTTP/2 are reset as soon as they are made");
    costs(scale, flood, &stack, calm, (reset / honest, seen), prober).await
}

/// Heads that come byte by byte, beside honest requests over a connection each.
pub async fn slow_heads(scale: Scale) -> Row {
    // Each of them is hung up on twice meanwhile.
    const SPAN: Duration = Duration::from_secs(24);
    let (stack, admin) = served_at_once().await;
    let address = stack.address();
    let clients = scale.hostile / 3;
    asked_once(address, clients / 10).await;
    let calm = Usage::of(&stack.proxy);
    let prober = Prober::start(admin);
    // What it costs to be there and to answer probes is no flood's.
    let idle = spent(&stack.proxy, sleep(SPAN)).await.0;
    let mut opened = 0;
    let (slow, ()) = spent(&stack.proxy, async {
        let crowd = Crowd::start(address, clients, &[Deed::Head]);
        sleep(SPAN).await;
        opened = crowd.opened();
    })
    .await;
    let slow = slow - idle;
    let honest = spent(&stack.proxy, asked_once(address, opened)).await.0;
    let seen =
        format!("{:.2} times the processor's time of as many honest requests over a connection each", slow / honest);
    let flood = format!("{opened} connections send a head a byte every 2 s (slowloris)");
    costs(scale, flood, &stack, calm, (slow / honest, seen), prober).await
}

async fn costs(
    scale: Scale,
    flood: String,
    stack: &Stack,
    calm: Usage,
    (ratio, seen): (f64, String),
    prober: Prober,
) -> Row {
    let heard = prober.stop().await;
    let most = Usage::of(&stack.proxy).most;
    sleep(scale.calm).await;
    let after = Usage::of(&stack.proxy).resident;
    Row {
        flood,
        promise: "it costs the proxy at most twice what honest requests do; /livez answers; memory comes back",
        before: Tally::default(),
        under: Tally::default(),
        memory: [calm.resident, most, after].map(|bytes| bytes >> 20),
        seen: format!("{seen}; {}", told(heard)),
        kept: heard.failed == 0 && (!scale.judges || ratio <= MOST && ratio_of(after, calm.resident) <= LEFT),
    }
}

/// Seconds of the processor that a process takes meanwhile.
async fn spent<T>(process: &Process, meanwhile: impl Future<Output = T>) -> (f64, T) {
    let before = Usage::of(process).cpu;
    let done = meanwhile.await;
    (Usage::of(process).cpu - before, done)
}

/// So many requests, each over a connection of its own, 50 at once.
async fn asked_once(address: SocketAddr, requests: usize) {
    let questions = questions();
    let mut asking = JoinSet::new();
    for first in 0..50 {
        let questions = questions.clone();
        asking.spawn(async move {
            for nth in (first..requests).step_by(50) {
                // The first ones are short, and no streams.
                let question = &questions[1 + nth % 7];
                assert_eq!(ask(&Client::new(address), question).await.as_ref(), Ok(&question.expected));
            }
        });
    }
    asking.join_all().await;
}

async fn served_at_once() -> (Stack, SocketAddr) {
    let (mut stack, admin) = stack(&[]).await;
    stack.worker("simulated-worker", &[], &stack.socket());
    connected(&stack, 1).await;
    (stack, admin)
}

async fn stack(more: &[&str]) -> (Stack, SocketAddr) {
    let admin = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    let admin_flag = admin.to_string();
    let flags = [&["--admin-listen", &*admin_flag], more].concat();
    (Stack::proxy(&flags).await, admin)
}

fn told(Probed { asked, failed, longest }: Probed) -> String {
    format!("/livez {asked} times, {failed} failed, longest {} ms", longest.as_millis())
}

fn ratio(value: f64, base: f64) -> f64 {
    value / base.max(1e-9)
}

#[allow(clippy::cast_precision_loss, reason = "bytes of memory are few enough")]
fn ratio_of(value: u64, base: u64) -> f64 {
    ratio(value as f64, base as f64)
}
