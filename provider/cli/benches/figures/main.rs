//! The project's figures: prints tables and writes them to docs/benchmarks.md. Run by `make bench`.
//! `cargo bench --workspace --bench figures -- cluster` takes one part only, and leaves the others on the page.
//!
//! `NATIVE_DEBUG_ECHO` may name Akri's native debug-echo-discovery-handler; it is then measured in the same run. Otherwise
//! its column holds what was measured of Akri 0.13.26 on a machine of the same kind, marked with `*`.
//! The figures of `peers` need root: they are beside a real kubelet with containerd and runc, and beside another runtime of containerd
//! where `WASM_SHIM` names its shim.
//! `AKRI_BIN` and `AKRI_CRDS` name Akri's Agent and Controller; without them the figures of the whole chain are left out.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a figure that cannot be taken ends the run")]

mod akri;
mod authors;
mod cluster;
mod devices;
mod discovery;
#[path = "../../tests/fixture/mod.rs"]
mod fixture;
mod fleet;
mod handler_mode;
mod peers;
mod pods;
mod process;
mod protocols;
mod typed;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

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
    process::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let parts: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    for part in PARTS.iter().filter(|part| wanted(part.name)) {
        let rows = (part.measure)(&runtime);
        if rows.is_empty() {
            continue;
        }
        // Each part is printed and written when it is there: a run takes long, and may be cut off.
        let table = table(&rows);
        println!("{table}");
        if !protocols::is_inside() {
            write(part, &table);
        }
    }
}

/// Figures that are taken together.
struct Part {
    name: &'static str,
    title: &'static str,
    measure: fn(&tokio::runtime::Runtime) -> Vec<Row>,
}

const PARTS: [Part; 11] = [
    Part {
        name: "discovery",
        title: "Handlers by the contract of 2021",
        measure: |runtime| runtime.block_on(discovery::measure()),
    },
    Part {
        name: "typed",
        title: "Handlers that are components",
        measure: |runtime| runtime.block_on(typed::measure()),
    },
    Part { name: "protocols", title: "Handlers for real devices", measure: |_| protocols::measure_inside() },
    Part { name: "authors", title: "For authors of handlers", measure: |_| authors::measure() },
    Part { name: "cluster", title: "The node in a cluster", measure: |runtime| runtime.block_on(cluster::measure()) },
    Part { name: "pods", title: "Pods", measure: |runtime| runtime.block_on(pods::measure()) },
    Part { name: "devices", title: "Device plugins", measure: |runtime| vec![runtime.block_on(devices::measure())] },
    Part {
        name: "akri",
        title: "With Akri's Agent and Controller",
        measure: |runtime| runtime.block_on(akri::measure()),
    },
    Part { name: "handler-mode", title: "Handlers only", measure: |runtime| runtime.block_on(handler_mode::measure()) },
    Part { name: "fleet", title: "Many nodes", measure: |_| fleet::measure() },
    Part { name: "peers", title: "Beside a Linux node", measure: |runtime| runtime.block_on(peers::measure()) },
];

/// Writes a part to docs/benchmarks.md, in the place of what an earlier run found, and leaves the other parts.
fn write(part: &Part, table: &str) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/benchmarks.md");
    let old = std::fs::read_to_string(&page).unwrap_or_default();
    let mut text = introduction();
    for other in &PARTS {
        let heading = format!("## {}\n", other.title);
        let section = match other.name == part.name {
            true => Some(format!("\n{}\n\n{table}", taken())),
            false => old.split_once(&heading).map(|(_, rest)| rest.split("\n## ").next().unwrap().to_owned()),
        };
        if let Some(section) = section {
            write!(text, "\n{heading}{}\n", section.trim_end()).unwrap();
        }
    }
    write!(text, "\n{COSTS}").unwrap();
    std::fs::write(&page, text).unwrap();
    println!("written to docs/benchmarks.md: {}", part.title);
}

/// Where and of what a part was taken.
fn taken() -> String {
    let output = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).output();
        output.map_or_else(|_| "unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let mut commit = output("git", &["rev-parse", "--short", "HEAD"]);
    // A run of some parts changes the page that the next part is written to.
    let changed = output(
        "git",
        &["status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)docs/benchmarks.md"],
    );
    if !changed.is_empty() {
        commit.push_str("-dirty");
    }
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let system = rustix::system::uname();
    format!(
        "At commit {}, {}, on: {}, {} cores, {} {}.",
        commit,
        output("date", &["-u", "+%Y-%m-%d"]),
        cpu.trim_start_matches([' ', '\t', ':']),
        std::thread::available_parallelism().map_or(0, usize::from),
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy(),
    )
}

// Statistics and output.

/// Where bars were missed when this was written.
const COSTS: &str = "\
## What costs it

- Discover to first list: the native handler answers from the task that accepted the call. Here the request goes through a
  file to a guest on another thread of lower priority and back: four thread hand-overs and about ten file operations. In
  this loop of calls one after the other, the start of the next spare guest is in it, too.
- Private memory at rest: the dirty part of 2 to 3 MB, and the code that a node at rest runs. What only a start or a call needed is let
  go after five seconds without one (it is the program's own text, clean, and mapped again when it is needed).
- A pod: about 20 kB are the guest's pages and 6 kB its page tables; 45 kB are live in the allocator: the pod's manifest and status in two
  API versions, its state machine, its gRPC server and its log. A stream adds an HTTP/2 connection, of whose 45 kB 28 kB are the
  buffers that the h2 library makes for each. Other allocators take more (when a pod had 103 kB with glibc's, it had 203 kB with
  jemalloc and 141 kB with mimalloc).
";

fn mb(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

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
    "# Benchmarks\n\n\
    Written by `make bench` (release build; `provider/cli/benches/figures/` says how each figure is taken). Each part says of\n\
    which commit it is; what a figure is compared with is of the same run.\n\n\
    *native* is Akri's debug-echo-discovery-handler, measured in the same run if `NATIVE_DEBUG_ECHO` names it (in the part of\n\
    the real devices the handlers that `NATIVE_UDEV`, `NATIVE_OPCUA` and `NATIVE_ONVIF` name); figures\n\
    marked with `*` were measured before, of Akri 0.13.26 on such a machine, and figures of 2021 are those of its gRPC proxy.\n\
    In rows about pods of a Linux node, it is that node: kubelet, containerd and runc, and another runtime of containerd\n\
    beside them if `WASM_SHIM` names its shim.\n\
    Private memory is private clean and dirty pages and page tables. Times are between two events of a client on the\n\
    same machine, connection included.\n"
        .to_owned()
}
