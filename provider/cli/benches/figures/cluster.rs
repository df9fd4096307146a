//! Figures of a node in a cluster: real API server, scheduler, controller manager and registry. Pods are placed by the
//! scheduler, and times are from the call that makes or deletes a pod to the watch event that tells the change.

use crate::fixture::akri::client;
use crate::fixture::cluster::{Cluster, ClusterNode, cluster};
use crate::fixture::registry::{Access, Registry};
use crate::fixture::{guest, wait_for};
use crate::process::memory_of;
use crate::{Row, mb, ms, percentile};
use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;
use std::pin::Pin;
use std::time::{Duration, Instant};

const NODE: &str = "figures";
const CACHED: usize = 50;
const PULLED: usize = 20;
const AT_REST: usize = 10;
/// A module of 150 KB is pulled; what a guest lacks of it is filled.
const MODULE: usize = 150_000;

pub async fn measure() -> Vec<Row> {
    let Some(cluster) = cluster() else { return Vec::new() };
    let registry = Registry::start(Access::Public);
    let mut node = ClusterNode::prepare(NODE).with(&["--insecure-registries", &registry.address]);
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    let pods = Pods::of(cluster).await;
    let module = std::fs::read(guest("debug-echo")).unwrap();
    eprintln!("pods of a cluster ...");
    let image = registry.push_module("cached:v1", &module).await;
    pods.create("first", &image).await;
    pods.delete("first").await;
    let (mut cached, mut deleted) = (Vec::new(), Vec::new());
    for number in 0..CACHED {
        let name = format!("cached-{number}");
        cached.push(pods.create(&name, &image).await);
        deleted.push(pods.delete(&name).await);
    }
    let mut pulled = Vec::new();
    for number in 0..PULLED {
        let name = format!("pulled-{number}");
        let image = registry.push_module(&format!("{name}:v1"), &padded(&module, number)).await;
        pulled.push(pods.create(&name, &image).await);
        pods.delete(&name).await;
    }
    eprintln!("a node at rest ...");
    for number in 0..AT_REST {
        pods.create(&format!("rest-{number}"), &image).await;
    }
    // What the last pod's start and the memory it took is given back; then an interval of whole lease periods.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let resident = memory_of(node.pid()).resident;
    let before = cluster.requests_of(&format!("system:node:{NODE}")).len();
    let interval = Duration::from_secs(180);
    tokio::time::sleep(interval).await;
    let requests = cluster.requests_of(&format!("system:node:{NODE}")).split_off(before);
    let per_second = requests.len() as f64 / interval.as_secs_f64();
    assert_eq!(node.terminate(), Some(0));
    let duration = |figure, mut samples: Vec<Duration>, bar: &'static str, limit: u64| {
        let p50 = percentile(&mut samples, 50);
        let ours = format!("{} (p99 {})", ms(p50), ms(percentile(&mut samples, 99)));
        Row { figure, ours, native: "-".to_owned(), bar, holds: Some(p50 <= Duration::from_millis(limit)) }
    };
    vec![
        duration("pod created to Running, image in the store, p50 of 50", cached, "<= 250 ms", 250),
        duration("... with a pull of 150 KB from a registry on this machine, p50 of 20", pulled, "<= 600 ms", 600),
        duration("handler pod deleted (grace 30 s) to gone, p50 of 50", deleted, "<= 1 s", 1000),
        Row {
            figure: "requests of the node to the API server, 10 pods at rest, by its audit log over 180 s",
            ours: format!("{per_second:.3} per s"),
            native: "-".to_owned(),
            bar: "<= 0.15 per s",
            holds: Some(per_second <= 0.15),
        },
        Row {
            figure: "node in a cluster with 10 handler pods, after 70 others: RSS",
            ours: mb(resident),
            native: "-".to_owned(),
            bar: "<= 35 MB",
            holds: Some(resident <= 35_000_000),
        },
    ]
}

/// The module with a custom section of zeros and a number, so that no two are the same.
fn padded(module: &[u8], number: usize) -> Vec<u8> {
    let mut section = vec![3, b'p', b'a', b'd'];
    section.extend(number.to_le_bytes());
    section.resize(MODULE.saturating_sub(module.len() + 4).max(section.len()), 0);
    let mut padded = module.to_vec();
    padded.push(0);
    // The length in LEB128, of three bytes.
    let length = section.len() as u32;
    padded.extend([length as u8 | 0x80, (length >> 7) as u8 | 0x80, (length >> 14) as u8 & 0x7f]);
    padded.extend(section);
    padded
}

/// The pods of the default namespace, as a client of the API sees them.
struct Pods(Api<Pod>);

type Events = Pin<Box<dyn Stream<Item = kube::Result<WatchEvent<Pod>>> + Send>>;

impl Pods {
    async fn of(cluster: &Cluster) -> Self {
        assert!(wait_for(|| cluster.get("serviceaccount", "default", "default").is_some()));
        Self(Api::default_namespaced(client(cluster).await))
    }

    async fn watch(&self, name: &str) -> Events {
        let parameters = WatchParams::default().fields(&format!("metadata.name={name}"));
        let version = self.0.list(&Default::default()).await.unwrap().metadata.resource_version.unwrap();
        self.0.watch(&parameters, &version).await.unwrap().boxed()
    }

    /// Makes a handler pod; the time until it is Running.
    async fn create(&self, name: &str, image: &str) -> Duration {
        let pod = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "nodeSelector": {"kubernetes.io/arch": "wasm32-wasi"},
                "tolerations": [{"key": "kubernetes.io/arch", "operator": "Equal", "value": "wasm32-wasi"}],
                "containers": [{"name": "main", "image": image,
                    "env": [{"name": "DISCOVERY_HANDLER_NAME", "value": name}]}],
            },
        }));
        let events = self.watch(name).await;
        let started = Instant::now();
        self.0.create(&PostParams::default(), &pod.unwrap()).await.unwrap();
        first(events, |event| {
            let WatchEvent::Modified(pod) = event else { return false };
            pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"))
        })
        .await;
        started.elapsed()
    }

    /// Deletes a pod; the time until it is gone.
    async fn delete(&self, name: &str) -> Duration {
        let events = self.watch(name).await;
        let started = Instant::now();
        self.0.delete(name, &DeleteParams::default()).await.unwrap();
        first(events, |event| matches!(event, WatchEvent::Deleted(_))).await;
        started.elapsed()
    }
}

async fn first(mut events: Events, is_it: impl Fn(&WatchEvent<Pod>) -> bool) {
    let wait = async { while !is_it(&events.next().await.unwrap().unwrap()) {} };
    tokio::time::timeout(crate::fixture::DEADLINE, wait).await.expect("it comes to pass");
}
