//! Figures of a node that runs alone: discovery, memory, CPU.

use crate::fixture::native::NativeAlone;
use crate::fixture::{HandlerPod, Node, ids};
use crate::process::{Memory, cpu_time_of, memory_of, threads_of, wake_ups_of};
use crate::{Row, mb, ms, percentile};
use akri_krustlet_discovery::agent::{self, RegistrationSocket};
use akri_proto::v0::{DiscoverRequest, DiscoverResponse};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tonic::Streaming;

const FOO: &str = r#"{"descriptions":["foo0","foo1"]}"#;
const PODS: usize = 1000;
/// Until a node whose lists were new counts as idle.
const REST: Duration = Duration::from_secs(300);

pub async fn measure() -> Vec<Row> {
    let native = std::env::var_os("NATIVE_DEBUG_ECHO").map(PathBuf::from);
    let mut rows = Vec::new();
    eprintln!("latency of Discover ...");
    rows.extend(discover_latency(native.as_deref()).await);
    eprintln!("reaction to a file ...");
    rows.push(file_reaction(native.as_deref()).await);
    eprintln!("start ...");
    rows.push(start(native.as_deref()).await);
    eprintln!("memory ...");
    rows.extend(memory(native.as_deref()).await);
    eprintln!("{PODS} handlers ...");
    rows.extend(
        many_handlers(Many {
            pod: exchange,
            figure: "1,000 handler pods, each with an open stream: exec to all answered",
            time: (Duration::from_secs(3), "<= 3 s"),
            memory: (130_000_000, "<= 130 MB"),
            cpu: (0.3, "<= 0.3 %"),
        })
        .await,
    );
    eprintln!("spinning guests ...");
    rows.extend(spinning().await);
    rows
}

/// A handler pod by the contract of 2021.
fn exchange(name: &str) -> HandlerPod<'_> {
    HandlerPod::new(name, name, "debug-echo")
}

async fn first_list(socket: &Path) -> (Duration, Streaming<DiscoverResponse>) {
    let request = DiscoverRequest { discovery_details: FOO.to_owned(), ..Default::default() };
    let started = Instant::now();
    let mut stream = agent::discover(socket.to_owned(), request).await.unwrap();
    let list = stream.message().await.unwrap().unwrap();
    let elapsed = started.elapsed();
    assert_eq!(ids(list), ["foo0", "foo1"]);
    (elapsed, stream)
}

async fn latencies(socket: &Path, number: usize) -> Vec<Duration> {
    for _ in 0..20 {
        first_list(socket).await;
    }
    let mut samples = Vec::new();
    for _ in 0..number {
        samples.push(first_list(socket).await.0);
    }
    samples
}

/// 500 of this handler and, if there is one, of the native one: in turn, so that a machine whose speed drifts is fair to both.
pub async fn latencies_in_turn(socket: &Path, native: Option<&Path>) -> (Vec<Duration>, Vec<Duration>) {
    let native = match native {
        Some(program) => Some(NativeAlone::start(program).await.0),
        None => None,
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        ours.extend(latencies(socket, 50).await);
        if let Some(native) = &native {
            theirs.extend(latencies(&native.socket(), 50).await);
        }
    }
    (ours, theirs)
}

pub fn ready_node() -> Node {
    let node = Node::start();
    node.wait_for_running("witness");
    node
}

async fn discover_latency(native: Option<&Path>) -> Vec<Row> {
    let node = ready_node();
    let (mut ours, mut theirs) = latencies_in_turn(&node.socket("debugEcho"), native).await;
    let (p50, p99) = (percentile(&mut ours, 50), percentile(&mut ours, 99));
    let (native_p50, native_p99, holds) = match native {
        Some(_) => {
            let native_p50 = percentile(&mut theirs, 50);
            (ms(native_p50), ms(percentile(&mut theirs, 99)), p50 <= native_p50)
        }
        None => ("0.75-0.84 ms*".to_owned(), "p95 1.2 ms*".to_owned(), p50 <= Duration::from_micros(840)),
    };
    vec![
        Row {
            figure: "Discover to first list, fresh connection each, p50 of 500",
            ours: ms(p50),
            native: native_p50,
            bar: "<= native",
            holds: Some(holds),
        },
        Row { figure: "... p99", ours: ms(p99), native: native_p99, bar: "", holds: None },
    ]
}

async fn next_change(stream: &mut Streaming<DiscoverResponse>, empty: bool) {
    loop {
        let list = stream.message().await.unwrap().unwrap();
        if list.devices.is_empty() == empty {
            return;
        }
    }
}

