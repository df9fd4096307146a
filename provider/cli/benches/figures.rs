//! The project's figures: prints one table and writes it to docs/benchmarks.md. Run by `make bench`.
//!
//! `NATIVE_DEBUG_ECHO` may name Akri's native debug-echo-discovery-handler; it is then measured in the same run. Otherwise
//! its column holds what was measured of Akri 0.13.26 on a machine of the same kind, marked with `*`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a figure that cannot be taken ends the run")]

#[path = "../tests/fixture/mod.rs"]
mod fixture;

use akri_krustlet_discovery::agent::{self, RegistrationSocket};
use akri_proto::v0::{DiscoverRequest, DiscoverResponse};
use fixture::{HandlerPod, Node, ids, wait_for};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tonic::Streaming;

const FOO: &str = r#"{"descriptions":["foo0","foo1"]}"#;
const PODS: usize = 1000;

struct Row {
    figure: &'static str,
    ours: String,
    native: String,
    bar: &'static str,
    /// `None` where there is no bar.
    holds: Option<bool>,
}

fn main() {
    // `cargo test --benches` calls this too; figures of a debug build are none.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("skipped: figures are taken by `make bench`");
        return;
    }
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let rows = runtime.block_on(measure());
    let table = table(&rows);
    println!("\n{table}");
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/benchmarks.md");
    std::fs::write(&page, format!("{}\n{table}\n{COSTS}", introduction())).unwrap();
    println!("written to docs/benchmarks.md");
}

async fn measure() -> Vec<Row> {
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
    rows.extend(many_handlers().await);
    eprintln!("spinning guests ...");
    rows.extend(spinning().await);
    rows
}

// Statistics and output.

/// Where bars were missed when this was written.
const COSTS: &str = "\
## What costs it

- Discover to first list: the native handler answers from the task that accepted the call. Here the request goes through a
  file to a guest on another thread of lower priority and back: four thread hand-overs and about ten file operations. In
  this loop of calls one after the other, the start of the next spare guest is in it, too.
- Private memory at rest: 12 MB of it are clean pages of the program's own text, private because one process maps them; the
  dirty part is 1.6 MB. The compiler (used by the compile child only) and the archived Kubernetes client of the kubelet crate
  are in the same program.
- A pod: about 53 kB are the guest (store, fiber stack, linear memory, page tables); the rest is the pod's manifest and
  status in two API versions, its state machine, its gRPC server and its log. A stream adds an HTTP/2 connection.
";

fn percentile(samples: &mut [Duration], percent: usize) -> Duration {
    samples.sort();
    samples[(samples.len() * percent / 100).min(samples.len() - 1)]
}

fn ms(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1e3)
}

fn table(rows: &[Row]) -> String {
    let mut text = String::from("| figure | akri-krustlet | native | bar | |\n|---|---|---|---|---|\n");
    for row in rows {
        let holds = match row.holds {
            None => "",
            Some(true) => "holds",
            Some(false) => "**missed**",
        };
        writeln!(text, "| {} | {} | {} | {} | {holds} |", row.figure, row.ours, row.native, row.bar).unwrap();
    }
    text
}

fn introduction() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let system = rustix::system::uname();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "# Benchmarks\n\n\
        Written by `make bench` (release build; `provider/cli/benches/figures.rs` says how each figure is taken).\n\
        Machine: {}, {cores} cores, {} {}.\n\n\
        *native* is Akri's debug-echo-discovery-handler, measured in the same run if `NATIVE_DEBUG_ECHO` names it; figures\n\
        marked with `*` were measured before, of Akri 0.13.26 on such a machine, and figures of 2021 are those of its gRPC proxy.\n\
        Private memory is private clean and dirty pages and page tables. Times are between two events of a client on the\n\
        same machine, connection included.\n",
        cpu.trim_start_matches([' ', '\t', ':']),
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy(),
    )
}

// Measuring a process.

/// Bytes.
struct Memory {
    resident: u64,
    private: u64,
    dirty: u64,
}

fn memory_of(pid: u32) -> Memory {
    let field = |file: &str, names: &[&str]| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
        let value = |line: &str| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
        text.lines().filter(|line| names.contains(&line.split(':').next().unwrap())).map(value).sum::<u64>() * 1024
    };
    let tables = field("status", &["VmPTE"]);
    let dirty = field("smaps_rollup", &["Private_Dirty"]) + tables;
    let clean = field("smaps_rollup", &["Private_Clean"]);
    Memory { resident: field("smaps_rollup", &["Rss"]), private: dirty + clean, dirty }
}

fn cpu_time_of(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

fn threads_of(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
}

fn wake_ups_of(pid: u32) -> u64 {
    let of_thread = |status: String| -> u64 {
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("status")).ok()).map(of_thread).sum()
}

fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

// The native handler.

struct Native {
    process: Child,
    directory: tempfile::TempDir,
    registration: RegistrationSocket,
}

impl Native {
    /// Starts it and waits until it has registered; the time from exec to then.
    async fn start(program: &Path) -> (Self, Duration) {
        let directory = tempfile::tempdir().unwrap();
        let mut registration = RegistrationSocket::serve(directory.path()).unwrap();
        let started = Instant::now();
        let process = Command::new(program)
            .env("DISCOVERY_HANDLERS_DIRECTORY", directory.path())
            .env("DEBUG_ECHO_INSTANCES_SHARED", "true")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        registration.next().await.unwrap();
        let elapsed = started.elapsed();
        let native = Self { process, directory, registration };
        // It registers before it listens.
        assert!(wait_for(|| native.socket().exists()));
        (native, elapsed)
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("debugEcho.sock")
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        while self.registration.try_next().is_some() {}
    }
}

// The figures.

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

fn ready_node() -> Node {
    let node = Node::start();
    node.wait_for_running("witness");
    node
}

async fn discover_latency(native: Option<&Path>) -> Vec<Row> {
    let node = ready_node();
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    let native = match native {
        Some(program) => Some(Native::start(program).await.0),
        None => None,
    };
    // In turn, so that a machine whose speed drifts is fair to both.
    for _ in 0..10 {
        ours.extend(latencies(&node.socket("debugEcho"), 50).await);
        if let Some(native) = &native {
            theirs.extend(latencies(&native.socket(), 50).await);
        }
    }
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
    let mut ours = reactions(&node.socket("debugEcho"), &file, 50, Duration::from_millis(20)).await;
    let p50 = percentile(&mut ours, 50);
    let theirs = match native {
        Some(program) => {
            let (native, _) = Native::start(program).await;
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
                theirs.push(Native::start(program).await.1);
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

fn mb(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// A running node with `number` handler pods, all answering.
fn node_with(number: usize) -> Node {
    let mut node = Node::prepare();
    // The store is filled by a life before, as on a node that has run these handlers yesterday.
    node.add(&HandlerPod::new("h0", "h0", "debug-echo"));
    node.run();
    node.wait_for_running("h0");
    node.kill();
    for pod in 1..number {
        let name = format!("h{pod}");
        node.add(&HandlerPod::new(&name, &name, "debug-echo"));
    }
    node
}

/// Lets the threads that loading took and the watcher's work come to an end.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(12)).await;
}

async fn memory_with(number: usize) -> Memory {
    let mut node = node_with(number);
    node.run();
    let last = node.socket(&format!("h{}", number - 1));
    assert!(wait_for(|| last.exists()));
    for pod in 0..number {
        assert!(wait_for(|| node.socket(&format!("h{pod}")).exists()));
    }
    settle().await;
    memory_of(node.pid())
}

async fn memory(native: Option<&Path>) -> Vec<Row> {
    let one = memory_with(1).await;
    let many = memory_with(101).await;
    let each = many.dirty.saturating_sub(one.dirty) / 100;
    let theirs = match native {
        Some(program) => {
            let (native, _) = Native::start(program).await;
            drop(first_list(&native.socket()).await);
            let memory = memory_of(native.process.id());
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

async fn many_handlers() -> Vec<Row> {
    let mut node = node_with(PODS);
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
    let (cpu, wake_ups) = (cpu_time_of(node.pid()), wake_ups_of(node.pid()));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let cpu = cpu_time_of(node.pid()) - cpu;
    let wake_ups = wake_ups_of(node.pid()) - wake_ups;
    let share = cpu.as_secs_f64() / 60.0 * 100.0;
    drop(streams);
    let none = String::from("-");
    vec![
        Row {
            figure: "1,000 handler pods, each with an open stream: exec to all answered",
            ours: format!("{:.2} s", elapsed.as_secs_f64()),
            native: none.clone(),
            bar: "<= 3 s",
            holds: Some(elapsed <= Duration::from_secs(3)),
        },
        Row {
            figure: "... private memory of the node",
            ours: mb(memory.private),
            native: none.clone(),
            bar: "<= 150 MB",
            holds: Some(memory.private <= 150_000_000),
        },
        Row {
            figure: "... threads of the node",
            ours: threads.to_string(),
            native: none.clone(),
            bar: "constant",
            holds: Some(threads < 30),
        },
        Row {
            figure: "... CPU over 60 s idle, of a core",
            ours: format!("{share:.2} % ({wake_ups} wake-ups)"),
            native: "one handler: 0.008 %*".to_owned(),
            bar: "<= 0.3 %",
            holds: Some(share <= 0.3),
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
