//! Volumes and variables from ConfigMaps, Secrets, the pod itself and tokens, on a real cluster.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::cluster::{Cluster, ClusterNode, Namespace, cluster};
use fixture::wait_for;
use serde_json::{Value, json};
use std::path::PathBuf;

fn join(cluster: &Cluster, name: &str) -> ClusterNode {
    let labels = format!("test={name}");
    let mut node = ClusterNode::prepare(name).with(&["--node-labels", &labels]);
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    node
}

/// A pod that shows the files below `/v`.
fn watching(node: &ClusterNode, name: &str, volumes: Value, mounts: Value) -> Value {
    let mut pod = node.fault_pod(name, "watch-files");
    pod["spec"]["terminationGracePeriodSeconds"] = json!(0);
    pod["spec"]["volumes"] = volumes;
    let container = &mut pod["spec"]["containers"][0];
    container["volumeMounts"] = mounts;
    container["env"].as_array_mut().unwrap().push(json!({"name": "FAULT_FILE", "value": "/v"}));
    pod
}

fn mount() -> Value {
    json!([{"name": "v", "mountPath": "/v"}])
}

/// What the guest saw last.
fn wait_for_files(namespace: &Namespace<'_>, node: &ClusterNode, pod: &str, expected: &str) {
    let seen = || {
        let log = String::from_utf8(namespace.kubectl(&["logs", pod]).stdout).unwrap();
        log.lines().filter_map(|line| line.strip_prefix("files: ")).next_back().map(str::to_owned)
    };
    let saw = wait_for(|| seen().as_deref() == Some(expected));
    assert!(saw, "{pod} sees {:?}, not {expected:?}; log:\n{}", seen(), node.log());
}

fn object(kind: &str, name: &str, data: Value) -> Value {
    let field = if kind == "Secret" { "stringData" } else { "data" };
    json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, field: data})
}

fn volume_directory(node: &ClusterNode, namespace: &Namespace<'_>, pod: &str) -> PathBuf {
    let uid = namespace.pod(pod).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    node.path("data").join("pods").join(uid).join("volumes")
}

/// Where volumes are that must not be on a disk: only root may mount.
fn memory_directory(node: &ClusterNode, namespace: &Namespace<'_>, pod: &str) -> PathBuf {
    let on_disk = volume_directory(node, namespace, pod);
    if !rustix::process::geteuid().is_root() {
        return on_disk;
    }
    node.path("data/memory").join(on_disk.parent().unwrap().file_name().unwrap()).join("volumes")
}

fn is_tmpfs(path: &std::path::Path) -> bool {
    rustix::fs::statfs(path).unwrap().f_type == 0x0102_1994
}

