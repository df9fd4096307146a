//! This node beside a real kubelet with containerd, in one cluster: the same program as a module and as a static Linux program. Where
//! `WASM_SHIM` names a shim of containerd for WebAssembly, the module also runs by that.

use crate::fixture::cluster::{ClusterNode, cluster_with_linux_node};
use crate::fixture::registry::{Access, Registry};
use crate::fixture::{akri, guest, linux_program, wait_for};
use crate::process::{cpu_time_of, memory_of, processes_beside};
use crate::{Row, mb, ms, percentile};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const LINUX: &str = "linux-peer";
const WASM: &str = "wasm-peer";
/// Pods that come one after the other.
const EACH: usize = 50;
/// Pods whose memory is measured.
const MORE: usize = 10;
/// As many as a kubelet takes.
const AT_ONCE: usize = 110;
const REST: Duration = Duration::from_secs(60);

/// One of those that are compared.
struct Peer {
    name: &'static str,
    node: &'static str,
    image: String,
    runtime_class: Option<&'static str>,
    /// A process of the node; what it consists of is that, or all that is in its namespace.
    process: u32,
    has_namespace: bool,
}

/// What was measured of it.
struct Figures {
    starts: Vec<Duration>,
    proportional: i64,
    private: i64,
    at_once: Duration,
    at_rest: f64,
}

pub async fn measure() -> Vec<Row> {
    let Some(cluster) = cluster_with_linux_node(LINUX) else { return Vec::new() };
    let registry = Registry::start(Access::Public);
    let mut node = ClusterNode::prepare(WASM).with(&["--insecure-registries", &registry.address]);
    node.run(&cluster.bootstrap());
    node.wait_until_ready(&cluster);
    assert!(wait_for(|| cluster.get("serviceaccount", "default", "default").is_some()));
    let module = std::fs::read(guest("workload")).unwrap();
    let program = std::fs::read(linux_program("workload")).unwrap();
    let linux = cluster.pid("linux-node").as_raw_nonzero().get().cast_unsigned();
    let mut peers = vec![
        Peer {
            name: "this node",
            node: WASM,
            image: registry.push_module("wasm:v1", &module).await,
            runtime_class: None,
            process: node.pid(),
            has_namespace: false,
        },
        Peer {
            name: "kubelet, containerd, runc",
            node: LINUX,
            image: registry.push_linux("linux:v1", ("program", &program), "").await,
            runtime_class: None,
            process: linux,
            has_namespace: true,
        },
    ];
    if std::env::var_os("WASM_SHIM").is_some() {
        cluster.apply(&json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
            "metadata": {"name": "wasm"}, "handler": control_plane::linux_node::WASM_RUNTIME}));
        peers.push(Peer {
            name: "kubelet, containerd, WASM_SHIM",
            node: LINUX,
            image: registry.push_linux("shim:v1", ("workload.wasm", &module), "").await,
            runtime_class: Some("wasm"),
            process: linux,
            has_namespace: true,
        });
    }
    let pods: Api<Pod> = Api::default_namespaced(akri::client(&cluster).await);
    let mut all = Vec::new();
    for peer in &peers {
        eprintln!("{} ...", peer.name);
        all.push(peer.measure(&pods).await);
    }
    assert_eq!(node.terminate(), Some(0));
    rows(&peers, all)
}

fn rows(peers: &[Peer], mut all: Vec<Figures>) -> Vec<Row> {
    let starts: Vec<_> = all
        .iter_mut()
        .map(|figures| {
            format!("{} ({})", ms(percentile(&mut figures.starts, 50)), ms(percentile(&mut figures.starts, 99)))
        })
        .collect();
    let of = |text: &dyn Fn(&Figures) -> String| all.iter().map(text).collect::<Vec<_>>();
    let row = |figure, values: Vec<String>, holds| {
        let others = peers.iter().zip(&values).skip(1).map(|(peer, value)| format!("{}: {value}", peer.name));
        Row {
            figure,
            ours: values[0].clone(),
            native: others.collect::<Vec<_>>().join("; "),
            bar: "<= the Linux node",
            holds,
        }
    };
    let (ours, theirs) = (&all[0], &all[1]);
    let (mut our_starts, mut their_starts) = (ours.starts.clone(), theirs.starts.clone());
    vec![
        row(
            "pod created to Running, image present, one after the other, p50 (p99) of 50",
            starts,
            Some(percentile(&mut our_starts, 50) <= percentile(&mut their_starts, 50)),
        ),
        row(
            "one more pod: proportional (private) memory of all processes, mean of 10",
            of(&|figures| format!("{} ({})", mb_of(figures.proportional), mb_of(figures.private))),
            Some(ours.proportional <= theirs.proportional),
        ),
        row(
            "110 pods at once: all Ready",
            of(&|figures| format!("{:.1} s", figures.at_once.as_secs_f64())),
            Some(ours.at_once <= theirs.at_once),
        ),
        row(
            "CPU at rest with 10 pods, over 60 s, of a core",
            of(&|figures| format!("{:.2} %", figures.at_rest)),
            Some(ours.at_rest <= theirs.at_rest),
        ),
    ]
}

