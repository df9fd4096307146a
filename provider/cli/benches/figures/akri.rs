//! Figures of the whole chain: handler, Akri's own Agent and Controller, brokers. Times are from the client's call, or from the
//! watch event of what comes first, to the watch event of what comes last.

use crate::fixture::akri::{Akri, InstanceHistory, client, configuration, programs};
use crate::fixture::cluster::{Cluster, ClusterNode, cluster};
use crate::fixture::native::Native;
use crate::fixture::wait_for;
use crate::{Row, ms, percentile};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, WatchEvent, WatchParams};
use kube::{Api, Client};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What the handler and its pod are called; the native one's name is fixed.
const OURS: &str = "figures";
const NATIVE: &str = "debugEcho";
const FOO: [&str; 2] = ["foo0", "foo1"];
const APPLIED: usize = 30;
const BROKERS: usize = 10;
const RESTARTS: usize = 20;
/// Akri's Agent takes about two seconds after its start until it looks at Configurations, and the node repeats a list after
/// that; what has not come back by then counts as lost.
const SETTLE: Duration = Duration::from_secs(5);

pub async fn measure() -> Vec<Row> {
    let (Some(_), Some(cluster)) = (programs(), cluster()) else { return Vec::new() };
    let mut node = ClusterNode::prepare("figures-akri").with(&["--handler-grace-period", "30"]);
    std::fs::create_dir_all(node.path("akri")).unwrap();
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    let mut scene = Scene::new(cluster, node).await;
    scene.add_handler();
    tokio::time::sleep(SETTLE).await;
    let native = std::env::var_os("NATIVE_DEBUG_ECHO").map(PathBuf::from);
    let beside = native.as_ref().map(|program| NativeBeside::start(program, &scene.node));
    let mut rows = Vec::new();
    eprintln!("a Configuration is applied ...");
    rows.push(applied(&scene, native.is_some()).await);
    drop(beside);
    eprintln!("a device goes ...");
    let ours = offline(&scene).await;
    eprintln!("brokers ...");
    let brokers = brokers(&scene).await;
    eprintln!("restarts ...");
    let restarts = restarts(&mut scene).await;
    let theirs = match native {
        Some(program) => native_offline(&scene, &program).await,
        None => "7.4-9.5 s*".to_owned(),
    };
    rows.push(Row { native: theirs, ..ours });
    rows.extend(brokers);
    rows.push(restarts);
    rows
}

struct Scene {
    cluster: &'static Cluster,
    node: ClusterNode,
    akri: Akri,
    client: Client,
    configurations: Api<DynamicObject>,
    instances: InstanceHistory,
}

impl Scene {
    async fn new(cluster: &'static Cluster, node: ClusterNode) -> Self {
        let akri = Akri::start(cluster, &node);
        let client = client(cluster).await;
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("akri.sh", "v0", "Configuration"));
        let configurations = Api::default_namespaced_with(client.clone(), &resource);
        let instances = InstanceHistory::start(&client).await;
        Self { cluster, node, akri, client, configurations, instances }
    }

    fn exchange(&self) -> PathBuf {
        self.node.path("exchange")
    }

    fn add_handler(&self) {
        let mut pod = self.node.handler_pod(OURS, OURS);
        let exchange = json!({"path": self.exchange(), "type": "DirectoryOrCreate"});
        pod["spec"]["volumes"] = json!([{"name": "exchange", "hostPath": exchange}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "exchange", "mountPath": "/tmp/wde-dir"}]);
        self.cluster.apply(&pod);
        let ready = |pod| crate::fixture::condition(&pod, "Ready") == Some(true);
        assert!(wait_for(|| self.cluster.get("pod", "default", OURS).is_some_and(ready)), "{}", self.node.log());
    }

    /// The time from the call to two Instances.
    async fn configure(&self, name: &str, handler: &str) -> Duration {
        let object = serde_json::from_value(configuration(name, handler, &FOO, None)).unwrap();
        let started = Instant::now();
        self.configurations.create(&Default::default(), &object).await.unwrap();
        self.instances.wait_for(name, FOO.len()).await - started
    }

    async fn unconfigure(&self, name: &str) {
        self.configurations.delete(name, &Default::default()).await.unwrap();
        self.instances.wait_for(name, 0).await;
        let gone = || self.cluster.get("configuration", "default", name).is_none();
        assert!(wait_for(gone), "Configuration {name} stays");
    }
}

