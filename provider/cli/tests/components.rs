//! Components that are commands (`wasi:cli/command`): containers as modules are, and with a network by their pod's grants.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;
#[path = "../../devices/tests/plugin/mod.rs"]
mod plugin;

use fixture::namespace::{in_namespace, ip};
use fixture::{Node, component, wait_for};
use plugin::Plugin;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// A pod whose one container takes these steps, which are arguments of the program `workload`.
fn workload(name: &str, steps: &[&str]) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"restartPolicy": "Never", "containers": [{
        "name": "main", "image": format!("fs://{}", component("workload").display()), "args": steps,
    }]}})
}

fn add(node: &Node, pod: &Value) {
    node.write_manifest(&format!("{}.json", pod["metadata"]["name"].as_str().unwrap()), &pod.to_string());
}

/// How the container ended, and what it said.
fn ended(node: &Node, name: &str) -> (i64, String) {
    let pod = node.wait_for_pod(name, "ended", |pod| {
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"].is_i64()
    });
    let code = pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"].as_i64().unwrap();
    (code, node.log_of(name))
}

fn granted(mut pod: Value, rules: &str) -> Value {
    pod["metadata"]["annotations"] = json!({"akri-krustlet/network": rules});
    pod["spec"]["hostNetwork"] = true.into();
    pod
}

/// Answers a line by `pong`, until the test ends.
fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut line = String::new();
            let _ = BufReader::new(&stream).read_line(&mut line).and_then(|_| stream.write_all(b"pong\n"));
        }
    });
    address
}

#[test]
fn a_component_runs_as_a_module_does() {
    let node = Node::start();
    let mut files =
        workload("files", &["arguments", "variable:GREETING", "error:aside", "write:/data/f=text", "read:/data/f"]);
    files["spec"]["containers"][0]["env"] = json!([{"name": "GREETING", "value": "hello"}]);
    files["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    files["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    add(&node, &files);
    let (code, said) = ended(&node, "files");
    assert_eq!(code, 0, "{said}");
    for line in ["[\"arguments\", ", "GREETING=hello\n", "aside\n", "/data/f: written\n", "/data/f: \"text\"\n"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert_eq!(
        node.wait_for_pod("files", "succeeded", |pod| pod["status"]["phase"] == "Succeeded")["status"]["reason"],
        Value::Null
    );

    add(&node, &workload("fails", &["print:before", "exit:1"]));
    assert_eq!(ended(&node, "fails"), (1, "before\n".to_owned()));
    add(&node, &workload("aborts", &["abort"]));
    assert_eq!(ended(&node, "aborts").0, 134);
    let mut large = workload("large", &["memory:64"]);
    large["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "16Mi"}});
    add(&node, &large);
    let reason = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] == "OOMKilled";
    node.wait_for_pod("large", "killed for its memory", reason);
}

#[test]
fn a_component_ends_with_its_pod_and_with_the_node() {
    let mut node = Node::start();
    let mut waits = workload("waits", &["wait", "print:the end was told"]);
    waits["spec"]["containers"][0]["stdin"] = true.into();
    add(&node, &waits);
    add(&node, &workload("spins", &["spin"]));
    node.wait_for_running("waits");
    node.wait_for_running("spins");
    node.remove_manifest("spins.json");
    assert!(wait_for(|| node.pod("spins").is_none()), "a guest that computes is ended");
    assert_eq!(node.terminate(), Some(0));
    let logs = walk(&node.path("data"));
    assert!(logs.contains("the end was told"), "{logs}");
}

/// All logs of containers.
fn walk(directory: &std::path::Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => text.push_str(&walk(&path)),
            path if path.extension().is_some_and(|end| end == "log") => {
                text.push_str(&String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()));
            }
            _ => {}
        }
    }
    text
}

#[test]
fn a_component_reaches_what_its_pod_grants() {
    let node = Node::start();
    let (server, other) = (server(), server());
    let steps = [format!("connect:{server}=ping"), format!("connect:{other}=ping")];
    let steps: Vec<_> = steps.iter().map(String::as_str).collect();
    add(&node, &granted(workload("granted", &steps), &format!("tcp {server}")));
    let (code, said) = ended(&node, "granted");
    assert_eq!(code, 0, "{said}");
    assert!(said.contains(&format!("{server}: pong\n")), "{said}");
    assert!(said.contains(&format!("{other}: PermissionDenied\n")), "{said}");
    assert!(said.contains(&format!("{other} denied")), "{said}");
    // The network of a module's or component's pod is nothing without rules.
    add(&node, &workload("alone", &steps));
    assert!(!ended(&node, "alone").1.contains("pong"));
}

