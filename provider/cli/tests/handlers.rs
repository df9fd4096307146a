//! The handlers of `wasm-handlers` as their manifests run them, and the http handler with a server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::registry::read_request;
use fixture::{HandlerPod, Node, component, wait_for, wait_for_ids};
use futures::StreamExt as _;
use serde_json::{Value, json};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

const HANDLERS: [&str; 5] = ["udev", "onvif", "opcua", "http", "zeroconf"];

#[test]
fn the_manifests_of_handlers_grant_what_the_handlers_import() {
    let node = Node::start();
    for name in HANDLERS {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests").join(name).join("pod.yaml");
        let manifest = std::fs::read_to_string(&file).unwrap();
        let image = format!("registry.example/akri-krustlet/{name}:v0.1.0");
        assert!(manifest.contains(&image), "{}", file.display());
        let manifest = manifest.replace(&image, &format!("fs://{}", component(name).display()));
        node.write_manifest(&format!("{name}.yaml"), &manifest);
        node.wait_for_running(name);
        node.wait_for_socket(name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_at_a_url_is_devices() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (list, known) = (Arc::new(Mutex::new("b\na\n".to_owned())), Arc::new(AtomicU64::new(0)));
    let (served, unchanged) = (list.clone(), known.clone());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let Some((_, headers)) = read_request(&stream) else { continue };
            let body = served.lock().unwrap().clone();
            let tag = format!("\"{}\"", body.len());
            let answer = if headers.get("if-none-match") == Some(&tag) {
                unchanged.fetch_add(1, Ordering::Relaxed);
                format!("HTTP/1.1 304 Not Modified\r\netag: {tag}\r\n\r\n")
            } else {
                format!("HTTP/1.1 200 OK\r\netag: {tag}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
            };
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let mut node = Node::start();
    let mut pod = HandlerPod::typed("http", "", "http");
    let rules = format!("http http://{address}");
    pod.annotations.push(("akri-krustlet/network", &rules));
    node.add(&pod);
    // As in the walkthrough: the details are a URL and nothing else.
    let (_stream, ids) = node.first_list("http", &format!("http://{address}/discovery")).await;
    assert_eq!(ids, ["a", "b"]);
    let details = format!("{{\"url\": \"http://{address}/\", \"interval\": 1}}");
    let (mut stream, ids) = node.first_list("http", &details).await;
    assert_eq!(ids, ["a", "b"]);
    assert!(wait_for(|| known.load(Ordering::Relaxed) > 0), "it asks for changes only");
    *list.lock().unwrap() = "c\n".to_owned();
    wait_for_ids(&mut stream, &["c"]).await;
    // What the URL in the details names is not reached where no rule gives it.
    let _other = node.discover("http", "http://127.0.0.1:1/").await.unwrap();
    let message = node.wait_for_unhealthy("http");
    assert!(message.contains("the pod does not grant it"), "{message}");
    node.assert_undisturbed().await;
}

/// What may stand where a Configuration should have something else.
const SHAPES: [&str; 13] = [
    "null",
    "true",
    "-1",
    "0",
    "1e300",
    "18446744073709551616",
    "\"\"",
    "\"text\"",
    "[]",
    "{}",
    "[[[[[[[[[[1]]]]]]]]]]",
    "[null, {}]",
    "{\"a\": {\"b\": [1]}}",
];

/// Details with each of their values replaced by each shape, and all of them.
fn misshapen(details: &Value) -> Vec<Value> {
    let shapes = || SHAPES.iter().map(|shape| serde_json::from_str::<Value>(shape).unwrap());
    let mut all: Vec<_> = shapes().collect();
    let children: Vec<String> = match details {
        Value::Object(members) => members.keys().map(|name| format!("/{name}")).collect(),
        Value::Array(items) => (0..items.len()).map(|index| format!("/{index}")).collect(),
        _ => Vec::new(),
    };
    for place in children {
        for wrong in misshapen(details.pointer(&place).unwrap()) {
            let mut whole = details.clone();
            *whole.pointer_mut(&place).unwrap() = wrong;
            all.push(whole);
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn details_of_every_shape_are_answered_and_end_no_handler() {
    let node = Node::start();
    let filter = json!({"items": ["a"], "action": "Include"});
    let method = json!({"standard": {"discoveryUrls": ["opc.tcp://127.0.0.1:1/"]}});
    let handlers = [
        (
            "udev",
            json!({"udevRules": ["KERNEL==\"null\""], "groupRecursive": true, "permissions": "r", "matching": "udev"}),
        ),
        (
            "onvif",
            json!({"ipAddresses": filter, "scopes": filter, "discoveryTimeoutSeconds": 1, "missedProbes": 1,
            "identity": "uuid", "interval": 10}),
        ),
        (
            "opcua",
            json!({"opcuaDiscoveryMethod": method, "applicationNames": filter, "applicationTypes": ["Server"],
            "resolve": "never", "interval": 10, "missedPolls": 1}),
        ),
        (
            "http",
            json!({"url": "http://127.0.0.1:1/", "headers": {"a": "b"}, "items": "/a", "id": "/b",
            "properties": {"A": "/c"}, "interval": 10}),
        ),
        (
            "http",
            json!({"range": {"network": "127.0.0.1/32", "ports": [1], "path": "/", "status": 200, "contains": "a",
            "interval": 10, "perSecond": 1, "missed": 1}}),
        ),
        (
            "zeroconf",
            json!({"kind": "_a._tcp", "domain": "local", "name": "a", "port": 1, "interval": 10, "missedQuestions": 1}),
        ),
    ];
    for name in HANDLERS {
        let mut pod = HandlerPod::typed(name, "", name);
        pod.annotations.push(("akri-krustlet/uevents", "mem"));
        pod.annotations.push(("akri-krustlet/links", "*"));
        pod.annotations
            .push(("akri-krustlet/network", "udp 239.255.255.250:3702\njoin 239.255.255.250:3702\nudp 224.0.0.251:5353\njoin 224.0.0.251:5353\ntcp 127.0.0.1:1"));
        pod.host_paths.push("/sys/class/mem");
        node.add(&pod);
        node.wait_for_socket(name);
    }
    let node = &node;
    for (name, right) in &handlers {
        let ask = |details: Value| async move {
            let answer = node.discover(name, &details.to_string()).await;
            match answer {
                Ok(_) => true,
                Err(status) if status.code() == tonic::Code::InvalidArgument && !status.message().is_empty() => false,
                Err(status) => panic!("{name}, {details}: {status}"),
            }
        };
        let answers = futures::stream::iter(misshapen(right)).map(ask).buffer_unordered(16).collect::<Vec<_>>().await;
        let taken = answers.iter().filter(|taken| **taken).count();
        let refused = answers.len() - taken;
        assert!(taken > 0 && refused >= SHAPES.len(), "{name}: {taken} of {} were taken", answers.len());
    }
    let log = node.log();
    for fault in ["trapped", "panicked", "exited"] {
        assert!(!log.contains(fault), "{fault}: {log}");
    }
    for name in HANDLERS {
        assert_eq!(node.pod(name).unwrap()["status"]["containerStatuses"][0]["restartCount"], 0, "{name}");
    }
}

#[test]
fn handlers_and_brokers_are_small() {
    for name in HANDLERS.into_iter().chain(["http-broker", "opcua-broker", "udev-broker"]) {
        let bytes = std::fs::metadata(component(name)).unwrap().len();
        assert!(bytes <= 400_000, "{name} has {bytes} bytes");
    }
}