/// Akri's native handler, beside ours at the same Agent.
struct NativeBeside {
    _native: Native,
}

impl NativeBeside {
    const AVAILABILITY: &str = "/tmp/debug-echo-availability.txt";

    fn start(program: &Path, node: &ClusterNode) -> Self {
        let beside = Self { _native: Native::start(program, &node.path("akri")) };
        node.wait_for_socket(NATIVE);
        beside
    }
}

impl Drop for NativeBeside {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(Self::AVAILABILITY);
    }
}

async fn applied(scene: &Scene, with_native: bool) -> Row {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // In turn, so that a machine whose speed drifts is fair to both.
    for number in 0..APPLIED {
        let name = format!("ours-{number}");
        ours.push(scene.configure(&name, OURS).await);
        scene.unconfigure(&name).await;
        if with_native {
            let name = format!("native-{number}");
            theirs.push(scene.configure(&name, NATIVE).await);
            scene.unconfigure(&name).await;
        }
    }
    let p50 = percentile(&mut ours, 50);
    let (native, bar) = match with_native {
        true => {
            let p50 = percentile(&mut theirs, 50);
            (format!("{} (p99 {})", ms(p50), ms(percentile(&mut theirs, 99))), p50)
        }
        false => ("20.5 ms*".to_owned(), Duration::from_micros(20_500)),
    };
    Row {
        figure: "Configuration applied to two Instances, same Agent, p50 of 30",
        ours: format!("{} (p99 {})", ms(p50), ms(percentile(&mut ours, 99))),
        native,
        bar: "<= native",
        holds: Some(p50 <= bar),
    }
}

/// The time from OFFLINE to no Instance, for a Configuration that is there.
async fn offline_times(scene: &Scene, name: &str, file: &Path, number: usize) -> Vec<Duration> {
    let mut times = Vec::new();
    for _ in 0..number {
        let started = Instant::now();
        std::fs::write(file, "OFFLINE").unwrap();
        times.push(scene.instances.wait_for(name, 0).await - started);
        std::fs::write(file, "ONLINE").unwrap();
        scene.instances.wait_for(name, FOO.len()).await;
        // Their device plugins are registered one a second.
        tokio::time::sleep(SETTLE).await;
    }
    times
}

async fn native_offline(scene: &Scene, program: &Path) -> String {
    let _native = NativeBeside::start(program, &scene.node);
    // The Agent looks at it only when a Configuration comes.
    tokio::time::sleep(SETTLE).await;
    scene.configure("native-offline", NATIVE).await;
    tokio::time::sleep(SETTLE).await;
    let mut theirs = offline_times(scene, "native-offline", Path::new(NativeBeside::AVAILABILITY), 3).await;
    format!("{:.1} s (p50 of 3)", percentile(&mut theirs, 50).as_secs_f64())
}

async fn offline(scene: &Scene) -> Row {
    scene.configure("ours-offline", OURS).await;
    tokio::time::sleep(SETTLE).await;
    let file = scene.exchange().join("debug-echo-availability.txt");
    let mut ours = offline_times(scene, "ours-offline", &file, 10).await;
    scene.unconfigure("ours-offline").await;
    let p50 = percentile(&mut ours, 50);
    Row {
        figure: "device OFFLINE to its two Instances gone, p50 of 10",
        ours: ms(p50),
        native: String::new(),
        bar: "<= 100 ms",
        holds: Some(p50 <= Duration::from_millis(100)),
    }
}

