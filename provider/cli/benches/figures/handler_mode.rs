//! Handlers of five protocols as one pod of the container image, beside native handlers as pods of their own, in one containerd. `IMAGE`
//! names the image's archive (`make image`), and the `NATIVE_*` variables Akri's handlers.

use crate::fixture::cluster::{Cluster, cluster_with_linux_node};
use crate::fixture::registry::{Access, Registry, gzip};
use crate::fixture::{component, condition, image, serves, wait_for};
use crate::process::{memory_of, processes_beside};
use crate::{Row, mb};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const NODE: &str = "handlers";
const NATIVE: [(&str, &str); 4] = [
    ("debug-echo", "NATIVE_DEBUG_ECHO"),
    ("udev", "NATIVE_UDEV"),
    ("onvif", "NATIVE_ONVIF"),
    ("opcua", "NATIVE_OPCUA"),
];
/// By what each is served.
const OURS: [(&str, &str); 5] =
    [("udev", "udev"), ("onvif", "onvif"), ("opcua", "opcua"), ("http", "http"), ("zeroconf", "zeroconf")];
/// What the protocols need of the network.
const GRANTS: &str = "join 224.0.0.251:5353\nudp 224.0.0.251:5353\nudp 239.255.255.250:3702\ntcp details";
/// After which nothing of a start is under way.
const SETTLED: Duration = Duration::from_secs(20);

pub async fn measure() -> Vec<Row> {
    let of = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    let natives: Vec<_> = NATIVE.iter().filter_map(|(name, variable)| Some((*name, of(variable)?))).collect();
    let (Some(archive), false) = (image::archive(), natives.is_empty()) else {
        println!(
            "skipped: IMAGE names no archive of the image (make image), or no NATIVE_* variable a handler of Akri"
        );
        return Vec::new();
    };
    let Some(cluster) = cluster_with_linux_node(NODE) else { return Vec::new() };
    let registry = Registry::start(Access::Public);
    assert!(wait_for(|| cluster.get("serviceaccount", "default", "default").is_some()));
    let directory = tempfile::tempdir().unwrap();
    let (ours, handlers) = (image::push(&registry, &archive), handlers(&registry).await);
    let mut images = Vec::new();
    for (name, program) in &natives {
        images.push((*name, native_image(&registry, name, program).await));
    }
    // What containerd and the kubelet need for their first pod is there.
    cluster.apply(&pod("first", json!({"containers": [{"name": "main", "image": images[0].1}]})));
    wait_until_ready(&cluster, "first");
    cluster.kubectl_ok(&["delete", "pod", "first", "--grace-period=0", "--force"]);
    let (sockets, data) = (directory.path().join("akri"), directory.path().join("data"));
    std::fs::create_dir_all(&sockets).unwrap();
    let before = memory(&cluster).await;
    cluster.apply(&handlers);
    cluster.apply(&pod("ours", image::handler_mode(&ours, &registry, "handlers", &sockets, &data)));
    let all_serve = || OURS.iter().all(|(_, name)| serves(&sockets.join(format!("{name}.sock"))));
    assert!(wait_for(all_serve), "{}", cluster.kubectl_ok(&["logs", "ours"]));
    let with_ours = memory(&cluster).await;
    cluster.kubectl_ok(&["delete", "pod", "ours"]);
    let between = memory(&cluster).await;
    for (name, image) in &images {
        let volume =
            json!({"name": "akri", "hostPath": {"path": directory.path().join("native"), "type": "DirectoryOrCreate"}});
        let mount = json!({"name": "akri", "mountPath": "/var/lib/akri"});
        cluster.apply(&pod(
            name,
            json!({"volumes": [volume], "containers": [{"name": "main", "image": image,
            "volumeMounts": [mount], "env": [{"name": "POD_IP", "value": "127.0.0.1"}]}]}),
        ));
    }
    for (name, _) in &images {
        wait_until_ready(&cluster, name);
    }
    let with_natives = memory(&cluster).await;
    let (ours, theirs) = (difference(before, with_ours), difference(between, with_natives));
    let names = images.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    vec![Row {
        figure: "handlers of five protocols as one pod, beside native ones as a pod each, in containerd: RSS (PSS) of all that they add",
        ours: format!("{} ({})", mb(ours.0), mb(ours.1)),
        native: format!("{} ({}) for {}: {names}", mb(theirs.0), mb(theirs.1), images.len()),
        bar: "<= 1/4",
        holds: Some(ours.0 * 4 <= theirs.0 && ours.1 * 4 <= theirs.1),
    }]
}

