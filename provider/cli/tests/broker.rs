//! Brokers of a node without a cluster: a handler's devices, offered as Akri's Agent does it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;
#[path = "../../devices/tests/plugin/mod.rs"]
mod plugin;

use fixture::offers::Offers;
use fixture::{Node, PROGRAM, guest, wait_for};
use plugin::Plugin;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};

fn offers(node: &Node, capacity: u32) -> Offers {
    Offers::start(node, "debugEcho", "descriptions: [foo0, foo1]", capacity)
}

fn broker(name: &str, module: &Path, resource: &str) -> String {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [{
        "name": "main", "image": format!("fs://{}", module.display()),
        "resources": {"limits": {resource: "1", "cpu": "100m"}},
    }]}})
    .to_string()
}

const FOO0: &str = "akri.sh/akri-debug-echo-8120fe";
const LINE: &str = "Pod is running and using debugEcho device named: foo0\n";

#[test]
fn a_broker_says_which_device_it_has() {
    let node = Node::start();
    node.wait_for_running("witness");
    let _offers = offers(&node, 2);
    let module = guest("debug-echo-broker");
    for name in ["first", "second"] {
        node.write_manifest(&format!("{name}.json"), &broker(name, &module, FOO0));
        node.wait_for_running(name);
        assert!(wait_for(|| node.log_of(name) == LINE), "{}", node.log_of(name));
    }
    // Two may have it, and no third one.
    node.write_manifest("third.json", &broker("third", &module, FOO0));
    let third = node.wait_for_pod("third", "refused", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(third["status"]["reason"], "UnexpectedAdmissionError");
    assert!(third["status"]["message"].as_str().unwrap().contains("0 of 2 devices are healthy and free"), "{third:#}");
    // The device goes: who uses it runs on. It comes back, and its slots are those that are free.
    let availability = node.exchange_file("witness", "debug-echo-availability.txt");
    std::fs::write(&availability, "OFFLINE").unwrap();
    node.wait_for_log("the device plugin is gone");
    let phase = |pod: Value| pod["status"]["phase"].clone();
    assert_eq!(phase(node.pod("first").unwrap()), "Running");
    std::fs::write(&availability, "ONLINE").unwrap();
    node.remove_manifest("first.json");
    node.write_manifest("fourth.json", &broker("fourth", &module, FOO0));
    node.wait_for_running("fourth");
    assert!(wait_for(|| node.log_of("fourth") == LINE));
}

#[test]
fn the_module_of_2021_runs_as_a_broker_within_its_cpu_limit() {
    let Some(module) = std::env::var_os("WDE_HELLO_WORLD_2021") else {
        println!(
            "skipped: WDE_HELLO_WORLD_2021 names no module (akri-on-krustlet's wde-hello-world, built for wasm32-wasip1)"
        );
        return;
    };
    let mut node = Node::start();
    node.wait_for_running("witness");
    let _offers = offers(&node, 1);
    node.write_manifest("seed.json", &broker("seed", Path::new(&module), FOO0));
    node.wait_for_running("seed");
    assert!(wait_for(|| node.log_of("seed") == LINE));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(node.assert_undisturbed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_keeps_its_device_over_its_restarts() {
    let node = Node::start();
    node.wait_for_running("witness");
    let plugin = Plugin::serve(&node.path("plugins"), "example.com/a", &["1", "2"]);
    plugin.set_options(true, false);
    plugin.register().await.unwrap();
    let mut pod: Value = serde_json::from_str(&broker("failing", &guest("misbehave"), "example.com/a")).unwrap();
    pod["spec"]["containers"][0]["env"] =
        json!([{"name": "FAULT", "value": "exit3"}, {"name": "FAULT_AT", "value": "start"}]);
    node.write_manifest("failing.json", &pod.to_string());
    node.wait_for_pod("failing", "restarted", |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1);
    assert!(wait_for(|| plugin.started().len() == 2), "told before each start: {:?}", plugin.started());
    assert_eq!(plugin.allocated(), [["1"]]);
    assert_eq!(plugin.started(), [["1"], ["1"]]);
}

#[test]
fn the_socket_of_a_live_kubelet_is_left_alone_and_the_ways_out_are_named() {
    let node = Node::start();
    node.wait_for_running("witness");
    let mut other = Node::prepare();
    // Same directory, as it would be a kubelet's.
    std::fs::create_dir_all(other.path("x")).unwrap();
    std::os::unix::fs::symlink(node.path("plugins"), other.path("plugins")).unwrap();
    other.run();
    other.wait_for_log("kubelet.sock is served by another process");
    assert!(wait_for(|| !other.is_running()));
    let log = other.log();
    assert!(log.contains("--device-plugins-directory") && log.contains("mount namespace"), "{log}");
    node.wait_for_running("witness");
}

#[test]
fn a_pod_that_wants_a_device_of_a_node_without_plugins_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let manifests = directory.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    std::fs::write(manifests.join("broker.json"), broker("broker", &guest("debug-echo-broker"), FOO0)).unwrap();
    let mut node = Command::new(PROGRAM)
        .args(["run".as_ref(), "--manifests".as_ref(), manifests.as_os_str()])
        .args(["--data-dir".as_ref(), directory.path().join("data").as_os_str()])
        .args(["--discovery-handlers-directory".as_ref(), directory.path().join("akri").as_os_str()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pods = || {
        let output = Command::new(PROGRAM)
            .args(["pods", "-o", "json", "--data-dir"])
            .arg(directory.path().join("data"))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let told = wait_for(|| pods().contains("this node serves no device plugins: see --device-plugins-directory"));
    node.kill().unwrap();
    node.wait().unwrap();
    assert!(told, "{}", pods());
}

#[tokio::test]
async fn a_pod_that_found_no_device_is_tried_again_and_after_a_restart_of_the_node() {
    let mut node = Node::start();
    node.wait_for_running("witness");
    let module = guest("misbehave");
    for name in ["early", "earlier"] {
        node.write_manifest(&format!("{name}.json"), &broker(name, &module, &format!("example.com/{name}")));
    }
    let refused = |pod: &Value| pod["status"]["reason"] == "UnexpectedAdmissionError";
    let message = |pod: Value| pod["status"]["message"].as_str().unwrap_or_default().to_owned();
    for name in ["early", "earlier"] {
        let pod = node
            .wait_for_pod(name, "refused", |pod| refused(pod) && message(pod.clone()).contains("tried again in 10 s"));
        assert!(message(pod).contains("which no device plugin offers"));
    }
    let _plugin = Plugin::start(&node.path("plugins"), "example.com/early", &["1"]).await;
    let found = node.wait_for_running("early");
    assert!(found["status"]["reason"].is_null(), "{found:#}");
    node.kill();
    let other = Plugin::serve(&node.path("plugins"), "example.com/earlier", &["1"]);
    node.run();
    // Its sockets are served then; those of its earlier life are there before.
    assert!(wait_for(|| node.log().matches("the node runs").count() == 2));
    other.register().await.unwrap();
    node.wait_for_running("earlier");
}
