//! Manifests and modules that cannot be run. In each test the other pods run on, and a message names the cause.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::{HandlerPod, Node, condition};

fn pod_with_image(name: &str, image: &str) -> String {
    HandlerPod { image: image.to_owned(), ..HandlerPod::new(name, name, "debug-echo") }.manifest()
}

/// The message of a pod that waits because of its image.
fn image_message(node: &Node, name: &str, reason: &str) -> String {
    let waiting = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    // What failed is told first, then that it is tried again; a name that is none stays so.
    let pod = node.wait_for_pod(name, "waiting for its image", |pod| {
        let waiting = waiting(pod);
        let again = waiting["reason"] == "ImagePullBackOff" || waiting["reason"] == reason;
        let is_told = |message: &str| message.contains(reason) || reason == "InvalidImageName";
        again && waiting["message"].as_str().is_some_and(is_told)
    });
    waiting(&pod)["message"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_manifest_is_named_with_file_and_line() {
    let mut node = Node::start();
    node.write_manifest("broken.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: [\n");
    node.wait_for_log("broken.yaml:");
    let line = node.log().lines().find(|line| line.contains("broken.yaml:")).unwrap().to_owned();
    assert!(line.contains("malformed YAML"), "{line}");
    assert_eq!(node.log().matches("malformed YAML").count(), 1, "reported once");
    node.assert_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_pod_of_one_name_and_a_pod_without_containers_are_refused() {
    let mut node = Node::start();
    node.wait_for_running("witness");
    node.write_manifest("zz.json", &HandlerPod::new("witness", "other", "debug-echo").manifest());
    node.wait_for_log("zz.json:1: pod default/witness is already defined at");
    node.write_manifest("empty.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: e}\nspec: {containers: []}\n");
    node.wait_for_log("pod default/e has no container");
    node.assert_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_volume_fails_the_pod_in_words() {
    let mut node = Node::start();
    let manifest = pod_with_image("lost", "fs:///x.wasm")
        .replace(r#""name":"exchange","mountPath""#, r#""name":"data","mountPath""#);
    let manifest = manifest
        .replace(r#""mountPath":"/tmp/wde-dir","name":"exchange""#, r#""mountPath":"/tmp/wde-dir","name":"data""#);
    node.write_manifest("lost.json", &manifest);
    let pod = node.wait_for_pod("lost", "failed", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(pod["status"]["reason"], "FailedValidation");
    let message = pod["status"]["message"].as_str().unwrap();
    assert!(message.contains("mounts volume \"data\""), "{message}");
    assert_eq!(condition(&pod, "Ready"), Some(false));
    node.assert_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_are_no_modules_are_named() {
    let mut node = Node::start();
    let file = |name: &str, content: &[u8]| {
        let path = node.path(name);
        std::fs::write(&path, content).unwrap();
        format!("fs://{}", path.display())
    };
    let whole = std::fs::read(fixture::guest("debug-echo")).unwrap();
    let missing = r#"(module (import "env" "open_door" (func)) (memory (export "memory") 1) (func (export "_start")))"#;
    let large = node.path("large.wasm");
    std::fs::File::create(&large).unwrap().set_len((64 << 20) + 1).unwrap();
    for (name, image, reason, words) in [
        ("not-wasm", file("not.wasm", b"#!/bin/sh"), "ImageInspectError", "not WebAssembly"),
        ("truncated", file("cut.wasm", &whole[..whole.len() / 2]), "ImageInspectError", "not valid"),
        ("too-large", format!("fs://{}", large.display()), "ImageInspectError", "67108864 at most"),
        ("missing-import", file("door.wasm", &wat::parse_str(missing).unwrap()), "ImageInspectError", "env.open_door"),
        ("no-file", "fs:///nonexistent.wasm".to_owned(), "ErrImagePull", "/nonexistent.wasm"),
        ("registry", "127.0.0.1:1/someone/echo:v1".to_owned(), "ErrImagePull", "Connection refused"),
        ("bad-name", "Some one/Echo::v1".to_owned(), "InvalidImageName", "fs:///path/to/module.wasm"),
    ] {
        node.write_manifest(&format!("{name}.json"), &pod_with_image(name, &image));
        let message = image_message(&node, name, reason);
        assert!(message.contains(words), "{name}: {message}");
    }
    node.assert_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_that_is_no_handler_is_refused() {
    let mut node = Node::start();
    let component = node.path("component.wasm");
    std::fs::write(&component, wat::parse_str("(component)").unwrap()).unwrap();
    node.write_manifest("c.json", &pod_with_image("component", &format!("fs://{}", component.display())));
    let pod = node.wait_for_pod("component", "failing", |pod| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        waiting["message"].as_str().is_some_and(|message| message.contains("akri:discovery/handler@0.1.0"))
    });
    assert!(pod.to_string().contains("it exports nothing; a component is a discovery handler by"), "{pod:#}");
    node.assert_undisturbed().await;
}