/// When a broker was given to the node, and when it was Running.
async fn broker_times(scene: &Scene, configuration: &str) -> (Instant, Instant) {
    let pods: Api<Pod> = Api::default_namespaced(scene.client.clone());
    let parameters = WatchParams::default().labels(&format!("akri.sh/configuration={configuration}"));
    let mut events = pods.watch(&parameters, "0").await.unwrap().boxed();
    let mut bound = None;
    let watch = async {
        loop {
            let (WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = events.next().await.unwrap().unwrap() else {
                continue;
            };
            if pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) {
                bound.get_or_insert_with(Instant::now);
            }
            if pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running")) {
                return (bound.unwrap(), Instant::now());
            }
        }
    };
    tokio::time::timeout(crate::fixture::DEADLINE, watch).await.expect("the broker runs")
}

async fn brokers(scene: &Scene) -> Vec<Row> {
    let (mut whole, mut ours) = (Vec::new(), Vec::new());
    // The first one compiles the module.
    for number in 0..=BROKERS {
        let name = format!("broker-{number}");
        let object = serde_json::from_value(configuration(&name, OURS, &["foo0"], Some(&scene.node))).unwrap();
        let watched = broker_times(scene, &name);
        scene.configurations.create(&Default::default(), &object).await.unwrap();
        let (instance, (bound, running)) = tokio::join!(scene.instances.wait_for(&name, 1), watched);
        if number > 0 {
            whole.push(running - instance);
            ours.push(running - bound);
        }
        scene.unconfigure(&name).await;
        let no_pods = || {
            let selector = format!("akri.sh/configuration={name}");
            scene.cluster.kubectl_ok(&["get", "pods", "-l", &selector, "-o", "name"]).is_empty()
        };
        assert!(wait_for(no_pods), "the broker stays");
        tokio::time::sleep(SETTLE).await;
    }
    let (whole, ours) = (percentile(&mut whole, 50), percentile(&mut ours, 50));
    vec![
        Row {
            figure: "Instance to its broker Running, module in the store, p50 of 10",
            ours: format!("{:.2} s", whole.as_secs_f64()),
            native: "-".to_owned(),
            bar: "<= 2.5 s",
            holds: Some(whole <= Duration::from_millis(2500)),
        },
        Row {
            figure: "... of that from the pod's binding to Running (the rest is Agent, Controller and scheduler)",
            ours: ms(ours),
            native: "-".to_owned(),
            bar: "<= 300 ms",
            holds: Some(ours <= Duration::from_millis(300)),
        },
    ]
}

async fn restarts(scene: &mut Scene) -> Row {
    const NAME: &str = "restarts";
    scene.configure(NAME, OURS).await;
    tokio::time::sleep(SETTLE).await;
    scene.instances = InstanceHistory::start(&scene.client).await;
    let (mut lost, mut known) = (0, 0);
    for number in 0..3 * RESTARTS {
        match number % 3 {
            0 => {
                scene.akri.kill_agent();
                scene.akri.start_agent();
            }
            1 => {
                scene.node.kill();
                scene.node.run(&scene.cluster.bootstrap());
                scene.node.wait_until_ready(scene.cluster);
            }
            _ => {
                scene.cluster.kubectl_ok(&["delete", "pod", OURS]);
                scene.add_handler();
            }
        }
        tokio::time::sleep(SETTLE).await;
        lost += FOO.len() - scene.instances.present(NAME);
        let gaps = scene.instances.gaps();
        let longest = gaps[known..].iter().max().copied().unwrap_or_default();
        known = gaps.len();
        let kind = ["Agent", "node", "handler"][number % 3];
        eprintln!("  {kind} restarted: without an Instance for at most {:.0} ms", longest.as_secs_f64() * 1e3);
    }
    let gaps = scene.instances.gaps();
    let longest = gaps.iter().max().copied().unwrap_or_default();
    Row {
        figure: "20 restarts each of Agent and node (kill -9), 20 handler pods replaced: Instances lost; longest without one",
        ours: format!("{lost}; {:.0} ms ({} gaps)", longest.as_secs_f64() * 1e3, gaps.len()),
        native: "lost in 7 of 8*".to_owned(),
        bar: "0; <= 250 ms",
        holds: Some(lost == 0 && longest <= Duration::from_millis(250)),
    }
}