async fn reactions(socket: &Path, file: &Path, number: usize, pause: Duration) -> Vec<Duration> {
    let mut stream = first_list(socket).await.1;
    let mut samples = Vec::new();
    for turn in 0..number {
        tokio::time::sleep(pause).await;
        let offline = turn % 2 == 0;
        let started = Instant::now();
        std::fs::write(file, if offline { "OFFLINE" } else { "ONLINE" }).unwrap();
        next_change(&mut stream, offline).await;
        samples.push(started.elapsed());
    }
    std::fs::remove_file(file).unwrap();
    samples
}

async fn file_reaction(native: Option<&Path>) -> Row {
    let node = ready_node();
    let file = node.exchange_file("witness", "debug-echo-availability.txt");
    // The node sends a change of a list that has just changed after a pause.
    let mut ours = reactions(&node.socket("debugEcho"), &file, 50, Duration::from_millis(1100)).await;
    let p50 = percentile(&mut ours, 50);
    let theirs = match native {
        Some(program) => {
            let (native, _) = NativeAlone::start(program).await;
            let file = Path::new("/tmp/debug-echo-availability.txt");
            let mut theirs = reactions(&native.socket(), file, 4, Duration::from_secs(3)).await;
            format!("{:.1} s (p50 of 4); 2021 proxy 5-9 s*", percentile(&mut theirs, 50).as_secs_f64())
        }
        None => "7.8 s*; 2021 proxy 5-9 s*".to_owned(),
    };
    Row {
        figure: "availability file written to list at the client, p50 of 50",
        ours: ms(p50),
        native: theirs,
        bar: "<= 5 ms",
        holds: Some(p50 <= Duration::from_millis(5)),
    }
}

async fn start(native: Option<&Path>) -> Row {
    let mut node = Node::prepare();
    node.add(&HandlerPod::new("witness", "debugEcho", "debug-echo"));
    std::fs::create_dir_all(node.path("akri")).unwrap();
    let mut registration = RegistrationSocket::serve(&node.path("akri")).unwrap();
    let mut ours = Vec::new();
    for run in 0..21 {
        let started = Instant::now();
        node.run();
        registration.next().await.unwrap();
        // The first start compiles.
        if run > 0 {
            ours.push(started.elapsed());
        }
        node.kill();
    }
    let p50 = percentile(&mut ours, 50);
    let theirs = match native {
        Some(program) => {
            let mut theirs = Vec::new();
            for _ in 0..20 {
                theirs.push(NativeAlone::start(program).await.1);
            }
            ms(percentile(&mut theirs, 50))
        }
        None => "4-12 ms*".to_owned(),
    };
    Row {
        figure: "exec to registered, module in the store, p50 of 20",
        ours: ms(p50),
        native: theirs,
        bar: "<= 60 ms",
        holds: Some(p50 <= Duration::from_millis(60)),
    }
}

/// A handler pod of a name, which is its handler's, too.
pub type Pods = for<'a> fn(&'a str) -> HandlerPod<'a>;

/// A running node with `number` handler pods, all answering.
fn node_with(number: usize, pod: Pods) -> Node {
    let mut node = Node::prepare();
    // The store is filled by a life before, as on a node that has run these handlers yesterday.
    node.add(&pod("h0"));
    node.run();
    node.wait_for_running("h0");
    node.kill();
    for number in 1..number {
        node.add(&pod(&format!("h{number}")));
    }
    node
}

/// Lets the threads that loading took, the watcher's work and the repetitions of lists come to an end.
pub async fn settle() {
    tokio::time::sleep(Duration::from_secs(35)).await;
}

/// Of a node with so many handler pods, before each has a stream, and if asked for, after that.
pub async fn memory_with(number: usize, pod: Pods, with_streams: bool) -> (Memory, Option<Memory>) {
    let mut node = node_with(number, pod);
    node.run();
    for pod in 0..number {
        node.wait_for_socket(&format!("h{pod}"));
    }
    settle().await;
    let at_rest = memory_of(node.pid());
    if !with_streams {
        return (at_rest, None);
    }
    let mut streams = Vec::new();
    for pod in 0..number {
        streams.push(first_list(&node.socket(&format!("h{pod}"))).await.1);
    }
    settle().await;
    (at_rest, Some(memory_of(node.pid())))
}

async fn memory(native: Option<&Path>) -> Vec<Row> {
    let (one, _) = memory_with(1, exchange, false).await;
    let (many, _) = memory_with(101, exchange, false).await;
    let each = many.dirty.saturating_sub(one.dirty) / 100;
    let theirs = match native {
        Some(program) => {
            let (native, _) = NativeAlone::start(program).await;
            drop(first_list(&native.socket()).await);
            let memory = memory_of(native.native.pid());
            (format!("{} / {}", mb(memory.resident), mb(memory.private)), mb(memory.private))
        }
        None => ("6.1 MB / 4.0 MB*".to_owned(), "4.2 MB*".to_owned()),
    };
    vec![
        Row {
            figure: "node at rest, one handler: RSS / private",
            ours: format!("{} / {}", mb(one.resident), mb(one.private)),
            native: format!("Agent 13.6 MB*, handler {}", theirs.0),
            bar: "<= 25 MB / <= 12 MB",
            holds: Some(one.resident <= 25_000_000 && one.private <= 12_000_000),
        },
        Row {
            figure: "each further idle handler pod of the same image, private (dirty and page tables)",
            ours: format!("{:.0} kB", each as f64 / 1e3),
            native: theirs.1,
            bar: "<= 100 kB",
            holds: Some(each <= 100_000),
        },
    ]
}

