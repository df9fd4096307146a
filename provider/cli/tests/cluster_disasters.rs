//! What is not to happen, and does: a restored backup, lost data, revoked certificates, a clock that jumps. docs/operate.md has the table.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::clock::Clock;
use fixture::cluster::{ClusterNode, cluster, own_cluster};
use fixture::{condition, wait_for};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

fn container(pod: &Value) -> (Value, Value) {
    let status = &pod["status"]["containerStatuses"][0];
    (status["containerID"].clone(), status["restartCount"].clone())
}

fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready") == Some(true)
}

#[test]
fn a_restored_backup_of_etcd_is_what_counts() {
    let Some(cluster) = own_cluster("8760h") else { return };
    let node = ClusterNode::join(&cluster, "restored");
    let namespace = cluster.namespace("restored");
    for name in ["stays", "comes-back"] {
        namespace.apply(node.fault_pod(name, "sleep"));
        namespace.wait_until_ready(&node, name);
    }
    let stays = container(&namespace.pod("stays").unwrap());
    let (data, backup) = (cluster.directory.join("etcd"), cluster.directory.join("etcd-backup"));
    cluster.restart_after("etcd", || copy(&data, &backup));
    let lease = || cluster.get("lease", "kube-node-lease", "restored").unwrap()["spec"]["renewTime"].clone();
    let renewed = lease();
    // What the backup does not know: one pod goes, another comes, and the versions of objects run ahead.
    namespace.kubectl_ok(&["delete", "pod", "comes-back", "--grace-period=1"]);
    namespace.apply(node.fault_pod("forgotten", "sleep"));
    namespace.wait_until_ready(&node, "forgotten");
    for number in 0..60 {
        let annotation = format!("number={number}");
        namespace.kubectl_ok(&["annotate", "pod", "stays", "--overwrite", &annotation]);
    }
    assert!(wait_for(|| lease() != renewed), "the node's lease is not renewed");
    let version = |pod: &Value| pod["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    let ahead = version(&namespace.pod("stays").unwrap());
    cluster.restart_after("etcd", || copy(&backup, &data));
    cluster.restart("kube-apiserver");
    assert!(version(&namespace.pod("stays").unwrap()) < ahead, "it is as it was");
    // The pod that the API server does not know any more ends, and its files go.
    node.wait_for_log("pod stopped pod=\"restored/forgotten\"");
    // The one that it has again runs again.
    namespace.wait_for_pod(&node, "comes-back", "ready", |pod| {
        is_ready(pod) && pod["status"]["containerStatuses"][0]["state"]["running"].is_object()
    });
    // The other one never noticed.
    let pod = namespace.wait_until_ready(&node, "stays");
    assert_eq!(container(&pod), stays);
    node.wait_until_ready(&cluster);
    // What others write is set right, though the API server's versions are lower than those that the node has seen.
    let false_condition = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}).to_string();
    namespace.kubectl_ok(&["patch", "pod", "stays", "--subresource", "status", "-p", &false_condition]);
    namespace.wait_for_pod(&node, "stays", "ready again", is_ready);
    for name in ["stays", "comes-back"] {
        namespace.kubectl_ok(&["delete", "pod", name, "--grace-period=1", "--wait=false"]);
        namespace.wait_until_gone(&node, name);
    }
}

#[test]
fn a_restored_backup_that_does_not_know_the_node_is_joined_again() {
    let Some(cluster) = own_cluster("8760h") else { return };
    let namespace = cluster.namespace("before");
    let (data, backup) = (cluster.directory.join("etcd"), cluster.directory.join("etcd-backup"));
    cluster.restart_after("etcd", || copy(&data, &backup));
    let node = ClusterNode::join(&cluster, "unknown");
    namespace.apply(node.fault_pod("forgotten", "sleep"));
    namespace.wait_until_ready(&node, "forgotten");
    cluster.restart_after("etcd", || copy(&backup, &data));
    cluster.restart("kube-apiserver");
    assert!(wait_for(|| cluster.get("node", "", "unknown").is_some()), "{}", node.log());
    node.wait_until_ready(&cluster);
    node.wait_for_log("pod stopped pod=\"before/forgotten\"");
    namespace.apply(node.fault_pod("new", "sleep"));
    namespace.wait_until_ready(&node, "new");
}