fn mode(path: &std::path::Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn files_of_objects_are_there_and_follow_them() {
    let Some(cluster) = cluster() else { return };
    let node = join(cluster, "object-files");
    let namespace = cluster.namespace("object-files");
    namespace.apply(object("ConfigMap", "map", json!({"a": "1", "b": "2"})));
    namespace.apply(object("Secret", "secret", json!({"password": "x"})));
    let map = json!([{"name": "v", "configMap": {"name": "map"}}]);
    namespace.apply(watching(&node, "map", map, mount()));
    let items = json!([{"key": "password", "path": "deep/pass", "mode": 292}]);
    let secret = json!([{"name": "v", "secret": {"secretName": "secret", "items": items}}]);
    namespace.apply(watching(&node, "secret", secret, mount()));
    wait_for_files(&namespace, &node, "map", r#"/v/a="1" /v/b="2""#);
    wait_for_files(&namespace, &node, "secret", r#"/v/deep/pass="x""#);
    let secret_file = memory_directory(&node, &namespace, "secret").join("v/..data/deep/pass");
    assert_eq!(mode(&secret_file), 0o400, "of 0444 what is the node's alone");
    assert_eq!(mode(&memory_directory(&node, &namespace, "secret").join("v")), 0o700);
    // Both keys change at once, one goes, one comes.
    namespace.kubectl_ok(&[
        "patch",
        "configmap",
        "map",
        "--type=json",
        "-p",
        r#"[{"op":"replace","path":"/data","value":{"a":"3","c":"4"}}]"#,
    ]);
    wait_for_files(&namespace, &node, "map", r#"/v/a="3" /v/c="4""#);
    namespace.apply(object("Secret", "secret", json!({"password": "y"})));
    wait_for_files(&namespace, &node, "secret", r#"/v/deep/pass="y""#);
    // An object that goes takes nothing from who runs, and its next version is taken.
    namespace.kubectl_ok(&["delete", "configmap", "map"]);
    namespace.wait_for_event(&node, "map", "what was there before stays");
    namespace.apply(object("ConfigMap", "map", json!({"a": "5"})));
    wait_for_files(&namespace, &node, "map", r#"/v/a="5""#);
    // With the pod, its files go.
    let files = memory_directory(&node, &namespace, "secret");
    namespace.kubectl_ok(&["delete", "pod", "secret"]);
    assert!(wait_for(|| !files.exists()));
    // The node asked for what its pods name, by name, and one watch each.
    let requests = cluster.requests_of(&format!("system:node:{}", node.name));
    let of = |resource: &str| {
        let of_resource = requests.iter().filter(move |request| request["objectRef"]["resource"] == resource);
        of_resource
            .map(|request| (request["verb"].clone(), request["responseStatus"]["code"].clone()))
            .collect::<Vec<_>>()
    };
    for resource in ["configmaps", "secrets"] {
        // The API server's authorizer follows its own watch: it may not know yet that the pod is the node's.
        let (early, asked): (Vec<_>, Vec<_>) = of(resource).into_iter().partition(|asked| asked.1 == json!(403));
        assert!(early.len() <= 3, "{resource}: {early:?}");
        assert_eq!(asked, [(json!("list"), json!(200)), (json!("watch"), json!(200))], "{resource}");
    }
}

#[test]
fn a_missing_object_or_key_is_waited_for_and_an_optional_one_is_not() {
    let Some(cluster) = cluster() else { return };
    let node = join(cluster, "missing");
    let namespace = cluster.namespace("missing");
    let needs = |optional: bool| json!([{"name": "v", "configMap": {"name": "late", "optional": optional}}]);
    namespace.apply(watching(&node, "waits", needs(false), mount()));
    namespace.apply(watching(&node, "runs", needs(true), mount()));
    namespace.wait_until_ready(&node, "runs");
    namespace.wait_for_event(&node, "waits", "FailedMount volume v: ");
    namespace.wait_for_event(&node, "waits", "configmap \"late\" not found");
    assert_eq!(namespace.pod("waits").unwrap()["status"]["phase"], "Pending");
    // A variable's source, too.
    let mut variable = node.fault_pod("variable", "environment");
    let source = json!({"secretKeyRef": {"name": "late", "key": "k"}});
    variable["spec"]["containers"][0]["env"].as_array_mut().unwrap().push(json!({"name": "LATE", "valueFrom": source}));
    namespace.apply(variable);
    let waiting = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    let says = |text: &'static str| {
        move |pod: &Value| {
            let waiting = waiting(pod);
            waiting["reason"] == "CreateContainerConfigError" && waiting["message"].as_str().unwrap().contains(text)
        }
    };
    namespace.wait_for_pod(&node, "variable", "waiting", says("secret \"late\" not found"));
    namespace.apply(object("Secret", "late", json!({"other": "x"})));
    namespace.wait_for_pod(&node, "variable", "waiting", says("couldn't find key k in secret \"late\""));
    namespace.apply(object("Secret", "late", json!({"k": "came"})));
    namespace.wait_until_ready(&node, "variable");
    assert!(wait_for(|| namespace.kubectl_ok(&["logs", "variable"]).contains("LATE=came\n")));
    // A pod that is the only one to wait for its volume goes on when it is there.
    namespace.apply(watching(&node, "alone", json!([{"name": "v", "configMap": {"name": "own"}}]), mount()));
    namespace.wait_for_event(&node, "alone", "configmap \"own\" not found");
    namespace.apply(object("ConfigMap", "own", json!({"k": "1"})));
    wait_for_files(&namespace, &node, "alone", r#"/v/k="1""#);
    // While something is waited for, it is watched, not asked for again and again.
    let requests = cluster.requests_of(&format!("system:node:{}", node.name));
    let verbs = |resource: &str, name: &str| {
        let of_object = requests.iter().filter(|request| {
            let object = &request["objectRef"];
            object["resource"] == resource && object["name"] == name
        });
        of_object.map(|request| request["verb"].as_str().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(verbs("secrets", "late"), ["list", "watch"]);
    assert_eq!(verbs("configmaps", "own"), ["list", "watch"]);
    namespace.apply(object("ConfigMap", "late", json!({"k": "1"})));
    wait_for_files(&namespace, &node, "waits", r#"/v/k="1""#);
    wait_for_files(&namespace, &node, "runs", r#"/v/k="1""#);
}

#[test]
fn the_pod_itself_and_tokens_are_files() {
    let Some(cluster) = cluster() else { return };
    let node = join(cluster, "projected");
    let namespace = cluster.namespace("projected");
    namespace.apply(object("ConfigMap", "map", json!({"a": "1"})));
    namespace.kubectl_ok(&["create", "serviceaccount", "robot"]);
    let field = |path: &str, field: &str| json!({"path": path, "fieldRef": {"fieldPath": field}});
    let limit = json!({"path": "memory", "resourceFieldRef":
        {"containerName": "main", "resource": "limits.memory", "divisor": "1Mi"}});
    let sources = json!([
        {"configMap": {"name": "map"}},
        {"downwardAPI": {"items": [field("labels", "metadata.labels"), field("name", "metadata.name"), limit]}},
        {"serviceAccountToken": {"path": "token", "audience": "somebody", "expirationSeconds": 600}},
    ]);
    let volumes = json!([{"name": "v", "projected": {"sources": sources}}, {"name": "o", "emptyDir": {}}]);
    let mut pod = watching(&node, "projected", volumes, json!([{"name": "v", "mountPath": "/v"}]));
    pod["metadata"]["labels"] = json!({"app": "x"});
    pod["spec"]["serviceAccountName"] = json!("robot");
    pod["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "32Mi"}});
    namespace.apply(pod);
    namespace.wait_until_ready(&node, "projected");
    let directory = memory_directory(&node, &namespace, "projected").join("v");
    let token = std::fs::read_to_string(directory.join("token")).unwrap();
    assert_eq!(mode(&directory.join("token")), 0o600);
    let expected = |labels: &str| {
        format!(r#"/v/a="1" /v/labels={labels:?} /v/memory="32" /v/name="projected" /v/token={token:?}"#)
    };
    wait_for_files(&namespace, &node, "projected", &expected("app=\"x\""));
    // The API server knows whose token it is, for whom and bound to what.
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token, "audiences": ["somebody"]}});
    let reviewed = create(cluster, &review);
    assert_eq!(reviewed["status"]["authenticated"], true, "{reviewed:#}");
    assert_eq!(reviewed["status"]["user"]["username"], "system:serviceaccount:projected:robot");
    let bound = &reviewed["status"]["user"]["extra"]["authentication.kubernetes.io/pod-name"];
    assert_eq!(*bound, json!(["projected"]));
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    assert_ne!(create(cluster, &review)["status"]["authenticated"], true, "it is not for the API server");
    namespace.kubectl_ok(&["label", "pod", "projected", "app=y", "--overwrite"]);
    wait_for_files(&namespace, &node, "projected", &expected("app=\"y\""));
}

fn create(cluster: &Cluster, object: &Value) -> Value {
    use std::io::Write as _;
    let mut command = cluster.kubectl_command(&["create", "-o", "json", "-f", "-"]);
    let mut child = command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(object.to_string().as_bytes()).unwrap();
    serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn secrets_and_volumes_in_memory_are_on_no_disk_and_bounded() {
    let Some(cluster) = cluster() else { return };
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root may mount a tmpfs");
        return;
    }
    let mut node = join(cluster, "memory");
    let namespace = cluster.namespace("memory");
    namespace.apply(object("Secret", "secret", json!({"password": "in-no-file-on-a-disk"})));
    // As a whole, by one of its files, and beside a file of the host.
    std::fs::write(node.path("host-file"), "of the host").unwrap();
    let volumes = json!([{"name": "s", "secret": {"secretName": "secret"}},
        {"name": "h", "hostPath": {"path": node.path("host-file"), "type": "File"}}]);
    let mounts = json!([
        {"name": "s", "mountPath": "/v/whole"},
        {"name": "s", "mountPath": "/v/single/password", "subPath": "password"},
        {"name": "h", "mountPath": "/v/other/host", "readOnly": true},
    ]);
    let mut pod = watching(&node, "secret", volumes, mounts);
    pod["spec"]["containers"][0]["env"][2]["value"] = json!("/v/whole,/v/single,/v/other");
    namespace.apply(pod);
    let seen = r#"/v/other/host="of the host" /v/single/password="in-no-file-on-a-disk" /v/whole/password="in-no-file-on-a-disk""#;
    wait_for_files(&namespace, &node, "secret", seen);
    let memory = node.path("data/memory");
    let uid = namespace.pod("secret").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    assert!(is_tmpfs(&memory.join(&uid).join("volumes/s")) && is_tmpfs(&memory.join(&uid).join("files/main")));
    let on_disk = std::process::Command::new("grep")
        .args(["-rlF", "in-no-file-on-a-disk", "--exclude-dir=memory"])
        .arg(node.path("data"))
        .output()
        .unwrap();
    let found = String::from_utf8(on_disk.stdout).unwrap();
    assert!(found.lines().all(|path| path.ends_with(".log")), "{found}");
    // A volume in memory is as large as it says: its guest is told, and the node has the rest.
    let mut pod = node.fault_pod("grows", "fill-volume");
    pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "2Mi"}}]);
    let container = &mut pod["spec"]["containers"][0];
    container["volumeMounts"] = mount();
    container["env"].as_array_mut().unwrap().push(json!({"name": "FAULT_FILE", "value": "/v/file"}));
    namespace.apply(pod);
    let says = || String::from_utf8_lossy(&namespace.kubectl(&["logs", "grows"]).stdout).into_owned();
    assert!(wait_for(|| says().contains("full: ")), "it says: {}; log:\n{}", says(), node.log());
    let grown = memory.join(namespace.pod("grows").unwrap()["metadata"]["uid"].as_str().unwrap());
    let file = grown.join("volumes/v/file");
    assert!((1 << 20..=2 << 20).contains(&std::fs::metadata(&file).unwrap().len()));
    // As on a kubelet it outlives the node's process, and ends with the pod.
    node.kill();
    assert!(file.exists());
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    namespace.kubectl_ok(&["delete", "pod", "grows", "secret"]);
    assert!(wait_for(|| !grown.exists() && !memory.join(&uid).exists()), "log:\n{}", node.log());
    assert_eq!(node.terminate(), Some(0));
    assert!(!is_tmpfs(&memory), "nothing is in it any more");
}

#[test]
fn single_files_and_parts_of_volumes_can_be_mounted() {
    let Some(cluster) = cluster() else { return };
    let node = join(cluster, "sub-paths");
    let namespace = cluster.namespace("sub-paths");
    namespace.apply(object("ConfigMap", "map", json!({"a": "1", "b": "2"})));
    let host = node.path("host");
    std::fs::create_dir_all(host.join("inner")).unwrap();
    std::fs::write(host.join("inner/file"), "of the host").unwrap();
    std::fs::write(node.path("secret"), "secret").unwrap();
    std::os::unix::fs::symlink("..", host.join("out")).unwrap();
    let volumes = json!([{"name": "m", "configMap": {"name": "map"}}, {"name": "h", "hostPath": {"path": host}},
        {"name": "f", "hostPath": {"path": host.join("inner/file"), "type": "File"}}]);
    let mounts = json!([
        {"name": "m", "mountPath": "/v/conf/only-a", "subPath": "a"},
        {"name": "f", "mountPath": "/v/conf/host-file"},
        {"name": "h", "mountPath": "/v/inner", "subPath": "inner", "readOnly": true},
        {"name": "h", "mountPath": "/v/named", "subPathExpr": "of-$(FAULT)"},
    ]);
    let mut pod = watching(&node, "parts", volumes.clone(), mounts);
    pod["spec"]["containers"][0]["env"][2]["value"] = json!("/v/conf,/v/inner,/v/named");
    namespace.apply(pod);
    let expected = r#"/v/conf/host-file="of the host" /v/conf/only-a="1" /v/inner/file="of the host""#;
    wait_for_files(&namespace, &node, "parts", expected);
    assert!(host.join("of-watch-files").is_dir());
    // Written in place, it is seen; a file of a ConfigMap mounted alone stays as it was, as with a kubelet.
    std::fs::write(host.join("inner/file"), "changed").unwrap();
    namespace.kubectl_ok(&["patch", "configmap", "map", "-p", r#"{"data":{"a":"3"}}"#]);
    wait_for_files(
        &namespace,
        &node,
        "parts",
        r#"/v/conf/host-file="changed" /v/conf/only-a="1" /v/inner/file="changed""#,
    );
    // A link does not lead out of the volume.
    let mounts = json!([{"name": "h", "mountPath": "/v", "subPath": "out"}]);
    namespace.apply(watching(&node, "escapes", volumes, mounts));
    namespace.wait_for_event(&node, "escapes", "subPath out: ");
    let log = namespace.kubectl(&["logs", "escapes"]);
    assert!(!String::from_utf8_lossy(&log.stdout).contains("secret"));
}

#[test]
fn every_source_of_variables_is_read() {
    let Some(cluster) = cluster() else { return };
    let node = join(cluster, "variables");
    let namespace = cluster.namespace("variables");
    namespace.apply(object("ConfigMap", "map", json!({"FROM_MAP": "1", "OVER": "map"})));
    namespace.apply(object("Secret", "secret", json!({"FROM_SECRET": "2"})));
    let mut pod = node.fault_pod("variables", "environment");
    pod["metadata"]["annotations"] = json!({"note": "n"});
    let container = &mut pod["spec"]["containers"][0];
    container["resources"] = json!({"requests": {"cpu": "250m"}, "limits": {"memory": "32Mi"}});
    container["envFrom"] = json!([{"configMapRef": {"name": "map"}}, {"prefix": "P_", "secretRef": {"name": "secret"}},
        {"configMapRef": {"name": "nothing", "optional": true}}]);
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let resource = |name: &str, resource: &str, divisor: &str| json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": resource, "divisor": divisor}}});
    container["env"].as_array_mut().unwrap().extend([
        json!({"name": "OVER", "value": "own $(FROM_MAP)"}),
        json!({"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "map", "key": "FROM_MAP"}}}),
        json!({"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "map", "key": "x", "optional": true}}}),
        field("NAME", "metadata.name"),
        field("NAMESPACE", "metadata.namespace"),
        field("NOTE", "metadata.annotations['note']"),
        field("NODE", "spec.nodeName"),
        field("ACCOUNT", "spec.serviceAccountName"),
        field("HOST", "status.hostIP"),
        field("IPS", "status.podIPs"),
        resource("CPU", "requests.cpu", "1m"),
        resource("MEMORY", "limits.memory", "1Mi"),
        resource("ALL_CPU", "limits.cpu", "1"),
    ]);
    namespace.apply(pod);
    namespace.wait_until_ready(&node, "variables");
    let printed = || namespace.kubectl_ok(&["logs", "variables"]);
    assert!(wait_for(|| printed().contains("ALL_CPU=")));
    let cores = std::thread::available_parallelism().unwrap();
    let printed = printed();
    for line in [
        "FROM_MAP=1",
        "P_FROM_SECRET=2",
        "OVER=own 1",
        "KEY=1",
        "NAME=variables",
        "NAMESPACE=variables",
        "NOTE=n",
        "NODE=variables",
        "ACCOUNT=default",
        "HOST=127.0.0.1",
        "IPS=127.0.0.1",
        "CPU=250",
        "MEMORY=32",
        &format!("ALL_CPU={cores}"),
    ] {
        assert!(printed.lines().any(|printed| printed == line), "{line} is not in {printed}");
    }
    assert!(!printed.contains("NONE="));
}

#[test]
fn a_pod_that_outgrows_its_volume_is_evicted() {
    let Some(cluster) = cluster() else { return };
    let node = join(cluster, "limits");
    let namespace = cluster.namespace("limits");
    let mut pod = node.fault_pod("grows", "fill-volume");
    pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {"sizeLimit": "2Mi"}}]);
    let container = &mut pod["spec"]["containers"][0];
    container["volumeMounts"] = mount();
    container["env"].as_array_mut().unwrap().push(json!({"name": "FAULT_FILE", "value": "/v/file"}));
    namespace.apply(pod);
    let evicted = namespace.wait_for_pod(&node, "grows", "evicted", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(evicted["status"]["reason"], "Evicted");
    assert_eq!(evicted["status"]["message"], "Usage of EmptyDir volume \"v\" exceeds the limit \"2Mi\".");
    namespace.wait_for_event(&node, "grows", "Evicted Usage of EmptyDir volume");
}
