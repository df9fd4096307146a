//! Figures of many pods, outages and restarts of a node in a cluster. Times are to the watch event that tells the change.

use crate::fixture::akri::client;
use crate::fixture::cluster::{Cluster, ClusterNode, cluster};
use crate::fixture::proxy::{Proxy, Way};
use crate::process::{cpu_time_of, memory_of};
use crate::{Row, ms, percentile};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams, WatchEvent, WatchParams};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const NODE: &str = "figures-pods";
const AT_ONCE: usize = 110;
const RESTARTED: usize = 100;
/// Seconds; `OUTAGE_SECONDS` says otherwise.
const OUTAGE: u64 = 60;
const ENDING: usize = 20;
const CHURN: usize = 500;
const BATCH: usize = 50;

pub async fn measure() -> Vec<Row> {
    let Some(cluster) = cluster() else { return Vec::new() };
    let proxy = Proxy::start(&cluster.server(), 1);
    let mut node = ClusterNode::prepare(NODE);
    let bootstrap = proxy.kubeconfig(&cluster.bootstrap(), &node.path("bootstrap.conf"));
    node.run(&bootstrap);
    node.wait_until_ready(cluster);
    // Other parts leave pods of nodes that are gone.
    let namespace = cluster.namespace(NODE);
    let pods = Pods { api: Api::namespaced(client(cluster).await, &namespace.name) };
    let mut rows = Vec::new();
    eprintln!("{CHURN} pods come and go ...");
    rows.push(churn(&pods, &node).await);
    eprintln!("{AT_ONCE} pods at once ...");
    rows.extend(at_once(&pods, &node, cluster).await);
    eprintln!("a node is killed ...");
    rows.push(restart(&pods, &mut node, &bootstrap).await);
    let seconds = std::env::var("OUTAGE_SECONDS").map(|text| text.parse().expect("OUTAGE_SECONDS is a number"));
    rows.extend(outage(&pods, &node, &proxy, Duration::from_secs(seconds.unwrap_or(OUTAGE))).await);
    assert_eq!(node.terminate(), Some(0));
    rows
}

struct Pods {
    api: Api<Pod>,
}

/// What a watch has told of a pod.
struct Seen {
    ready: bool,
    restarts: i32,
    phase: String,
    at: Instant,
}

impl Pods {
    async fn create(&self, pods: Vec<Value>) {
        let created = pods.into_iter().map(|pod| async move {
            let pod = serde_json::from_value(pod).unwrap();
            self.api.create(&Default::default(), &pod).await.unwrap();
        });
        futures::future::join_all(created).await;
    }

