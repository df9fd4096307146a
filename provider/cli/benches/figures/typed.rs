//! Figures of handlers that are components.

use crate::discovery::{Many, latencies_in_turn, many_handlers, memory_with, ready_node};
use crate::fixture::{HandlerPod, Node, next_ids};
use crate::{Row, ms, percentile};
use akri_krustlet_discovery::agent;
use akri_proto::v0::{DiscoverRequest, DiscoverResponse};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tonic::Streaming;

/// Pods, beside one, over which memory is divided.
const MORE: usize = 100;
/// A device of the kernel's own, whose uevents anybody who may write there can cause.
const UEVENT: &str = "/sys/class/mem/null/uevent";

pub async fn measure() -> Vec<Row> {
    let native = std::env::var_os("NATIVE_DEBUG_ECHO").map(PathBuf::from);
    let mut rows = Vec::new();
    eprintln!("latency of Discover, components ...");
    rows.extend(discover_latency(native.as_deref()).await);
    eprintln!("events ...");
    rows.extend(events().await);
    eprintln!("memory of components ...");
    rows.extend(memory().await);
    eprintln!("1,000 components ...");
    rows.extend(
        many_handlers(Many {
            pod: typed,
            figure: "1,000 component handler pods, each with an open stream: exec to all answered",
            time: (Duration::from_secs(2), "<= 2 s"),
            memory: (110_000_000, "<= 110 MB"),
            cpu: (0.1, "<= 0.1 %"),
        })
        .await,
    );
    rows
}

fn typed(name: &str) -> HandlerPod<'_> {
    HandlerPod::typed(name, name, "debug-echo-typed")
}

async fn discover_latency(native: Option<&Path>) -> Vec<Row> {
    let node = ready_node();
    node.add(&typed("typed"));
    node.wait_for_running("typed");
    let (mut ours, mut theirs) = latencies_in_turn(&node.socket("typed"), native).await;
    let (p50, p99) = (percentile(&mut ours, 50), percentile(&mut ours, 99));
    let (native_p50, native_p99, holds) = match native {
        Some(_) => {
            let native_p50 = percentile(&mut theirs, 50);
            (ms(native_p50), ms(percentile(&mut theirs, 99)), Some(p50 <= native_p50))
        }
        None => ("-".to_owned(), "-".to_owned(), None),
    };
    vec![
        Row {
            figure: "a component: Discover to first list, fresh connection each, p50 of 500",
            ours: ms(p50),
            native: native_p50,
            bar: "<= native",
            holds,
        },
        Row { figure: "... p99", ours: ms(p99), native: native_p99, bar: "", holds: None },
    ]
}

async fn follow(node: &Node, details: &str) -> Streaming<DiscoverResponse> {
    let request = DiscoverRequest { discovery_details: details.to_owned(), ..Default::default() };
    let mut stream = agent::discover(node.socket("follower"), request).await.unwrap();
    stream.message().await.unwrap().unwrap();
    stream
}

/// The node sends a stream's client one changed list a second.
const LISTS: Duration = Duration::from_millis(1100);

/// From what `cause` does to the list that has it, 100 times, no more often than lists may follow one another.
async fn reactions(
    stream: &mut Streaming<DiscoverResponse>,
    cause: impl Fn(usize),
    has: impl Fn(&[String], usize) -> bool,
) -> Duration {
    let mut samples = Vec::new();
    for turn in 0..100 {
        tokio::time::sleep(LISTS).await;
        let started = Instant::now();
        cause(turn);
        while !has(&next_ids(stream).await, turn) {}
        samples.push(started.elapsed());
    }
    percentile(&mut samples, 50)
}

async fn events() -> Vec<Row> {
    let node = Node::start();
    let mut pod = HandlerPod { exchange: true, ..HandlerPod::typed("follower", "follower", "event-echo") };
    pod.annotations = vec![
        ("akri-krustlet/uevents", "mem"),
        ("akri-krustlet/links", "lo"),
        ("akri-krustlet/network", "join 239.255.255.250:3702"),
    ];
    node.add(&pod);
    node.wait_for_running("follower");
    let mut rows = Vec::new();
    if std::fs::OpenOptions::new().write(true).open(UEVENT).is_ok() {
        let mut stream = follow(&node, r#"{"uevents": ["mem"]}"#).await;
        let cause = |_| std::fs::write(UEVENT, "change").unwrap();
        // The guest tells every event that it gets, and how many steps it has taken, so each list is another one.
        let has = |ids: &[String], _| ids.iter().any(|id| id.starts_with("uevent change"));
        let p50 = reactions(&mut stream, cause, has).await;
        rows.push(Row {
            figure: "a component: uevent to list at the client, p50 of 100",
            ours: ms(p50),
            native: "polls every 10 s".to_owned(),
            bar: "<= 2 ms",
            holds: Some(p50 <= Duration::from_millis(2)),
        });
    } else {
        eprintln!("skipped: {UEVENT} cannot be written, so there are no uevents");
    }
    let mut stream = follow(&node, r#"{"watch": ["/tmp/wde-dir"]}"#).await;
    let cause = |turn: usize| std::fs::write(node.exchange_file("follower", &format!("f{turn}")), "x").unwrap();
    let has = |ids: &[String], turn: usize| ids.contains(&format!("entry /tmp/wde-dir/f{turn}"));
    let p50 = reactions(&mut stream, cause, has).await;
    rows.push(Row {
        figure: "a component: file written to list at the client, p50 of 100",
        ours: ms(p50),
        native: "-".to_owned(),
        bar: "<= 1 ms",
        holds: Some(p50 <= Duration::from_millis(1)),
    });
    rows
}

async fn memory() -> Vec<Row> {
    let (one, one_streams) = memory_with(1, typed, true).await;
    let (many, many_streams) = memory_with(1 + MORE, typed, true).await;
    let each = many.dirty.saturating_sub(one.dirty) / MORE as u64;
    let with_streams = many_streams.unwrap().dirty.saturating_sub(one_streams.unwrap().dirty) / MORE as u64;
    let stream = with_streams.saturating_sub(each);
    vec![
        Row {
            figure: "one more idle component handler pod, private (dirty and page tables)",
            ours: format!("{:.0} kB", each as f64 / 1e3),
            native: "-".to_owned(),
            bar: "<= 100 kB",
            holds: Some(each <= 100_000),
        },
        Row {
            figure: "one more idle stream of a component, connection included",
            ours: format!("{:.0} kB", stream as f64 / 1e3),
            native: "-".to_owned(),
            bar: "<= 64 kB",
            holds: Some(stream <= 64_000),
        },
    ]
}