/// Of all processes of the Linux node: resident, and proportional.
async fn memory(cluster: &Cluster) -> (u64, u64) {
    tokio::time::sleep(SETTLED).await;
    let node = cluster.pid("linux-node").as_raw_nonzero().get().cast_unsigned();
    let memories = processes_beside(node).into_iter().map(memory_of);
    memories.fold((0, 0), |sum, memory| (sum.0 + memory.resident, sum.1 + memory.proportional))
}

fn difference(before: (u64, u64), after: (u64, u64)) -> (u64, u64) {
    (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1))
}

fn pod(name: &str, mut spec: Value) -> Value {
    spec["nodeName"] = json!(NODE);
    spec["automountServiceAccountToken"] = json!(false);
    spec["terminationGracePeriodSeconds"] = json!(1);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec})
}

fn wait_until_ready(cluster: &Cluster, name: &str) {
    let is_ready = || cluster.get("pod", "default", name).is_some_and(|pod| condition(&pod, "Ready") == Some(true));
    assert!(wait_for(is_ready), "{}", cluster.kubectl_ok(&["describe", "pod", name]));
}

/// A program with the libraries that it needs.
async fn native_image(registry: &Registry, name: &str, program: &Path) -> String {
    let listed = Command::new("ldd").arg(program).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    let mut layer = tar::Builder::new(Vec::new());
    // containerd knows no other files.
    layer.sparse(false);
    layer.append_path_with_name(program, "handler").unwrap();
    for library in libraries {
        let name = library.strip_prefix("/").unwrap().to_owned();
        layer.append_path_with_name(library.canonicalize().unwrap(), name).unwrap();
    }
    let layer = layer.into_inner().unwrap();
    let digest = format!("sha256:{}", sha256(&layer));
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/handler"]},
        "rootfs": {"type": "layers", "diff_ids": [digest]}});
    let types = ("application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.oci.image.config.v1+json");
    let config = config.to_string();
    registry.push(&format!("native-{name}:v1"), (&gzip(&layer), types.0), (config.as_bytes(), types.1)).await
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The ConfigMap with the five handlers' manifests.
async fn handlers(registry: &Registry) -> Value {
    let mut data = serde_json::Map::new();
    for (module, name) in OURS {
        let image = format!("{name}:v1");
        registry.push_module(&image, &std::fs::read(component(module)).unwrap()).await;
        let mut handler = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"containers": [{"name": name, "image": format!("{}/{image}", registry.address)}]}});
        if name == "udev" {
            handler["metadata"]["annotations"] = json!({"akri-krustlet/uevents": "*"});
            handler["spec"]["containers"][0]["volumeMounts"] =
                json!([{"name": "sys", "mountPath": "/sys", "readOnly": true}]);
            handler["spec"]["volumes"] = json!([{"name": "sys", "hostPath": {"path": "/sys"}}]);
        } else {
            handler["metadata"]["annotations"] = json!({"akri-krustlet/network": GRANTS, "akri-krustlet/links": "*"});
            handler["spec"]["hostNetwork"] = json!(true);
        }
        data.insert(format!("{name}.json"), json!(handler.to_string()));
    }
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "handlers", "namespace": "default"}, "data": data})
}
