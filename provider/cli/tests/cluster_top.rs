//! What the node measures, as a cluster uses it: the real metrics-server, `kubectl top`, an autoscaler.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::cluster::{Cluster, ClusterNode, cluster};
use fixture::wait_for;
use serde_json::{Value, json};
use std::process::{Child, Command};

/// A metrics-server of this cluster; it ends with this.
struct MetricsServer {
    process: Child,
    directory: tempfile::TempDir,
}

impl MetricsServer {
    fn start(cluster: &Cluster) -> Self {
        let programs = control_plane::Programs::find_or_build().unwrap().with_cluster_tools().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let port = control_plane::port::free().unwrap();
        let kubeconfig = cluster.directory.join("admin.conf");
        let kubeconfig = kubeconfig.display();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let process = Command::new(programs.path("metrics-server").unwrap())
            .args([format!("--kubeconfig={kubeconfig}"), format!("--authentication-kubeconfig={kubeconfig}")])
            .args([format!("--authorization-kubeconfig={kubeconfig}"), format!("--secure-port={port}")])
            .args([format!("--cert-dir={}", directory.path().display()), "--bind-address=127.0.0.1".to_owned()])
            .args(["--kubelet-insecure-tls", "--kubelet-preferred-address-types=InternalIP"])
            .args(["--kubelet-use-node-status-port", "--metric-resolution=10s", "--kubelet-request-timeout=5s"])
            .stderr(log)
            .spawn()
            .unwrap();
        // The API server hands requests on to this machine.
        cluster.apply(&json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "metrics-server", "namespace": "kube-system"},
            "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]}}));
        cluster.apply(&json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": "v1beta1.metrics.k8s.io"},
            "spec": {"group": "metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100,
                "insecureSkipTLSVerify": true,
                "service": {"name": "metrics-server", "namespace": "kube-system", "port": port}}}));
        Self { process, directory }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A guest that takes all the CPU that it may have, 200m.
fn busy(node: &ClusterNode) -> Value {
    let mut pod = node.fault_pod("x", "spin");
    pod["spec"].as_object_mut().unwrap().remove("nodeName");
    pod["spec"]["terminationGracePeriodSeconds"] = json!(0);
    pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m"}});
    json!({"metadata": {"labels": {"app": "busy"}}, "spec": pod["spec"]})
}

#[test]
fn kubectl_top_shows_what_guests_take_and_an_autoscaler_goes_by_it() {
    let Some(cluster) = cluster() else { return };
    let (node, namespace) = (ClusterNode::join(cluster, "measured"), cluster.namespace("measured"));
    let server = MetricsServer::start(cluster);
    let selector = json!({"matchLabels": {"app": "busy"}});
    namespace.apply(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "busy"},
        "spec": {"replicas": 1, "selector": selector, "template": busy(&node)}}));
    let metric = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}});
    namespace.apply(
        json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "busy"},
        "spec": {"minReplicas": 1, "maxReplicas": 2, "metrics": [metric],
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "busy"}}}),
    );

    // `NAME CPU MEMORY`
    let top = |what: &[&str]| {
        let output = namespace.kubectl(&[&["top"], what, &["--no-headers"]].concat());
        String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let millis = |text: &str| text.strip_suffix('m').and_then(|text| text.parse::<u32>().ok());
    let mut seen = Vec::new();
    // It measures twice before it tells.
    let mut is_seen = || {
        seen = top(&["pods"]);
        seen.get(1).and_then(|cpu| millis(cpu)).is_some_and(|cpu| (100..=300).contains(&cpu))
    };
    let is_seen = (0..3).any(|_| wait_for(&mut is_seen));
    assert!(is_seen, "{seen:?}; metrics-server:\n{}", server.log());
    assert!(seen[2].ends_with("Mi"), "{seen:?}");
    let of_node = top(&["node", &node.name]);
    assert!(millis(&of_node[1]).is_some_and(|cpu| cpu >= 100), "{of_node:?}");

    let replicas = || {
        let deployment = namespace.kubectl_ok(&["get", "deployment", "busy", "-o", "jsonpath={.spec.replicas}"]);
        let autoscaler = namespace.kubectl_ok(&["describe", "hpa", "busy"]);
        (deployment, autoscaler)
    };
    let scaled = (0..3).any(|_| wait_for(|| replicas().0 == "2"));
    assert!(scaled, "{}", replicas().1);
    let all_run =
        || namespace.kubectl_ok(&["get", "deployment", "busy", "-o", "jsonpath={.status.readyReplicas}"]) == "2";
    assert!(wait_for(all_run), "{}", node.log());
}