#[test]
fn a_node_that_lost_its_data_begins_anew_and_runs_nothing_twice() {
    let Some(cluster) = cluster() else { return };
    let mut node = ClusterNode::join(cluster, "lost-data");
    let namespace = cluster.namespace("lost-data");
    let mut job = node.fault_pod("job", "exit3");
    job["spec"]["restartPolicy"] = json!("Never");
    namespace.apply(job);
    namespace.wait_for_pod(&node, "job", "failed", |pod| pod["status"]["phase"] == "Failed");
    let ended = namespace.pod("job").unwrap()["status"]["containerStatuses"][0]["state"].clone();
    namespace.apply(node.fault_pod("runs", "sleep"));
    namespace.apply(node.handler_pod("handler", "lostData"));
    let before = ["runs", "handler"].map(|name| container(&namespace.wait_until_ready(&node, name)));
    node.kill();
    fixture::unmount(&node.path("data/memory"));
    std::fs::remove_dir_all(node.path("data")).unwrap();
    // Whoever restarts services starts it again when it ends: for as long as its own lease is another one's for it.
    node.run(&cluster.bootstrap());
    let is_ready_again = || {
        if !node.is_running() {
            node.run(&cluster.bootstrap());
        }
        node.log().contains("the node is registered, its object was there")
    };
    assert!(fixture::wait_for(is_ready_again), "{}", node.log());
    for (name, before) in ["runs", "handler"].into_iter().zip(before) {
        let pod = namespace.wait_for_pod(&node, name, "running anew", |pod| is_ready(pod) && container(pod) != before);
        assert_eq!(pod["status"]["phase"], "Running");
    }
    assert_eq!(namespace.pod("job").unwrap()["status"]["containerStatuses"][0]["state"], ended, "not run again");
    // Also what somebody takes away from under a node that runs.
    std::fs::remove_dir_all(node.path("data/pods")).unwrap();
    std::fs::remove_dir_all(node.path("data/images")).unwrap();
    namespace.apply(node.fault_pod("late", "sleep"));
    namespace.wait_until_ready(&node, "late");
    namespace.kubectl_ok(&["delete", "pod", "runs", "--grace-period=1", "--wait=false"]);
    namespace.wait_until_gone(&node, "runs");
    assert!(is_ready(&namespace.pod("handler").unwrap()));
}

/// Who may write statuses of pods may write what the node takes for its own, if it has none.
#[test]
fn a_forged_status_makes_the_node_skip_nothing() {
    let Some(cluster) = cluster() else { return };
    let mut node = ClusterNode::join(cluster, "forged");
    let namespace = cluster.namespace("forged");
    node.kill();
    let mut large = node.fault_pod("large", "sleep");
    large["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "5000"}});
    let mut guarded = node.pod("guarded", "workload");
    guarded["spec"]["containers"][0]["args"] = json!(["forever"]);
    let mut guard = guarded["spec"]["containers"][0].clone();
    (guard["name"], guard["args"]) = (json!("guard"), json!(["print:on guard"]));
    guarded["spec"]["initContainers"] = json!([guard]);
    for pod in [large, guarded] {
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        namespace.apply(pod);
        let running = json!({"name": "main", "image": "x", "imageID": "", "ready": true, "restartCount": 3,
            "containerID": "wasmtime://forged", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}});
        let ended = json!({"name": "guard", "image": "x", "imageID": "", "ready": true, "restartCount": 0,
            "containerID": "wasmtime://forged",
            "state": {"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:00Z"}}});
        let forged =
            json!({"status": {"phase": "Running", "containerStatuses": [running], "initContainerStatuses": [ended]}});
        namespace.kubectl_ok(&["patch", "pod", &name, "--subresource", "status", "-p", &forged.to_string()]);
    }
    node.run(&cluster.bootstrap());
    let refused = namespace.wait_for_pod(&node, "large", "refused", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(refused["status"]["reason"], "OutOfcpu", "{refused:#}");
    let ran =
        || String::from_utf8_lossy(&namespace.kubectl(&["logs", "guarded", "-c", "guard"]).stdout).contains("on guard");
    assert!(wait_for(ran), "{}", node.log());
    let pod = namespace.wait_until_ready(&node, "guarded");
    assert_ne!(container(&pod).0, "wasmtime://forged");
}

