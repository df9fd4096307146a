//! Brokers that talk to the devices that they were given, without a cluster.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::namespace::{in_namespace, ip};
use fixture::neighbour::Neighbour;
use fixture::offers::Offers;
use fixture::peers::{Peer, python};
use fixture::registry::read_request;
use fixture::{HandlerPod, Node, component, wait_for};
use serde_json::json;
use std::io::Write as _;
use std::net::TcpListener;

/// A pod that has a device, and the machine's network.
fn broker(program: &str, resource: &str, variables: &[(&str, &str)]) -> String {
    let variables: Vec<_> = variables.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": program}, "spec": {
        "hostNetwork": true,
        "containers": [{
            "name": "main", "image": format!("fs://{}", component(program).display()), "env": variables,
            "resources": {"limits": {resource: "1", "cpu": "100m"}},
        }],
    }})
    .to_string()
}

fn wait_for_line(node: &Node, pod: &str, line: &str) {
    let has_line = || node.log_of(pod).lines().any(|said| said.contains(line));
    assert!(wait_for(has_line), "not in the log of {pod}: {line}\n{}\n{}", node.log_of(pod), node.log());
}

fn find(handler: &str, rules: &str) -> Node {
    let node = Node::start();
    let mut pod = HandlerPod::typed(handler, "", handler);
    pod.annotations.push(("akri-krustlet/network", rules));
    node.add(&pod);
    node.wait_for_socket(handler);
    node
}

/// A device that says its name by HTTP, and at /devices that it is there.
fn http_device() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut answers = 0;
        for mut stream in listener.incoming().flatten() {
            let Some((path, _)) = read_request(&stream) else { continue };
            let (status, body) = match path.as_str() {
                "/devices" => ("200 OK", format!("http://{address}/state")),
                _ => {
                    answers += 1;
                    // Once it is out of order.
                    if answers == 2 {
                        ("503 Service Unavailable", "not now".to_owned())
                    } else {
                        ("200 OK", format!("answer {answers}\nof two lines\n"))
                    }
                }
            };
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = stream.write_all((head + &body).as_bytes());
        }
    });
    address
}

#[test]
fn a_broker_asks_its_device_by_http() {
    let address = http_device();
    let node = find("http", &format!("http http://{address}"));
    let offers = Offers::start(&node, "http", &format!("http://{address}/devices"), 1);
    let found = offers.next();
    let (id, resource) = &found[0];
    assert_eq!(id, &format!("http://{address}/state"));
    // A device at the machine's own address is nothing that a broker reaches for its device says so.
    let variables = [("HTTP_INTERVAL", "0.1"), ("AKRI_KRUSTLET_NETWORK", "http details")];
    node.write_manifest("broker.json", &broker("http-broker", resource, &variables));
    wait_for_line(&node, "http-broker", "HttpRequestDenied");
    let rules = format!("http http://{address}");
    let variables = [("HTTP_INTERVAL", "0.1"), ("AKRI_KRUSTLET_NETWORK", &rules)];
    node.write_manifest("broker.json", &broker("http-broker", resource, &variables));
    for line in ["answer 1 of two lines", "status 503: not now", "answer 3 of two lines"] {
        wait_for_line(&node, "http-broker", line);
    }
}