/// What [`many_handlers`] measures, and the bars.
pub struct Many {
    pub pod: Pods,
    pub figure: &'static str,
    pub time: (Duration, &'static str),
    /// Bytes.
    pub memory: (u64, &'static str),
    /// Percent of a core.
    pub cpu: (f64, &'static str),
}

pub async fn many_handlers(Many { pod, figure, time, memory: memory_bar, cpu: cpu_bar }: Many) -> Vec<Row> {
    let mut node = node_with(PODS, pod);
    std::fs::create_dir_all(node.path("akri")).unwrap();
    let mut registration = RegistrationSocket::serve(&node.path("akri")).unwrap();
    let started = Instant::now();
    node.run();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..PODS {
        let handler = registration.next().await.unwrap();
        calls.spawn(async move { first_list(Path::new(&handler.endpoint)).await.1 });
    }
    let mut streams = Vec::new();
    while let Some(stream) = calls.join_next().await {
        streams.push(stream.unwrap());
    }
    let elapsed = started.elapsed();
    settle().await;
    let memory = memory_of(node.pid());
    let threads = threads_of(node.pid());
    // New lists are repeated, ever more seldom.
    tokio::time::sleep(REST).await;
    let (cpu, wake_ups) = (cpu_time_of(node.pid()), wake_ups_of(node.pid()));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let cpu = cpu_time_of(node.pid()) - cpu;
    let wake_ups = wake_ups_of(node.pid()) - wake_ups;
    let share = cpu.as_secs_f64() / 60.0 * 100.0;
    drop(streams);
    let none = String::from("-");
    vec![
        Row {
            figure,
            ours: format!("{:.2} s", elapsed.as_secs_f64()),
            native: none.clone(),
            bar: time.1,
            holds: Some(elapsed <= time.0),
        },
        Row {
            figure: "... private memory of the node",
            ours: mb(memory.private),
            native: none.clone(),
            bar: memory_bar.1,
            holds: Some(memory.private <= memory_bar.0),
        },
        Row {
            figure: "... threads of the node",
            ours: threads.to_string(),
            native: none.clone(),
            bar: "constant",
            holds: Some(threads < 30),
        },
        Row {
            figure: "... CPU over 60 s idle, of a core, from the sixth minute on",
            ours: format!("{share:.2} % ({wake_ups} wake-ups)"),
            native: "one handler: 0.008 %*".to_owned(),
            bar: cpu_bar.1,
            holds: Some(share <= cpu_bar.0),
        },
    ]
}

async fn spinning() -> Vec<Row> {
    let node = ready_node();
    let spinner = |name: &str, limits: &'static str| {
        let mut pod = HandlerPod { handler: "", limits, ..HandlerPod::fault("", "spin") };
        pod.env.push(("FAULT_AT", "start"));
        let manifest = pod.manifest().replace(r#""name":"""#, &format!(r#""name":"{name}""#));
        node.write_manifest(&format!("{name}.json"), &manifest.replace("exchange-", &format!("exchange-{name}")));
        node.wait_for_running(name);
    };
    spinner("limited", r#"{"cpu":"100m"}"#);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (before, started) = (cpu_time_of(node.pid()), Instant::now());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let cores = (cpu_time_of(node.pid()) - before).as_secs_f64() / started.elapsed().as_secs_f64();
    node.remove_manifest("limited.json");
    for number in 0..8 {
        spinner(&format!("spin{number}"), "{}");
    }
    let mut samples = latencies(&node.socket("debugEcho"), 500).await;
    let p99 = percentile(&mut samples, 99);
    vec![
        Row {
            figure: "CPU of a spinning guest with limits.cpu 100m, over 10 s",
            ours: format!("{cores:.3} cores"),
            native: "-".to_owned(),
            bar: "0.1 within 20 %",
            holds: Some((0.08..=0.12).contains(&cores)),
        },
        Row {
            figure: "Discover to first list beside 8 spinning guests without limit, p99 of 500",
            ours: ms(p99),
            native: "-".to_owned(),
            bar: "<= 20 ms",
            holds: Some(p99 <= Duration::from_millis(20)),
        },
    ]
}
