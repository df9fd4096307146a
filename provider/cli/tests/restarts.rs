//! The node's end and its next start.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]
mod fixture;

use akri_krustlet_discovery::agent::RegistrationSocket;
use fixture::{DEADLINE, HandlerPod, Node, Random, seed, serves, wait_for};
use std::time::Duration;

const FOO: &str = r#"{"descriptions":["foo0","foo1"]}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_comes_back_with_the_same_list_and_registers_once() {
    let mut node = Node::prepare();
    std::fs::create_dir_all(node.path("akri")).unwrap();
    let mut agent = RegistrationSocket::serve(&node.path("akri")).unwrap();
    node.add(&HandlerPod::new("witness", "debugEcho", "debug-echo"));
    node.run();
    for restart in 0..4 {
        let registered = tokio::time::timeout(DEADLINE, agent.next()).await.unwrap().unwrap();
        assert_eq!(registered.name, "debugEcho");
        let (mut stream, ids) = node.first_list("debugEcho", FOO).await;
        assert_eq!(ids, ["foo0", "foo1"]);
        let pod = node.wait_for_running("witness");
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], restart);
        assert_eq!(agent.try_next(), None, "registered once in each life of the node");
        node.kill();
        while let Ok(Some(_)) = stream.message().await {}
        node.run();
    }
    assert_eq!(node.log().matches("compiling the module").count(), 1, "only the first start compiles");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_open_when_the_node_ended_begins_with_its_last_list() {
    let mut node = Node::prepare();
    std::fs::create_dir_all(node.path("akri")).unwrap();
    let mut agent = RegistrationSocket::serve(&node.path("akri")).unwrap();
    node.add(&HandlerPod::new("witness", "debugEcho", "debug-echo"));
    node.run();
    tokio::time::timeout(DEADLINE, agent.next()).await.unwrap().unwrap();
    let (stream, _) = node.first_list("debugEcho", FOO).await;
    node.kill();
    drop(stream);
    // The handler that comes now never finds anything.
    node.add(&HandlerPod { handler: "debugEcho", ..HandlerPod::fault("witness", "sleep") });
    node.run();
    tokio::time::timeout(DEADLINE, agent.next()).await.unwrap().unwrap();
    let (stream, ids) = node.first_list("debugEcho", FOO).await;
    assert_eq!(ids, ["foo0", "foo1"]);
    drop(stream);
    // In the life of a node what the guest says counts, and another request was never answered.
    for details in [FOO, r#"{"descriptions":["foo0"]}"#] {
        let mut stream = node.discover("debugEcho", details).await.unwrap();
        let silence = std::time::Duration::from_millis(300);
        assert!(tokio::time::timeout(silence, stream.message()).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_is_not_run_again_and_what_ran_is_told_as_lost() {
    let mut node = Node::prepare();
    let job = |name, fault| {
        let mut pod = HandlerPod { handler: "", restart_policy: "Never", ..HandlerPod::fault(name, fault) };
        pod.env.push(("FAULT_AT", "start"));
        pod
    };
    node.add(&job("done", "exit0"));
    node.add(&job("broken", "exit3"));
    // Waits for a request for ever.
    node.add(&HandlerPod { handler: "", restart_policy: "Never", ..HandlerPod::fault("unfinished", "none") });
    node.run();
    node.wait_for_pod("done", "done", |pod| pod["status"]["phase"] == "Succeeded");
    node.wait_for_pod("broken", "failed", |pod| pod["status"]["phase"] == "Failed");
    node.wait_for_running("unfinished");
    let finished = |node: &Node, name| {
        node.pod(name).unwrap()["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"].clone()
    };
    let before = (finished(&node, "done"), finished(&node, "broken"));
    node.kill();
    node.run();
    let pod = node.wait_for_pod("unfinished", "failed", |pod| pod["status"]["phase"] == "Failed");
    let state = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&state["exitCode"], &state["reason"]), (&255.into(), &"Unknown".into()));
    assert_eq!((finished(&node, "done"), finished(&node, "broken")), before);
    assert_eq!(node.pod("done").unwrap()["status"]["phase"], "Succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_broken_when_the_node_starts_costs_its_pod_nothing() {
    let mut node = Node::prepare();
    let mut pod = HandlerPod { handler: "", restart_policy: "Never", ..HandlerPod::fault("done", "exit0") };
    pod.env.push(("FAULT_AT", "start"));
    node.add(&pod);
    node.run();
    let finished =
        |pod: &serde_json::Value| pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"].clone();
    let before = node.wait_for_pod("done", "done", |pod| pod["status"]["phase"] == "Succeeded");
    node.kill();
    let path = node.path("manifests/done.json");
    let manifest = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &manifest[..manifest.len() - 2]).unwrap();
    node.run();
    node.wait_for_log("the pod's manifest cannot be read");
    node.write_manifest("done.json", &manifest);
    node.add(&HandlerPod::new("witness", "debugEcho", "debug-echo"));
    node.wait_for_running("witness");
    let after = node.pod("done").unwrap();
    assert_eq!((&after["status"]["phase"], finished(&after)), (&"Succeeded".into(), finished(&before)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_ends_on_sigterm_with_its_state_on_disk() {
    let mut node = Node::start();
    for name in ["spin0", "spin1", "spin2"] {
        let mut pod = HandlerPod { handler: "", ..HandlerPod::fault(name, "spin") };
        pod.env.push(("FAULT_AT", "start"));
        node.add(&pod);
        node.wait_for_running(name);
    }
    let (mut stream, _) = node.first_list("debugEcho", FOO).await;
    assert_eq!(node.terminate(), Some(0));
    // The stream broke off; it did not end with an empty list, which would cost the Agent its Instances.
    let end = loop {
        match stream.message().await {
            Ok(Some(list)) => assert_eq!(list.devices.len(), 2),
            end => break end,
        }
    };
    assert!(end.is_err(), "{end:?}");
    assert!(!node.socket("debugEcho").exists());
    assert_eq!(node.pod("witness").unwrap()["status"]["phase"], "Running");
    let listing = node.command(&["pods"]);
    assert!(String::from_utf8_lossy(&listing.stdout).contains("The node is not running"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_follow_their_manifests() {
    let mut node = Node::start();
    node.wait_for_running("witness");
    let uid = |node: &Node| node.pod("witness").map(|pod| pod["metadata"]["uid"].clone());
    let old = uid(&node);
    let (mut stream, _) = node.first_list("debugEcho", FOO).await;
    let mut changed = HandlerPod::new("witness", "debugEcho", "debug-echo");
    changed.env.push(("CHANGED", "1"));
    node.add(&changed);
    assert!(wait_for(|| uid(&node).is_some_and(|uid| Some(uid) != old)));
    node.wait_for_running("witness");
    node.assert_undisturbed().await;
    // The stream went over to the new pod.
    std::fs::write(node.exchange_file("witness", "debug-echo-availability.txt"), "OFFLINE").unwrap();
    fixture::wait_for_ids(&mut stream, &[]).await;
    // A pod that was removed while the node was down leaves nothing behind.
    node.kill();
    node.remove_manifest("witness.json");
    node.run();
    assert!(wait_for(|| std::fs::read_dir(node.path("data/pods")).unwrap().count() == 0));
    assert!(wait_for(|| std::fs::read_dir(node.path("data/logs")).unwrap().count() == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_keeps_failing_is_restarted_with_back_off() {
    let node = Node::start();
    let mut pod = HandlerPod { handler: "", ..HandlerPod::fault("failing", "exit3") };
    pod.env.push(("FAULT_AT", "start"));
    node.add(&pod);
    let pod = node.wait_for_pod("failing", "backing off", |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(status["restartCount"], 1, "the first restart is immediate, the second waits");
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 3);
    assert!(status["state"]["waiting"]["message"].as_str().unwrap().contains("back-off 10s"), "{status:#}");
    assert_eq!(pod["status"]["phase"], "Running");
    let previous = node.command(&["logs", "failing", "--previous"]);
    assert_eq!(String::from_utf8_lossy(&previous.stdout), "misbehave: exit3\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_run_first_and_in_order() {
    let mut node = Node::start();
    let image = format!("fs://{}", fixture::guest("misbehave").display());
    let step = |name: &str, fault: &str| {
        serde_json::json!({"name": name, "image": image, "env": [
            {"name": "FAULT", "value": fault}, {"name": "FAULT_AT", "value": "start"}]})
    };
    let pod = |name: &str, second: &str| {
        serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "restartPolicy": "Never",
            "initContainers": [step("first", "exit0"), step("second", second)],
            "containers": [step("main", "exit0")]}})
        .to_string()
    };
    node.write_manifest("good.json", &pod("good", "exit0"));
    node.write_manifest("bad.json", &pod("bad", "exit3"));
    let good = node.wait_for_pod("good", "done", |pod| pod["status"]["phase"] == "Succeeded");
    assert_eq!(good["status"]["initContainerStatuses"][1]["state"]["terminated"]["exitCode"], 0);
    let bad = node.wait_for_pod("bad", "failed", |pod| pod["status"]["phase"] == "Failed");
    assert!(bad["status"]["containerStatuses"][0]["state"]["waiting"].is_object(), "main was never started");
    assert_eq!(fixture::condition(&bad, "Initialized"), Some(false));
    node.assert_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_with_a_standard_input_sees_its_end_when_the_node_ends() {
    let mut node = Node::prepare();
    let mut pod = HandlerPod { handler: "", restart_policy: "OnFailure", ..HandlerPod::fault("polite", "read-input") };
    pod.env.push(("FAULT_AT", "start"));
    let mut manifest: serde_json::Value = serde_json::from_str(&pod.manifest()).unwrap();
    manifest["spec"]["containers"][0]["stdin"] = true.into();
    node.write_manifest("polite.json", &manifest.to_string());
    node.run();
    node.wait_for_running("polite");
    assert_eq!(node.terminate(), Some(0));
    let log = node.log_of("polite");
    assert!(log.contains("input ended"), "{log}");
    // It ended because the node did: that is no end of the pod's, and the next start runs it again.
    node.run();
    let again = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0]["restartCount"] == 1;
    node.wait_for_pod("polite", "running again", again);
    assert_eq!(node.wait_for_running("polite")["status"]["phase"], "Running");
}

/// A manifest may be away for a moment only, as some editors and `git checkout` do it.
#[test]
fn a_pod_whose_manifest_was_away_for_a_moment_runs() {
    let node = Node::start();
    let pod = HandlerPod::new("back", "back", "debug-echo");
    let mut random = Random(seed());
    for turn in 0..40 {
        node.add(&pod);
        node.wait_for_running("back");
        node.remove_manifest("back.json");
        // The node has noticed, and has not done all that follows from it; or it has not.
        std::thread::sleep(Duration::from_micros(random.below(20_000)));
        node.add(&pod);
        // Manifests are taken in the order in which they come.
        let other = format!("other-{turn}");
        node.add(&HandlerPod::new(&other, &other, "debug-echo"));
        node.wait_for_running(&other);
        node.remove_manifest(&format!("{other}.json"));
        assert!(wait_for(|| node.pod(&other).is_none()), "{}", node.log());
    }
    node.wait_for_running("back");
    assert!(wait_for(|| serves(&node.socket("back"))), "{}", node.log());
}

/// A node that is killed while it takes up a pod leaves a directory without the pod, which may be gone when the node is back.
#[test]
fn what_is_left_of_a_pod_that_was_not_remembered_yet_is_removed() {
    let mut node = Node::prepare();
    node.add(&HandlerPod::new("witness", "debugEcho", "debug-echo"));
    let left = ["0a1b2c", "3d4e5f"].map(|uid| node.path("data/pods").join(uid));
    for directory in &left {
        std::fs::create_dir_all(directory.join("volumes/v")).unwrap();
        std::fs::write(directory.join("pod.json.0.new"), "{").unwrap();
    }
    node.run();
    node.wait_for_running("witness");
    assert!(wait_for(|| left.iter().all(|directory| !directory.exists())), "{}", node.log());
    let entries = std::fs::read_dir(node.path("data/pods")).unwrap().count();
    assert_eq!(entries, 1, "that of the pod that runs");
}