#[test]
fn a_component_serves_the_ports_that_its_container_has() {
    let node = Node::start();
    let free = || control_plane::port::free().unwrap();
    let (port, other) = (free(), free());
    let mut pod = workload("serves", &[&format!("serve:{other}"), &format!("serve:{port}")]);
    pod["spec"]["hostNetwork"] = true.into();
    pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": port}]);
    add(&node, &pod);
    assert!(wait_for(|| node.log_of("serves").contains("serving")), "{}", node.log_of("serves"));
    assert!(node.log_of("serves").contains(&format!("{other}: PermissionDenied")), "{}", node.log_of("serves"));
    for _ in 0..3 {
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        client.write_all(b"hello\n").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "hello\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_reaches_the_device_that_it_was_given() {
    if !in_namespace("a_broker_reaches_the_device_that_it_was_given") {
        return;
    }
    // No device is there: that the attempt leaves the machine is what counts. Its own addresses are never opened by details.
    ip("link set lo up");
    ip("route add unreachable 10.9.0.0/24");
    let (device, other) = ("10.9.0.1:4840", "10.9.0.1:4841");
    let node = Node::start();
    node.wait_for_running("witness");
    let url = format!("opc.tcp://{device}/path");
    let plugin = Plugin::serve(&node.path("plugins"), "example.com/a", &["1"]);
    plugin.set_variable("OPCUA_DISCOVERY_URL", &url);
    plugin.register().await.unwrap();
    let steps = ["variable:OPCUA_DISCOVERY_URL", &format!("connect:{device}=ping"), &format!("connect:{other}=ping")];
    let mut pod = granted(workload("broker", &steps), "tcp details");
    pod["spec"]["containers"][0]["resources"] = json!({"limits": {"example.com/a": "1"}});
    add(&node, &pod);
    let (code, said) = ended(&node, "broker");
    assert_eq!(code, 0, "{said}");
    for line in [format!("={url}\n"), format!("{device}: HostUnreachable\n"), format!("{other}: PermissionDenied\n")] {
        assert!(said.contains(&line), "{line}: {said}");
    }
}

#[test]
fn a_container_with_a_network_has_probes() {
    let node = Node::start();
    let port = control_plane::port::free().unwrap();
    let probed = |name: &str, steps: &[&str], probes: &[&str], failures: u32| {
        let mut pod = workload(name, steps);
        pod["spec"]["hostNetwork"] = true.into();
        pod["spec"]["restartPolicy"] = "Always".into();
        pod["spec"]["terminationGracePeriodSeconds"] = 1.into();
        let container = &mut pod["spec"]["containers"][0];
        container["ports"] = json!([{"name": "lines", "containerPort": port}]);
        for probe in probes {
            container[probe] =
                json!({"tcpSocket": {"port": "lines"}, "periodSeconds": 1, "failureThreshold": failures});
        }
        add(&node, &pod);
    };
    let status = |pod: &Value| pod["status"]["containerStatuses"][0].clone();
    // Nobody listens before it is started, and from then on somebody does.
    probed("late", &["print:begun", "sleep:1500", &format!("serve:{port}")], &["readinessProbe", "livenessProbe"], 30);
    let is_running = |pod: &Value| status(pod)["state"]["running"].is_object();
    let early = node.wait_for_pod("late", "running", is_running);
    assert_eq!((&status(&early)["ready"], &status(&early)["started"]), (&json!(false), &json!(true)), "{early:#}");
    assert_eq!(fixture::condition(&early, "Ready"), Some(false));
    let ready = node.wait_for_pod("late", "ready", |pod| fixture::condition(pod, "Ready") == Some(true));
    assert_eq!(status(&ready)["restartCount"], 0);
    node.remove_manifest("late.json");
    assert!(wait_for(|| node.pod("late").is_none()));
    // Nobody ever listens.
    probed("deaf", &["forever"], &["startupProbe", "readinessProbe"], 2);
    let first = node.wait_for_pod("deaf", "running", is_running);
    assert_eq!((&status(&first)["ready"], &status(&first)["started"]), (&json!(false), &json!(false)), "{first:#}");
    node.wait_for_pod("deaf", "restarted", |pod| status(pod)["restartCount"].as_i64() > Some(0));
    // Without a network there is nothing to ask.
    let mut alone = workload("alone", &["forever"]);
    alone["spec"]["containers"][0]["livenessProbe"] = json!({"tcpSocket": {"port": 1}});
    add(&node, &alone);
    let refused = node.wait_for_pod("alone", "refused", |pod| pod["status"]["phase"] == "Failed");
    let message = refused["status"]["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("container main: livenessProbe") && message.contains("spec.hostNetwork: true"),
        "{message}"
    );
}

#[test]
fn a_command_is_no_discovery_handler() {
    let node = Node::start();
    let mut exchange = workload("exchange", &["forever"]);
    exchange["spec"]["containers"][0]["env"] = json!([{"name": "DISCOVERY_HANDLER_NAME", "value": "x"}]);
    add(&node, &exchange);
    node.wait_for_log("it does not export akri:discovery/handler@0.1.0");
}
