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
    // What the backup does not know: one pod goes, another comes, and the versions of objects run ahead.
    namespace.kubectl_ok(&["delete", "pod", "comes-back", "--grace-period=1"]);
    namespace.apply(node.fault_pod("forgotten", "sleep"));
    namespace.wait_until_ready(&node, "forgotten");
    for number in 0..60 {
        let annotation = format!("number={number}");
        namespace.kubectl_ok(&["annotate", "pod", "stays", "--overwrite", &annotation]);
    }
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
    let csrs = || cluster.kubectl_ok(&["get", "csr", "-o", "name"]).lines().count();
    for (seconds, told) in [
        (YEARS, "a certificate that was just signed has ended by this machine's clock"),
        (-YEARS, "630719999 s behind the API server's"),
    ] {
        clock.set(seconds);
        node.kill();
        node.run(&cluster.bootstrap());
        // A second of either may have begun.
        let told = || node.log().contains(told) || node.log().contains(&told.replace("719999", "720000"));
        assert!(wait_for(told), "{}", node.log());
        // What it remembers runs, and is found.
        assert!(wait_for(|| fixture::serves(&node.socket("clocked"))), "{}", node.log());
        clock.set(0);
        if seconds < 0 {
            node.wait_until_ready(cluster);
        }
    }
    assert!(csrs() < 12, "nobody is asked for certificates again and again: {}", node.log());
    node.wait_until_ready(cluster);
    for name in ["runs", "handler", "at-0", "at-3"] {
        namespace.wait_until_ready(&node, name);
    }
}