fn mb_of(bytes: i64) -> String {
    let size = mb(bytes.unsigned_abs());
    if bytes < 0 { format!("-{size}") } else { size }
}

impl Peer {
    fn pod(&self, name: &str) -> Pod {
        let mut spec: Value = json!({
            "nodeName": self.node, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "main", "image": self.image, "args": ["forever"]}],
        });
        if let Some(class) = self.runtime_class {
            spec["runtimeClassName"] = json!(class);
        }
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
    }

    fn processes(&self) -> Vec<u32> {
        if self.has_namespace { processes_beside(self.process) } else { vec![self.process] }
    }

    fn memory(&self) -> (i64, i64) {
        let memories = self.processes().into_iter().map(memory_of);
        memories.fold((0, 0), |(proportional, private), memory| {
            (proportional + memory.proportional.cast_signed(), private + memory.private.cast_signed())
        })
    }

    fn cpu(&self) -> Duration {
        let running = self.processes().into_iter().filter(|pid| std::fs::metadata(format!("/proc/{pid}")).is_ok());
        running.map(cpu_time_of).sum()
    }

    async fn measure(&self, pods: &Api<Pod>) -> Figures {
        // The image is pulled, and what the node needs for its first pod is there.
        for _ in 0..2 {
            start(pods, vec![self.pod("first")]).await;
            delete_all(pods).await;
        }
        let mut starts = Vec::new();
        for number in 0..EACH {
            starts.push(start(pods, vec![self.pod(&format!("one-{number}"))]).await);
            delete_all(pods).await;
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        let before = self.memory();
        start(pods, (0..MORE).map(|number| self.pod(&format!("more-{number}"))).collect()).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        let after = self.memory();
        let cpu = self.cpu();
        tokio::time::sleep(REST).await;
        let at_rest = (self.cpu().saturating_sub(cpu)).as_secs_f64() / REST.as_secs_f64() * 100.0;
        delete_all(pods).await;
        let at_once = start(pods, (0..AT_ONCE).map(|number| self.pod(&format!("many-{number}"))).collect()).await;
        delete_all(pods).await;
        let each = MORE as i64;
        let (proportional, private) = ((after.0 - before.0) / each, (after.1 - before.1) / each);
        Figures { starts, proportional, private, at_once, at_rest }
    }
}

/// Makes pods; the time until all are Ready, which is when a pod of one container is Running.
async fn start(pods: &Api<Pod>, wanted: Vec<Pod>) -> Duration {
    let version = pods.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let mut events = pods.watch(&WatchParams::default(), &version).await.unwrap().boxed();
    let started = Instant::now();
    let number = wanted.len();
    let created = wanted.into_iter().map(|pod| async move { pods.create(&PostParams::default(), &pod).await.unwrap() });
    futures::future::join_all(created).await;
    let mut ready = BTreeSet::new();
    let all_ready = async {
        while ready.len() < number {
            if let WatchEvent::Modified(pod) = events.next().await.unwrap().unwrap() {
                let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
                if conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True") {
                    ready.insert(pod.metadata.name.unwrap());
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(280), all_ready).await.expect("all pods become Ready");
    started.elapsed()
}

async fn delete_all(pods: &Api<Pod>) {
    pods.delete_collection(&DeleteParams::default().grace_period(0), &ListParams::default()).await.unwrap();
    let gone = async {
        while !pods.list(&ListParams::default()).await.unwrap().items.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(280), gone).await.expect("all pods go");
}
