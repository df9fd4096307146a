//! The API server is away, slow, full or cut off: pods run on, and what changed meanwhile is caught up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::cluster::{Cluster, ClusterNode, cluster, own_cluster};
use fixture::proxy::{ConnectProxy, Proxy, Way};
use fixture::{condition, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::Duration;

/// A node that reaches the API server by a way that the test can close.
fn join(cluster: &Cluster, name: &str, seed: u64) -> (ClusterNode, Proxy) {
    let proxy = Proxy::start(&cluster.server(), seed);
    let mut node = ClusterNode::prepare(name);
    let bootstrap = proxy.kubeconfig(&cluster.bootstrap(), &node.path("bootstrap.conf"));
    node.run(&bootstrap);
    node.wait_until_ready(cluster);
    (node, proxy)
}

fn with_volume(mut pod: Value, node: &ClusterNode, env: &[(&str, &str)]) -> Value {
    let volume = json!({"path": node.path("shared"), "type": "DirectoryOrCreate"});
    pod["spec"]["volumes"] = json!([{"name": "v", "hostPath": volume}]);
    let container = &mut pod["spec"]["containers"][0];
    container["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    for (name, value) in env {
        container["env"].as_array_mut().unwrap().push(json!({"name": name, "value": value}));
    }
    pod
}

/// A pod that ends when there is a file `shared/go`.
fn job(node: &ClusterNode) -> Value {
    let mut job = with_volume(node.fault_pod("job", "await-file"), node, &[("FAULT_FILE", "/v/go")]);
    job["spec"]["restartPolicy"] = json!("Never");
    job
}

fn container(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

#[test]
fn pods_run_on_without_the_api_server_and_what_changed_is_caught_up() {
    let Some(cluster) = cluster() else { return };
    let (node, proxy) = join(cluster, "cut-off", 1);
    let namespace = cluster.namespace("cut-off");
    for name in ["stays", "deleted", "replaced"] {
        namespace.apply(node.fault_pod(name, "sleep"));
    }
    namespace.apply(job(&node));
    for name in ["stays", "deleted", "replaced", "job"] {
        namespace.wait_until_ready(&node, name);
    }
    let uid = |name: &str| namespace.pod(name).map(|pod| pod["metadata"]["uid"].clone());
    let before = uid("replaced");
    let (attempts, lines) = (proxy.attempts(), node.log().lines().count());
    proxy.set(Way::Closed);
    node.wait_for_log("cannot watch the pods of this node");
    std::fs::write(node.path("shared/go"), "").unwrap();
    namespace.kubectl_ok(&["delete", "pod", "deleted", "--grace-period=1", "--wait=false"]);
    namespace.kubectl_ok(&["delete", "pod", "replaced", "--grace-period=0", "--force"]);
    namespace.apply(node.fault_pod("replaced", "sleep"));
    node.wait_for_log("container completed");
    cluster.kubectl_ok(&["delete", "node", &node.name, "--wait=false"]);
    std::thread::sleep(Duration::from_secs(15));
    // At growing intervals, and each thing is told once.
    let (attempts, lines) = (proxy.attempts() - attempts, node.log().lines().count() - lines);
    assert!(attempts < 60, "{attempts} connections in 15 s");
    assert!(lines < 30, "{lines} lines; log:\n{}", node.log());
    proxy.set(Way::Open);
    namespace.wait_until_gone(&node, "deleted");
    namespace.wait_for_pod(&node, "job", "done", |pod| pod["status"]["phase"] == "Succeeded");
    namespace.wait_until_ready(&node, "replaced");
    assert!(uid("replaced").is_some() && uid("replaced") != before);
    let stays = namespace.wait_until_ready(&node, "stays");
    assert_eq!(container(&stays)["restartCount"], 0);
    node.wait_until_ready(cluster);
}

#[test]
fn an_end_that_a_killed_node_did_not_tell_is_told_by_its_next_life() {
    let Some(cluster) = cluster() else { return };
    let (mut node, proxy) = join(cluster, "untold", 1);
    let namespace = cluster.namespace("untold");
    namespace.apply(job(&node));
    namespace.wait_until_ready(&node, "job");
    proxy.set(Way::Closed);
    std::fs::write(node.path("shared/go"), "").unwrap();
    node.wait_for_log("container completed");
    let uid = namespace.pod("job").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let kept = node.path("data/pods").join(uid).join("status.json");
    assert!(wait_for(|| std::fs::read_to_string(&kept).unwrap_or_default().contains("\"Succeeded\"")));
    node.kill();
    proxy.set(Way::Open);
    node.run(&node.path("bootstrap.conf"));
    namespace.wait_for_pod(&node, "job", "done", |pod| pod["status"]["phase"] == "Succeeded");
}

#[test]
fn a_silent_api_server_is_given_up_and_found_again() {
    let Some(cluster) = cluster() else { return };
    let (node, proxy) = join(cluster, "silent", 1);
    let namespace = cluster.namespace("silent");
    namespace.apply(node.fault_pod("first", "sleep"));
    namespace.wait_until_ready(&node, "first");
    proxy.set(Way::Silent);
    std::thread::sleep(Duration::from_secs(5));
    proxy.set(Way::Open);
    namespace.apply(node.fault_pod("second", "sleep"));
    namespace.wait_until_ready(&node, "second");
    assert_eq!(container(&namespace.pod("first").unwrap())["restartCount"], 0);
}

#[test]
fn a_connection_that_is_dead_without_a_word_is_noticed() {
    let Some(cluster) = cluster() else { return };
    let (node, proxy) = join(cluster, "dead-connection", 1);
    let namespace = cluster.namespace("dead-connection");
    namespace.apply(node.fault_pod("before", "sleep"));
    namespace.wait_until_ready(&node, "before");
    // Whoever asks with a token first, and then with the certificate for everything.
    assert!(proxy.attempts() <= 3, "{} connections", proxy.attempts());
    proxy.kill_silently();
    namespace.apply(node.fault_pod("after", "sleep"));
    namespace.wait_until_ready(&node, "after");
    node.wait_until_ready(cluster);
    assert!(proxy.attempts() <= 8, "{} connections", proxy.attempts());
}

#[test]
fn the_api_server_is_reached_by_a_proxy() {
    let Some(cluster) = cluster() else { return };
    // user:p@ss
    let proxy = ConnectProxy::start("dXNlcjpwQHNz");
    let url = format!("http://user:p%40ss@{}", proxy.address);
    let bootstrap = std::fs::read_to_string(cluster.bootstrap()).unwrap();
    let server = format!("server: 'https://{}'", cluster.server());
    assert!(bootstrap.contains(&server), "{bootstrap}");
    let with_proxy = format!("{server}, proxy-url: '{url}', tls-server-name: 'kubernetes'");
    let mut named = ClusterNode::prepare("proxy-named");
    std::fs::write(named.path("bootstrap.conf"), bootstrap.replace(&server, &with_proxy)).unwrap();
    let file = named.path("bootstrap.conf");
    named.run(&file);
    named.wait_until_ready(cluster);
    assert!(proxy.asked().iter().all(|target| *target == cluster.server()) && !proxy.asked().is_empty());
    let own: Value = serde_json::from_str(&std::fs::read_to_string(named.path("data/kubeconfig")).unwrap()).unwrap();
    let own = &own["clusters"][0]["cluster"];
    assert_eq!((own["tls-server-name"].as_str(), own["proxy-url"].as_str().is_some()), (Some("kubernetes"), true));

    let through = |name: &str, variables: &str| {
        let mut node = ClusterNode::prepare(name);
        let program = node.path("with-proxy");
        let script = format!("#!/bin/sh\n{variables} exec {} \"$@\"\n", fixture::PROGRAM);
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        node.program = program;
        node.run(&cluster.bootstrap());
        node.wait_until_ready(cluster);
    };
    let before = proxy.asked().len();
    through("proxy-of-environment", &format!("HTTPS_PROXY='{url}'"));
    let by_environment = proxy.asked().len();
    assert!(by_environment > before);
    drop(named);
    let settled = proxy.asked().len();
    through("no-proxy", &format!("HTTPS_PROXY='{url}' NO_PROXY=127.0.0.1,localhost"));
    assert_eq!(proxy.asked().len(), settled, "a server that the environment leaves out is asked itself");
}

#[test]
fn a_way_that_delays_and_cuts_at_random_loses_nothing() {
    let Some(cluster) = cluster() else { return };
    let (node, proxy) = join(cluster, "flaky", fixture::seed());
    let namespace = cluster.namespace("flaky");
    proxy.set(Way::Flaky);
    let names: Vec<_> = (0..10).map(|number| format!("p{number}")).collect();
    for name in &names {
        let env = [("FAULT_FILE", format!("/v/{name}")), ("FAULT_MILLIS", "300".to_owned())];
        let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut pod = with_volume(node.fault_pod(name, "count-runs"), &node, &env);
        pod["spec"]["restartPolicy"] = json!("Never");
        namespace.apply(pod);
    }
    for name in &names {
        namespace.wait_for_pod(&node, name, "done", |pod| pod["status"]["phase"] == "Succeeded");
        let runs = std::fs::read_to_string(node.path("shared").join(name)).unwrap();
        assert_eq!(runs, "started\nended\n", "{name} ran once");
    }
    for name in &names {
        namespace.kubectl_ok(&["delete", "pod", name, "--wait=false"]);
    }
    for name in &names {
        namespace.wait_until_gone(&node, name);
    }
}

#[test]
fn a_node_that_is_told_to_wait_does_so() {
    let Some(cluster) = cluster() else { return };
    let mut node = ClusterNode::prepare("limited");
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    let namespace = cluster.namespace("limited");
    namespace.apply(node.fault_pod("stays", "sleep"));
    namespace.wait_until_ready(&node, "stays");
    // The API server's own flow control refuses all that this node asks: 429 with Retry-After.
    let user = format!("system:node:{}", node.name);
    let level = json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
        "metadata": {"name": "none"}, "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 0,
            "lendablePercent": 0, "borrowingLimitPercent": 0, "limitResponse": {"type": "Reject"}}}});
    let rules = json!([{"subjects": [{"kind": "User", "user": {"name": user}}],
        "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true}]}]);
    let schema = json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": "none"},
        "spec": {"matchingPrecedence": 2, "priorityLevelConfiguration": {"name": "none"}, "rules": rules}});
    cluster.apply(&level);
    cluster.apply(&schema);
    // The API server tells when it has taken both up.
    let is_taken_up = || {
        let schema = cluster.get("flowschema", "default", "none").unwrap_or_default();
        let conditions = schema["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|condition| condition["type"] == "Dangling" && condition["status"] == "False")
    };
    assert!(wait_for(is_taken_up), "the API server does not take up the flow schema");
    let refused = || {
        let requests = cluster.requests_of(&user);
        requests.iter().filter(|request| request["responseStatus"]["code"] == 429).count()
    };
    // What the pod does now cannot be told.
    namespace.apply(node.fault_pod("later", "sleep"));
    assert!(wait_for(|| refused() > 0), "the API server refuses nothing");
    let before = refused();
    std::thread::sleep(Duration::from_secs(10));
    let refused = refused() - before;
    assert!(refused < 60, "{refused} requests in 10 s");
    cluster.kubectl_ok(&["delete", "flowschema", "none"]);
    namespace.wait_until_ready(&node, "later");
    let stays = namespace.pod("stays").unwrap();
    assert_eq!((condition(&stays, "Ready"), &container(&stays)["restartCount"]), (Some(true), &json!(0)));
}

#[test]
fn an_api_server_and_an_etcd_that_stall_or_start_again_lose_nothing() {
    // Its own, since all that use it are disturbed.
    let Some(cluster) = &own_cluster("8760h") else { return };
    let (node, proxy) = join(cluster, "started-again", 1);
    let namespace = cluster.namespace("started-again");
    for name in ["stays", "deleted"] {
        namespace.apply(node.fault_pod(name, "sleep"));
    }
    namespace.apply(job(&node));
    for name in ["stays", "deleted", "job"] {
        namespace.wait_until_ready(&node, name);
    }
    // The API server's answers are late now, a beat of the node among them.
    cluster.signal("etcd", Signal::STOP);
    std::thread::sleep(Duration::from_secs(12));
    cluster.signal("etcd", Signal::CONT);
    namespace.apply(node.fault_pod("after-stall", "sleep"));
    namespace.wait_until_ready(&node, "after-stall");
    // Without an etcd they are errors of the server, and what the node has to tell is told later.
    let failed = || {
        let requests = cluster.requests_of(&format!("system:node:{}", node.name));
        requests.iter().filter(|request| request["responseStatus"]["code"].as_u64() >= Some(500)).count()
    };
    cluster.restart_after("etcd", || {
        std::fs::write(node.path("shared/go"), "").unwrap();
        assert!(wait_for(|| failed() > 0), "no error of the server; log:\n{}", node.log());
    });
    namespace.wait_for_pod(&node, "job", "done", |pod| pod["status"]["phase"] == "Succeeded");
    namespace.apply(node.fault_pod("after-etcd", "sleep"));
    namespace.wait_until_ready(&node, "after-etcd");
    // An API server that starts knows nothing of what was before: a watch from then has expired.
    let deleted = namespace.pod("deleted").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    assert!(node.path("data/pods").join(&deleted).exists());
    proxy.set(Way::Closed);
    namespace.kubectl_ok(&["delete", "pod", "deleted", "--grace-period=0", "--force"]);
    namespace.apply(node.fault_pod("meanwhile", "sleep"));
    cluster.restart("kube-apiserver");
    proxy.set(Way::Open);
    namespace.wait_until_ready(&node, "meanwhile");
    assert!(wait_for(|| !node.path("data/pods").join(&deleted).exists()), "log:\n{}", node.log());
    node.wait_for_log("too old resource version");
    assert_eq!(container(&namespace.pod("stays").unwrap())["restartCount"], 0);
    node.wait_until_ready(cluster);
}

#[test]
fn a_machine_that_starts_without_a_network_runs_what_it_remembers() {
    let Some(cluster) = cluster() else { return };
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can take a program's network away");
        return;
    }
    let mut node = ClusterNode::join(cluster, "no-network");
    let namespace = cluster.namespace("no-network");
    namespace.apply(with_volume(
        node.fault_pod("counts", "count-runs"),
        &node,
        &[("FAULT_FILE", "/v/runs"), ("FAULT_MILLIS", "600000")],
    ));
    namespace.wait_until_ready(&node, "counts");
    let runs = || std::fs::read_to_string(node.path("shared/runs")).unwrap_or_default().lines().count();
    assert!(wait_for(|| runs() == 1));
    node.kill();
    // A static pod runs at once, too, though it is a new one.
    let static_runs = [("FAULT_FILE", "/v/static-runs"), ("FAULT_MILLIS", "600000")];
    let mut static_pod = with_volume(node.fault_pod("static", "count-runs"), &node, &static_runs);
    static_pod["metadata"]["namespace"] = json!("no-network");
    std::fs::create_dir(node.path("static")).unwrap();
    std::fs::write(node.path("static/pod.json"), static_pod.to_string()).unwrap();
    let folder = node.path("static").display().to_string();
    let mut node = node.with(&["--manifests", &folder]);
    // Nothing but the loopback device, and an API server that there is no way to.
    let program = node.path("without-network");
    let script =
        format!("#!/bin/sh\nexec unshare --net sh -c 'ip link set lo up; exec {} \"$@\"' - \"$@\"\n", fixture::PROGRAM);
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let bootstrap = std::fs::read_to_string(cluster.bootstrap()).unwrap().replace(&cluster.server(), "192.0.2.1:6443");
    std::fs::write(node.path("bootstrap.conf"), bootstrap).unwrap();
    node.program = program;
    let bootstrap = node.path("bootstrap.conf");
    node.run(&bootstrap);
    let runs = || std::fs::read_to_string(node.path("shared/runs")).unwrap_or_default().lines().count();
    assert!(wait_for(|| runs() == 2), "{}", node.log());
    let static_runs = || std::fs::read_to_string(node.path("shared/static-runs")).unwrap_or_default().lines().count();
    assert!(wait_for(|| static_runs() == 1), "{}", node.log());
    assert!(node.log().contains("the node has the address that it had last"), "{}", node.log());
}