#[test]
fn a_broker_reads_the_server_that_it_was_given_and_comes_back_to_it() {
    let Some(python) = python() else { return };
    if !in_namespace("a_broker_reads_the_server_that_it_was_given_and_comes_back_to_it") {
        return;
    }
    let there = Neighbour::behind(("cam0", "10.99.0.1/24"), "10.99.0.2/24");
    let server = || Peer::start(&python, "opcua_server.py", &["10.99.0.2:4855", "plc", "Server"], Some(there.pid()));
    let first = server();
    let node = find("opcua", "tcp details\ndns *");
    let details = r#"{"opcuaDiscoveryMethod": {"standard": {"discoveryUrls": ["opc.tcp://10.99.0.2:4855/"]}}}"#;
    let offers = Offers::start(&node, "opcua", details, 1);
    let found = offers.next();
    let (url, resource) = &found[0];
    assert_eq!(url, "opc.tcp://10.99.0.2:4855/ua");
    // As Akri's own broker names the node.
    let node_id = [("IDENTIFIER", "value"), ("NAMESPACE_INDEX", "2"), ("OPCUA_INTERVAL", "0.1")];
    let variables = [&node_id[..], &[("AKRI_KRUSTLET_NETWORK", "tcp details")]].concat();
    node.write_manifest("broker.json", &broker("opcua-broker", resource, &variables));
    let line = format!("{url} ns=2;s=value = 42.5");
    wait_for_line(&node, "opcua-broker", &line);
    drop(first);
    wait_for_line(&node, "opcua-broker", "once more in 1 s");
    let before = node.log_of("opcua-broker").matches(&line).count();
    let _second = server();
    assert!(
        wait_for(|| node.log_of("opcua-broker").matches(&line).count() > before),
        "{}",
        node.log_of("opcua-broker")
    );
}

#[test]
fn a_broker_follows_an_attribute_of_its_device() {
    if !in_namespace("a_broker_follows_an_attribute_of_its_device") {
        return;
    }
    // What /sys has of links is those of who mounted it.
    let mounted = std::process::Command::new("mount").args(["-t", "sysfs", "sysfs", "/sys"]).output().unwrap();
    if !mounted.status.success() {
        println!("skipped: /sys of this network cannot be mounted: {}", String::from_utf8_lossy(&mounted.stderr));
        return;
    }
    ip("link add br7 type bridge");
    let node = Node::start();
    let mut pod = HandlerPod::typed("udev", "", "udev");
    pod.annotations.push(("akri-krustlet/uevents", "net"));
    pod.host_paths.push("/sys");
    node.add(&pod);
    node.wait_for_socket("udev");
    let offers = Offers::start(&node, "udev", r#"udevRules: ['SUBSYSTEM=="net", KERNEL=="br7"']"#, 1);
    let found = offers.next();
    let (id, resource) = &found[0];
    assert_eq!(id, "/devices/virtual/net/br7");
    let variables = [("UDEV_ATTRIBUTE", "ifalias"), ("UDEV_INTERVAL", "0.1")];
    let mut pod: serde_json::Value = serde_json::from_str(&broker("udev-broker", resource, &variables)).unwrap();
    pod["spec"]["volumes"] = json!([{"name": "sys", "hostPath": {"path": "/sys"}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "sys", "mountPath": "/sys", "readOnly": true}]);
    node.write_manifest("broker.json", &pod.to_string());
    wait_for_line(&node, "udev-broker", "/devices/virtual/net/br7 ifalias = ");
    ip("link set br7 alias front");
    wait_for_line(&node, "udev-broker", "/devices/virtual/net/br7 ifalias = front");
    // It says so once, and goes on.
    ip("link del br7");
    wait_for_line(&node, "udev-broker", "does the pod mount /sys?");
    assert!(node.log_of("udev-broker").lines().count() <= 3, "{}", node.log_of("udev-broker"));
}

#[test]
fn a_broker_that_has_nothing_to_do_says_what_it_misses() {
    let node = Node::start();
    for (program, line) in [
        ("http-broker", "no AKRI_HTTP_DEVICE_ENDPOINT in the environment"),
        ("opcua-broker", "no OPCUA_DISCOVERY_URL in the environment"),
        ("udev-broker", "no UDEV_DEVPATH in the environment"),
    ] {
        let mut pod: serde_json::Value = serde_json::from_str(&broker(program, "cpu", &[])).unwrap();
        pod["spec"]["restartPolicy"] = json!("Never");
        pod["spec"]["containers"][0]["resources"] = json!({});
        node.write_manifest(&format!("{program}.json"), &pod.to_string());
        wait_for_line(&node, program, line);
        node.wait_for_pod(program, "failed", |pod| pod["status"]["phase"] == "Failed");
    }
}
