//! Modules that are files, built anew while a container of theirs runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use akri_proto::v0::DiscoverResponse;
use fixture::{DEADLINE, HandlerPod, Node, component, component_with, wait_for};
use serde_json::Value;
use std::path::Path;
use tonic::Streaming;

/// As cargo puts it there: it makes another file of the name.
fn replace(path: &Path, content: &[u8]) {
    let _ = std::fs::remove_file(path);
    std::fs::write(path, content).unwrap();
}

fn restarts(pod: &Value) -> i64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap()
}

/// The names of the properties of the next list's first device.
async fn next_properties(stream: &mut Streaming<DiscoverResponse>) -> Vec<String> {
    let list = tokio::time::timeout(DEADLINE, stream.message()).await.expect("a list comes").unwrap().unwrap();
    list.devices[0].properties.keys().cloned().collect()
}

async fn wait_for_property(stream: &mut Streaming<DiscoverResponse>, name: &str) {
    while next_properties(stream).await != [name] {}
}

fn echo(node: &Node, directory: &str) -> HandlerPod<'static> {
    let image = format!("fs://{}", node.path(directory).join("echo.wasm").display());
    HandlerPod { image, ..HandlerPod::typed("echo", "", "debug-echo-typed") }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_is_built_anew_is_taken_while_its_streams_stay_open() {
    let mut node = Node::prepare();
    let old = std::fs::read(component("debug-echo-typed")).unwrap();
    let new = component_with("debug-echo-typed", "DEBUG_ECHO_DESCRIPTION", "DEBUG_ECHO_INSCRIPTION");
    std::fs::create_dir(node.path("built")).unwrap();
    let module = node.path("built/echo.wasm");
    replace(&module, &old);
    node.add(&echo(&node, "built"));
    // A program runs once more with its new module, whatever its restart policy says of its end.
    let words = |text: &str| {
        let (length, module) = (
            text.len() + 1,
            r#"(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))"#,
        );
        let poll =
            r#"(import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))"#;
        wat::parse_str(format!(
            r#"(module {module} {poll} (memory (export "memory") 1)
            (data (i32.const 64) "{text}\n") (data (i32.const 0) "\40\00\00\00") (data (i32.const 8) "")
            (func (export "_start")
              (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const {length}))
              (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
              (i32.store8 (i32.const 136) (i32.const 0)) (i32.store (i32.const 144) (i32.const 1))
              (i64.store (i32.const 152) (i64.const 1000000000000000))
              (drop (call $poll (i32.const 128) (i32.const 256) (i32.const 1) (i32.const 512)))))"#
        ))
        .unwrap()
    };
    replace(&node.path("built/words.wasm"), &words("one"));
    let image = format!("fs://{}", node.path("built/words.wasm").display());
    node.add(&HandlerPod {
        image,
        exchange: false,
        restart_policy: "Never",
        ..HandlerPod::new("words", "", "debug-echo")
    });
    node.run();
    let (mut stream, _) = node.first_list("debugEcho", "descriptions: [a]").await;
    replace(&module, &new);
    wait_for_property(&mut stream, "DEBUG_ECHO_INSCRIPTION").await;
    assert_eq!(restarts(&node.wait_for_running("echo")), 1);

    // What cannot be run is told, and changes nothing.
    replace(&module, &new[..new.len() / 2]);
    node.wait_for_log("what runs goes on with the module from before");
    replace(&module, b"no module");
    node.wait_for_log("not WebAssembly: it begins with");
    assert_eq!(restarts(&node.wait_for_running("echo")), 1);
    // Nor does the same module, written again: the next one is the second start.
    let tried = node.log().matches("goes on with the module").count();
    replace(&module, &new);
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(restarts(&node.wait_for_running("echo")), 1);
    assert_eq!(node.log().matches("goes on with the module").count(), tried);
    // Whoever builds all anew removes the directory.
    std::fs::rename(node.path("built"), node.path("away")).unwrap();
    std::fs::create_dir(node.path("built")).unwrap();
    replace(&module, &old);
    wait_for_property(&mut stream, "DEBUG_ECHO_DESCRIPTION").await;
    assert_eq!(restarts(&node.wait_for_running("echo")), 2);

    node.wait_for_running("words");
    assert!(wait_for(|| node.log_of("words") == "one\n"), "{}", node.log_of("words"));
    replace(&node.path("built/words.wasm"), &words("two"));
    assert!(wait_for(|| node.log_of("words") == "two\n"), "{}\n{}", node.log_of("words"), node.log());
    assert!(node.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_did_not_run_is_tried_again_when_it_is_built() {
    let mut node = Node::prepare();
    std::fs::create_dir(node.path("built")).unwrap();
    let module = node.path("built/echo.wasm");
    replace(&module, b"no module");
    node.add(&echo(&node, "built"));
    // With it the right one is compiled already.
    node.add(&HandlerPod::typed("other", "otherEcho", "debug-echo-typed"));
    node.run();
    node.wait_for_socket("otherEcho");
    // Long enough for a pause that nobody would wait for.
    let waits = |pod: &Value| {
        let state = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        state["reason"] == "ImagePullBackOff"
    };
    node.wait_for_pod("echo", "waiting", waits);
    let started = std::time::Instant::now();
    replace(&module, &std::fs::read(component("debug-echo-typed")).unwrap());
    let (_stream, ids) = node.first_list("debugEcho", "descriptions: [a]").await;
    assert_eq!(ids, ["a"]);
    // Its pause is 10 s, and nothing but the file ends it.
    assert!(started.elapsed() < std::time::Duration::from_secs(8), "{:?}", started.elapsed());
    // A module behind a link, as volumes of a cluster have their files.
    std::fs::create_dir(node.path("other")).unwrap();
    let other = component_with("debug-echo-typed", "DEBUG_ECHO_DESCRIPTION", "DEBUG_ECHO_INSCRIPTION");
    std::fs::write(node.path("other/echo.wasm"), other).unwrap();
    std::os::unix::fs::symlink(node.path("other/echo.wasm"), node.path("built/link")).unwrap();
    std::fs::rename(node.path("built/link"), &module).unwrap();
    let mut stream = node.discover("debugEcho", "descriptions: [a]").await.unwrap();
    wait_for_property(&mut stream, "DEBUG_ECHO_INSCRIPTION").await;
    std::fs::copy(component("debug-echo-typed"), node.path("other/echo.wasm")).unwrap();
    wait_for_property(&mut stream, "DEBUG_ECHO_DESCRIPTION").await;
    // And one whose directory is a link that is changed, as deployments do it.
    let new = component_with("debug-echo-typed", "DEBUG_ECHO_DESCRIPTION", "DEBUG_ECHO_INSCRIPTION");
    std::fs::create_dir(node.path("release")).unwrap();
    std::fs::write(node.path("release/echo.wasm"), new).unwrap();
    std::fs::rename(node.path("built"), node.path("built.old")).unwrap();
    std::os::unix::fs::symlink(node.path("release"), node.path("built")).unwrap();
    wait_for_property(&mut stream, "DEBUG_ECHO_INSCRIPTION").await;
    std::os::unix::fs::symlink(node.path("built.old"), node.path("next")).unwrap();
    std::fs::rename(node.path("next"), node.path("built")).unwrap();
    wait_for_property(&mut stream, "DEBUG_ECHO_DESCRIPTION").await;
}

/// A guest that may write its module's directory does not say what the node runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_a_guest_could_write_is_taken_by_the_next_start_only() {
    let mut node = Node::prepare();
    std::fs::create_dir(node.path("built")).unwrap();
    let module = node.path("built/echo.wasm");
    replace(&module, &std::fs::read(component("debug-echo-typed")).unwrap());
    let mut pod: Value = serde_json::from_str(&echo(&node, "built").manifest()).unwrap();
    pod["spec"]["volumes"] = serde_json::json!([{"name": "own", "hostPath": {"path": node.path("built")}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = serde_json::json!([{"name": "own", "mountPath": "/own"}]);
    node.write_manifest("echo.json", &pod.to_string());
    node.run();
    let (stream, _) = node.first_list("debugEcho", "descriptions: [a]").await;
    replace(&module, &component_with("debug-echo-typed", "DEBUG_ECHO_DESCRIPTION", "DEBUG_ECHO_INSCRIPTION"));
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(restarts(&node.wait_for_running("echo")), 0);
    drop(stream);
    node.kill();
    node.run();
    let mut stream = node.first_list("debugEcho", "descriptions: [a]").await.0;
    drop(tokio::time::timeout(std::time::Duration::from_millis(200), stream.message()).await);
    let mut stream = node.discover("debugEcho", "descriptions: [b]").await.unwrap();
    wait_for_property(&mut stream, "DEBUG_ECHO_INSCRIPTION").await;
}
