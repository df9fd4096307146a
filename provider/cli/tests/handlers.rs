//! The handlers of `wasm-handlers` as their manifests run them, and the http handler with a server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::{HandlerPod, Node, component, wait_for, wait_for_ids};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

#[test]
fn the_manifests_of_handlers_grant_what_the_handlers_import() {
    let node = Node::start();
    for name in ["udev", "onvif", "opcua", "http", "zeroconf"] {
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
            let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let asked: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
            let body = served.lock().unwrap().clone();
            let tag = format!("\"{}\"", body.len());
            let is_known = asked.iter().any(|line| *line == format!("if-none-match: {tag}"));
            let answer = if is_known {
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

#[test]
fn handlers_and_brokers_are_small() {
    for name in ["udev", "onvif", "opcua", "http", "zeroconf", "http-broker", "opcua-broker", "udev-broker"] {
        let bytes = std::fs::metadata(component(name)).unwrap().len();
        assert!(bytes <= 400_000, "{name} has {bytes} bytes");
    }
}
