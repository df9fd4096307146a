//! Figures of many nodes against one API server: real programs, each with a data directory and a handler pod of its own, on one machine.
//! `FLEET` says how many, 500 by default.

use crate::fixture::cluster::{Cluster, ClusterNode, own_cluster};
use crate::fixture::wait_for;
use crate::process::{cpu_time_of, memory_of};
use crate::{Row, mb, percentile};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Nodes that start at the same time.
const AT_ONCE: usize = 20;
/// Several lease periods, and a part of the time after which a status is told again.
const INTERVAL: Duration = Duration::from_secs(180);
/// How long all of them may take to be Ready, so many at a time.
const PATIENCE: Duration = Duration::from_secs(180);
const INSTANCES: &str = "/proc/sys/fs/inotify/max_user_instances";

pub fn measure() -> Vec<Row> {
    let number: usize = std::env::var("FLEET").map_or(500, |text| text.parse().expect("FLEET is a number"));
    let Some(cluster) = own_cluster("8760h") else { return Vec::new() };
    // A process has one instance, and most systems give a user 128.
    let Ok(before) = std::fs::read_to_string(INSTANCES) else { return Vec::new() };
    if std::fs::write(INSTANCES, "8192").is_err() {
        println!(
            "skipped: a fleet on one machine needs more inotify instances than {}, which root can set",
            before.trim()
        );
        return Vec::new();
    }
    let rows = fleet(&cluster, number);
    std::fs::write(INSTANCES, before).unwrap();
    rows
}

fn fleet(cluster: &Cluster, number: usize) -> Vec<Row> {
    let control_plane = |cluster: &Cluster| {
        ["kube-apiserver", "etcd"].map(|program| cluster.pid(program).as_raw_nonzero().get().cast_unsigned())
    };
    let [api_server, etcd] = control_plane(cluster);
    let of_controllers = watches(cluster);
    let alone = [api_server, etcd].map(|pid| memory_of(pid).resident);
    let started = Instant::now();
    let mut nodes = Vec::new();
    for first in (0..number).step_by(AT_ONCE) {
        for number in first..(first + AT_ONCE).min(number) {
            let mut node = ClusterNode::prepare(&format!("edge-{number}"));
            node.run(&cluster.bootstrap());
            nodes.push(node);
        }
        let ready = || ready(cluster) == nodes.len();
        let deadline = Instant::now() + PATIENCE;
        while !ready() {
            assert!(
                Instant::now() < deadline,
                "{} of {} nodes are Ready; the last: {}",
                self::ready(cluster),
                nodes.len(),
                nodes[first].log()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
        eprintln!("{} nodes ...", nodes.len());
    }
    let joined = started.elapsed();
    for node in &nodes {
        cluster.apply(&with_namespace(node.handler_pod(&format!("handler-{}", node.name), "debugEcho")));
    }
    let running = || count(cluster, "pods", |pod| pod["status"]["phase"] == "Running") == nodes.len();
    assert!(wait_for(running), "not all handler pods run");
    // What the starts made.
    std::thread::sleep(Duration::from_secs(60));
    let (requests, cpu) = (requests(cluster), cpu_time_of(api_server));
    std::thread::sleep(INTERVAL);
    let by_verb = difference(requests, self::requests(cluster));
    let seconds = INTERVAL.as_secs_f64() * nodes.len() as f64;
    let each = by_verb.values().sum::<u64>() as f64 / seconds;
    let most: Vec<_> = by_verb.iter().map(|(what, count)| format!("{what} {:.4}", *count as f64 / seconds)).collect();
    let cores = (cpu_time_of(api_server) - cpu).as_secs_f64() / INTERVAL.as_secs_f64();
    let memory = [api_server, etcd].map(|pid| memory_of(pid).resident);
    let watches = watches(cluster).saturating_sub(of_controllers);
    let mut private: Vec<_> = nodes.iter().map(|node| Duration::from_nanos(memory_of(node.pid()).private)).collect();
    let private = percentile(&mut private, 50).as_nanos();
    let row = |figure, ours| Row { figure, ours, native: "-".to_owned(), bar: "", holds: None };
    vec![
        row(
            "a fleet of real nodes, one API server, one handler pod each: nodes; all joined and Ready, 20 at a time",
            format!("{}; {:.0} s", nodes.len(), joined.as_secs_f64()),
        ),
        row(
            "... requests of a node to the API server, over 180 s, at rest",
            format!("{each:.3} per s ({})", most.join(", ")),
        ),
        row("... open watches, of each node", format!("{watches}, {:.1}", watches as f64 / nodes.len() as f64)),
        row(
            "... memory (RSS) of the API server and of etcd, before and with them",
            format!("{} to {}; {} to {}", mb(alone[0]), mb(memory[0]), mb(alone[1]), mb(memory[1])),
        ),
        row("... CPU of the API server, of a core", format!("{:.0} %", cores * 100.0)),
        row("... private memory of a node, p50", mb(u64::try_from(private).unwrap())),
    ]
}

fn with_namespace(mut pod: Value) -> Value {
    pod["metadata"]["namespace"] = "default".into();
    pod
}

fn ready(cluster: &Cluster) -> usize {
    count(cluster, "nodes", |node| crate::fixture::condition(node, "Ready") == Some(true))
}

fn count(cluster: &Cluster, kind: &str, is: impl Fn(&Value) -> bool) -> usize {
    let output = cluster.kubectl(&["get", kind, "-o", "json"]);
    let list: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    list["items"].as_array().into_iter().flatten().filter(|object| is(object)).count()
}

/// Of the nodes, by verb and resource: what the audit log has of them.
fn requests(cluster: &Cluster) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    let log = std::fs::read_to_string(cluster.directory.join("audit.log")).unwrap();
    let mut seen = std::collections::HashSet::new();
    for entry in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let user = entry["user"]["username"].as_str().unwrap_or_default();
        if user.starts_with("system:node:") && seen.insert(entry["auditID"].to_string()) {
            let text = |pointer: &str| entry.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
            *counts.entry(format!("{} {}", text("/verb"), text("/objectRef/resource"))).or_default() += 1;
        }
    }
    counts
}

fn difference(before: BTreeMap<String, u64>, after: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let more = after.into_iter().map(|(what, count)| {
        let more = count - before.get(&what).copied().unwrap_or(0);
        (what, more)
    });
    more.filter(|(_, count)| *count > 0).collect()
}

/// Watches that the API server has open.
fn watches(cluster: &Cluster) -> u64 {
    let metrics = cluster.kubectl_ok(&["get", "--raw", "/metrics"]);
    let is_watch = |line: &&str| line.starts_with("apiserver_longrunning_requests{") && line.contains("verb=\"WATCH\"");
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
    metrics.lines().filter(is_watch).filter_map(value).sum::<f64>() as u64
}