#[test]
fn a_node_whose_certificate_is_not_taken_any_more_says_so_and_its_pods_run_on() {
    let Some(cluster) = own_cluster("8760h") else { return };
    let mut node = ClusterNode::join(&cluster, "revoked");
    let namespace = cluster.namespace("revoked");
    namespace.apply(node.fault_pod("runs", "sleep"));
    let before = container(&namespace.wait_until_ready(&node, "runs"));
    // The API server takes the certificates of another authority only: how a cluster revokes those that it signed.
    let authority = cluster.directory.join("pki/ca.crt");
    let own = std::fs::read(&authority).unwrap();
    let other = rcgen::generate_simple_self_signed(vec!["another".to_owned()]).unwrap();
    std::fs::write(&authority, other.cert.pem()).unwrap();
    node.wait_for_log("Unauthorized");
    assert!(node.log().contains("pods run on"), "{}", node.log());
    assert!(node.is_running());
    std::fs::write(&authority, own).unwrap();
    assert!(wait_for(|| cluster.kubectl(&["get", "nodes"]).status.success()));
    node.wait_until_ready(&cluster);
    let pod = namespace.wait_until_ready(&node, "runs");
    assert_eq!(container(&pod), before);
}

#[test]
fn a_clock_that_jumps_ends_no_pod_and_when_it_is_right_again_all_is_well() {
    let Some(cluster) = cluster() else { return };
    let mut node = ClusterNode::prepare("clock");
    let Some(clock) = Clock::build(node.directory.path()) else { return };
    node.environment.extend(clock.environment());
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    let namespace = cluster.namespace("clock");
    namespace.apply(node.fault_pod("runs", "sleep"));
    namespace.apply(node.handler_pod("handler", "clocked"));
    let before = ["runs", "handler"].map(|name| container(&namespace.wait_until_ready(&node, name)));
    for (number, (seconds, side)) in [(3600, "ahead of"), (0, ""), (-3600, "behind"), (0, "")].into_iter().enumerate() {
        clock.set(seconds);
        // The API server can be spoken to as before, and its answers say what time it is.
        namespace.apply(node.fault_pod(&format!("at-{number}"), "sleep"));
        namespace.wait_until_ready(&node, &format!("at-{number}"));
        if !side.is_empty() {
            node.wait_for_log(&format!("{side} the API server's: certificates"));
        }
    }
    assert!(wait_for(|| node.log().matches("this machine's clock is right again").count() == 2), "{}", node.log());
    for (name, before) in ["runs", "handler"].into_iter().zip(&before) {
        assert_eq!(container(&namespace.wait_until_ready(&node, name)), *before, "{name}");
    }
    // So far away that no certificate is good, at a start.
    const YEARS: i64 = 20 * 365 * 24 * 3600;
    for (seconds, told) in [
        (YEARS, "a certificate that was just signed has ended by this machine's clock"),
        (-YEARS, "s behind the API server's"),
    ] {
        clock.set(seconds);
        node.kill();
        let before = node.log().matches(told).count();
        node.run(&cluster.bootstrap());
        assert!(wait_for(|| node.log().matches(told).count() > before), "{}", node.log());
        // What it remembers runs, and is found.
        assert!(wait_for(|| fixture::serves(&node.socket("clocked"))), "{}", node.log());
        clock.set(0);
        if seconds < 0 {
            node.wait_until_ready(cluster);
        }
    }
    let asked = node.log().matches("certificate asked for").count();
    assert!(asked < 12, "nobody is asked for certificates again and again: {asked}, {}", node.log());
    node.wait_until_ready(cluster);
    for name in ["runs", "handler", "at-0", "at-3"] {
        namespace.wait_until_ready(&node, name);
    }
}