    /// Follows all pods until `reached`; what was seen of each, with the time of its last change.
    async fn follow(&self, reached: impl Fn(&BTreeMap<String, Seen>) -> bool) -> BTreeMap<String, Seen> {
        let list = self.api.list(&ListParams::default()).await.unwrap();
        let mut seen = BTreeMap::new();
        let take = |seen: &mut BTreeMap<String, Seen>, pod: Pod| {
            let status = pod.status.unwrap_or_default();
            let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
            let restarts = status.container_statuses.iter().flatten().map(|container| container.restart_count).sum();
            let phase = status.phase.unwrap_or_default();
            seen.insert(pod.metadata.name.unwrap(), Seen { ready, restarts, phase, at: Instant::now() });
        };
        for pod in list.items {
            take(&mut seen, pod);
        }
        let version = list.metadata.resource_version.unwrap();
        let mut events = self.api.watch(&WatchParams::default(), &version).await.unwrap().boxed();
        let follow = async {
            while !reached(&seen) {
                match events.next().await.unwrap().unwrap() {
                    WatchEvent::Added(pod) | WatchEvent::Modified(pod) => take(&mut seen, pod),
                    WatchEvent::Deleted(pod) => {
                        seen.remove(&pod.metadata.name.unwrap());
                    }
                    _ => {}
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(120), follow).await.expect("it comes to pass");
        seen
    }

    async fn delete_all(&self) {
        self.api.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
        self.follow(BTreeMap::is_empty).await;
    }
}

fn pod(node: &ClusterNode, name: &str) -> Value {
    let mut pod = node.fault_pod(name, "sleep");
    pod["spec"]["terminationGracePeriodSeconds"] = json!(0);
    pod
}

fn all_ready(number: usize, restarts: i32) -> impl Fn(&BTreeMap<String, Seen>) -> bool {
    move |seen| seen.values().filter(|pod| pod.ready && pod.restarts == restarts).count() == number
}

async fn churn(pods: &Pods, node: &ClusterNode) -> Row {
    let batch = |from: usize| (from..from + BATCH).map(|number| pod(node, &format!("churn-{number}"))).collect();
    let open_files = || std::fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap().count();
    // The first ones take what the node needs for as many pods at a time.
    for from in [0, BATCH] {
        pods.create(batch(from)).await;
        pods.follow(all_ready(BATCH, 0)).await;
        pods.delete_all().await;
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    let (before, files) = (memory_of(node.pid()), open_files());
    for from in (0..CHURN).step_by(BATCH) {
        pods.create(batch(from)).await;
        pods.follow(all_ready(BATCH, 0)).await;
        pods.delete_all().await;
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    let (after, files_after) = (memory_of(node.pid()), open_files());
    let growth = after.private as i64 - before.private as i64;
    Row {
        figure: "500 pods created and deleted, 50 at a time: growth of private memory; open files before and after",
        ours: format!("{:.2} MB; {files}, {files_after}", growth as f64 / 1e6),
        native: "-".to_owned(),
        bar: "<= 2 MB",
        holds: Some(growth <= 2_000_000),
    }
}

async fn at_once(pods: &Pods, node: &ClusterNode, cluster: &Cluster) -> Vec<Row> {
    let user = format!("system:node:{NODE}");
    let writes = || {
        let requests = cluster.requests_of(&user);
        let is_write =
            |request: &&Value| ["create", "patch", "update", "delete"].iter().any(|verb| request["verb"] == *verb);
        let of_pods = |request: &&Value| ["pods", "events"].iter().any(|of| request["objectRef"]["resource"] == *of);
        requests.iter().filter(is_write).filter(of_pods).count()
    };
    let before = writes();
    let started = Instant::now();
    pods.create((0..AT_ONCE).map(|number| pod(node, &format!("many-{number}"))).collect()).await;
    pods.follow(all_ready(AT_ONCE, 0)).await;
    let elapsed = started.elapsed();
    // Events may be a little late.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let each = (writes() - before) as f64 / AT_ONCE as f64;
    vec![
        Row {
            figure: "110 pods at once, image in the store: all Ready",
            ours: format!("{:.2} s", elapsed.as_secs_f64()),
            native: "-".to_owned(),
            bar: "<= 10 s",
            holds: Some(elapsed <= Duration::from_secs(10)),
        },
        Row {
            figure: "... writes to the API server for each pod (status, events), by its audit log",
            ours: format!("{each:.1}"),
            native: "-".to_owned(),
            bar: "<= 6",
            holds: Some(each <= 6.0),
        },
    ]
}

async fn restart(pods: &Pods, node: &mut ClusterNode, bootstrap: &std::path::Path) -> Row {
    let deleted = (RESTARTED..AT_ONCE).map(|number| {
        let name = format!("many-{number}");
        async move { pods.api.delete(&name, &DeleteParams::default()).await.unwrap() }
    });
    futures::future::join_all(deleted).await;
    pods.follow(all_ready(RESTARTED, 0)).await;
    let mut samples = Vec::new();
    for restarts in 1..=5 {
        node.kill();
        let started = Instant::now();
        node.run(bootstrap);
        pods.follow(all_ready(RESTARTED, restarts)).await;
        samples.push(started.elapsed());
    }
    let p50 = percentile(&mut samples, 50);
    pods.delete_all().await;
    Row {
        figure: "node killed and started again with 100 pods: exec to all Ready, p50 of 5",
        ours: format!("{:.2} s", p50.as_secs_f64()),
        native: "-".to_owned(),
        bar: "<= 3 s",
        holds: Some(p50 <= Duration::from_secs(3)),
    }
}

async fn outage(pods: &Pods, node: &ClusterNode, proxy: &Proxy, length: Duration) -> Vec<Row> {
    eprintln!("an outage of {} s ...", length.as_secs());
    let ending = (0..ENDING).map(|number| {
        let mut pod = node.fault_pod(&format!("ending-{number}"), "await-file");
        let spec = &mut pod["spec"];
        spec["restartPolicy"] = json!("Never");
        let shared = json!({"path": node.path("shared"), "type": "DirectoryOrCreate"});
        spec["volumes"] = json!([{"name": "v", "hostPath": shared}]);
        let container = &mut spec["containers"][0];
        container["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        container["env"].as_array_mut().unwrap().push(json!({"name": "FAULT_FILE", "value": "/v/go"}));
        pod
    });
    pods.create(ending.collect()).await;
    pods.follow(all_ready(ENDING, 0)).await;
    proxy.set(Way::Closed);
    std::fs::write(node.path("shared/go"), "").unwrap();
    let (cpu, attempts) = (cpu_time_of(node.pid()), proxy.attempts());
    tokio::time::sleep(length).await;
    let cpu = (cpu_time_of(node.pid()) - cpu).as_secs_f64() / length.as_secs_f64() * 100.0;
    let attempts = proxy.attempts() - attempts;
    let opened = Instant::now();
    proxy.set(Way::Open);
    let all_ended =
        |seen: &BTreeMap<String, Seen>| seen.values().filter(|pod| pod.phase == "Succeeded").count() == ENDING;
    let seen = pods.follow(all_ended).await;
    let mut times: Vec<_> = seen.values().map(|pod| pod.at - opened).collect();
    let p50 = percentile(&mut times, 50);
    pods.delete_all().await;
    vec![
        Row {
            figure: "API server back after an outage, in which 20 pods ended: their statuses right, p50 (last)",
            ours: format!("{} ({}), after {} s", ms(p50), ms(percentile(&mut times, 100)), length.as_secs()),
            native: "-".to_owned(),
            bar: "<= 5 s",
            holds: Some(p50 <= Duration::from_secs(5)),
        },
        Row {
            figure: "... CPU of the node while it was away, of a core; connections tried",
            ours: format!("{cpu:.2} %; {attempts}"),
            native: "-".to_owned(),
            bar: "< 1 %",
            holds: Some(cpu < 1.0),
        },
    ]
}
