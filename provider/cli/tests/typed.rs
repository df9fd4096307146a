//! Discovery handlers that are components: the typed contract, and what a hostile one can do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::{HandlerPod, Node, condition, next_ids, wait_for, wait_for_ids};
use tonic::Code;

/// A node with healthy handlers of both contracts, and one for each of these faults.
fn node(faults: &[&str]) -> Node {
    let node = Node::start();
    node.add(&HandlerPod::typed("typed", "typedEcho", "debug-echo-typed"));
    for fault in faults {
        let mut faulty = HandlerPod::typed(fault, fault, "typed-misbehave");
        faulty.annotations.push(("akri-krustlet/step-deadline", "2s"));
        faulty.limits = if *fault == "memory" { r#"{"memory": "16Mi"}"# } else { r#"{"memory": "96Mi"}"# };
        node.add(&faulty);
    }
    for name in faults.iter().chain(&["typed"]) {
        node.wait_for_running(name);
    }
    node
}

/// The handler of a fault is asked for it.
fn details(fault: &str) -> String {
    format!("fault: {fault}")
}

async fn assert_undisturbed(node: &mut Node) {
    node.assert_undisturbed().await;
    let (_, ids) = node.first_list("typedEcho", r#"{"descriptions":["typed-witness"]}"#).await;
    assert_eq!(ids, ["typed-witness"]);
}

/// What a pod's condition says of its handler.
fn complaint(node: &Node, pod: &str) -> String {
    let pod = node.pod(pod).unwrap();
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    let of_discovery = conditions.iter().find(|condition| condition["type"] == "DiscoveryHealthy");
    of_discovery.and_then(|condition| condition["message"].as_str()).unwrap_or_default().to_owned()
}

fn wait_for_complaint(node: &Node, pod: &str, text: &str) {
    let says = || complaint(node, pod);
    assert!(wait_for(|| says().contains(text)), "{pod}: {text:?}: {:?}; log:\n{}", says(), node.log());
}

fn wait_for_health(node: &Node, pod: &str) {
    assert!(wait_for(|| complaint(node, pod).is_empty()), "{pod}: {}", complaint(node, pod));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_answers_by_its_contract() {
    let mut node = node(&[]);
    let (mut stream, ids) = node.first_list("typedEcho", "descriptions: [b, a, 0012345]").await;
    assert_eq!(ids, ["0012345", "a", "b"]);
    let status = node.discover("typedEcho", "{}").await.unwrap_err();
    assert_eq!((status.code(), status.message().contains("descriptions")), (Code::InvalidArgument, true), "{status:?}");
    // Its pod is a pod like others.
    let pod = node.pod("typed").unwrap();
    assert_eq!((condition(&pod, "Ready"), condition(&pod, "DiscoveryHealthy")), (Some(true), Some(true)));
    let log = node.log_of("typed");
    assert!(log.contains("INFO debugEcho: 3 devices"), "{log}");
    // A restart of the node costs no device.
    node.kill();
    assert!(wait_for_end(&mut stream).await, "the stream of the killed node ends");
    node.run();
    let again = node.first_list("typedEcho", "descriptions: [b, a, 0012345]").await.1;
    assert_eq!(again, ["0012345", "a", "b"]);
    assert_undisturbed(&mut node).await;
}

async fn wait_for_end(stream: &mut tonic::Streaming<akri_proto::v0::DiscoverResponse>) -> bool {
    while let Ok(Some(_)) = stream.message().await {}
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_come_when_they_were_asked_for_and_not_faster() {
    let mut node = node(&["count", "steps"]);
    let (mut stream, first) = node.first_list("count", &details("count")).await;
    assert_eq!(first, ["step-0"]);
    let mut last = 0;
    // Lists that change all the time are sent now and then, the newest each.
    while last < 3 {
        let ids = next_ids(&mut stream).await;
        let number: u32 = ids[0].strip_prefix("step-").unwrap().parse().unwrap();
        assert!(number >= last, "{number} after {last}");
        last = number;
    }
    let before = std::time::Instant::now();
    let (_stream, _) = node.first_list("steps", &details("steps")).await;
    let steps = || {
        let log = node.log_of("steps");
        log.lines().filter(|line| line.contains("INFO step ")).count()
    };
    assert!(wait_for(|| steps() > 10));
    let counted = steps();
    let tenths = before.elapsed().as_millis() / 100;
    assert!(counted as u128 <= tenths + 1, "{counted} steps in {tenths} tenths of a second");
    assert_undisturbed(&mut node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_before_the_first_list_is_told_to_who_asked() {
    let faults = [
        ("trap", "trapped"),
        ("trap-in-open", "trapped"),
        ("exit", "exited with code"),
        ("unavailable-in-open", "the network is away"),
        ("loop", "took longer than 2 s"),
        ("loop-in-open", "took longer than 2 s"),
        ("many-devices", "trapped"),
        ("long-string", "trapped"),
        ("long-id", "its id has 2000 bytes"),
        ("large-list", "bytes, 3145728 at most are taken"),
        ("bad-then-quiet", "cannot be an environment variable"),
        ("bad-name", "cannot be an environment variable"),
        ("host-path", "/dev/mem"),
        ("memory", "no memory for the guest"),
    ];
    let mut names: Vec<_> = faults.iter().map(|(name, _)| *name).collect();
    names.push("invalid");
    let mut node = node(&names);
    let status = node.discover("invalid", &details("invalid")).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "as asked: invalid"));
    for (name, told) in faults {
        // Headers come, and the stream stays: whoever asks again at once would only do harm.
        let stream = match node.discover(name, &details(name)).await {
            Ok(stream) => stream,
            Err(status) => {
                assert_eq!((name, status.code()), ("memory", Code::ResourceExhausted), "{status:?}");
                continue;
            }
        };
        wait_for_complaint(&node, name, told);
        drop(stream);
        wait_for_health(&node, name);
        assert_undisturbed(&mut node).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_after_the_first_list_changes_nothing_for_the_client() {
    let faults = [
        ("trap-later", "trapped"),
        ("loop-later", "took longer than 2 s"),
        ("invalid-later", "now calls its discovery details invalid: as asked: late"),
        ("unavailable-later", "the network is away"),
        ("internal-later", "the handler has a fault: a bug"),
        ("note-later", "one camera wants a password"),
    ];
    let mut names: Vec<_> = faults.iter().map(|(name, _)| *name).collect();
    names.extend(["healed", "duplicates"]);
    let mut node = node(&names);
    for (name, told) in faults {
        let (mut stream, ids) = node.first_list(name, &details(name)).await;
        assert_eq!(ids, ["first"], "{name}");
        wait_for_complaint(&node, name, told);
        // What comes, if anything, is the same list.
        if let Ok(list) = tokio::time::timeout(std::time::Duration::from_millis(300), next_ids(&mut stream)).await {
            assert_eq!(list, ["first"], "{name}");
        }
        drop(stream);
        wait_for_health(&node, name);
    }
    let (mut stream, _) = node.first_list("healed", &details("healed")).await;
    wait_for_ids(&mut stream, &["first", "second"]).await;
    wait_for_health(&node, "healed");
    let (_stream, ids) = node.first_list("duplicates", &details("duplicates")).await;
    assert_eq!(ids, ["a"]);
    wait_for_complaint(&node, "duplicates", "1 device(s) with an empty id");
    assert_undisturbed(&mut node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_has_neither_network_nor_files_and_its_log_is_bounded() {
    let mut node = node(&["network", "files", "sockets", "flood-log"]);
    let (_stream, ids) = node.first_list("network", &details("network")).await;
    assert_eq!(ids, ["refused refused refused"]);
    let (_stream, ids) = node.first_list("files", &details("files")).await;
    assert_eq!(ids, ["[false, false, false, false]"]);
    let (_stream, ids) = node.first_list("sockets", &details("sockets")).await;
    assert_eq!(ids, ["first"], "sockets that are refused leave nothing behind");
    let stream = node.discover("flood-log", &details("flood-log")).await.unwrap();
    wait_for_complaint(&node, "flood-log", "took longer than 2 s");
    drop(stream);
    assert_undisturbed(&mut node).await;
}

#[test]
fn what_cannot_be_a_typed_handler_is_refused_in_words() {
    let node = Node::prepare();
    let mut node = node;
    let empty = node.path("empty.wasm");
    std::fs::write(&empty, b"\0asm\x0d\0\x01\0").unwrap();
    node.add(&HandlerPod {
        image: format!("fs://{}", empty.display()),
        ..HandlerPod::typed("empty", "empty", "debug-echo-typed")
    });
    let mut deadline = HandlerPod::typed("deadline", "deadline", "debug-echo-typed");
    deadline.annotations.push(("akri-krustlet/step-deadline", "soon"));
    node.add(&deadline);
    node.run();
    for (pod, message) in [
        ("empty", "it exports nothing; a component is a discovery handler by exporting akri:discovery/handler@0.1.0"),
        ("deadline", "expected whole seconds"),
    ] {
        node.wait_for_pod(pod, message, |pod| pod["status"].to_string().contains(message));
    }
}

/// A pod with a component that is made of typed-misbehave by putting one text in another's place.
fn altered<'a>(node: &Node, name: &'a str, old: &str, new: &str) -> HandlerPod<'a> {
    let path = node.path(&format!("{name}.wasm"));
    std::fs::write(&path, fixture::component_with("typed-misbehave", old, new)).unwrap();
    HandlerPod { image: format!("fs://{}", path.display()), ..HandlerPod::typed(name, "", "typed-misbehave") }
}

#[test]
fn what_an_image_says_of_itself_is_checked_before_it_serves() {
    let mut node = Node::start();
    let as_described = "describes itself well";
    for (word, message) in [
        ("trap", "describe trapped: "),
        ("exit", "describe exited with code 1"),
        ("loop", "describe took longer than 10 s"),
        ("name", "describe: DISCOVERY_HANDLER_NAME=\\\"a/b\\\": a discovery handler's name"),
        ("json", "describe: the details schema is no JSON"),
        ("type", "the details schema is no JSON Schema (2020-12): at \\\"/type\\\""),
        ("self", "the details schema is nested more than 64 deep, or refers to itself"),
    ] {
        node.add(&altered(&node, word, as_described, &as_described.replace("well", word)));
        node.wait_for_pod(word, message, |pod| pod["status"].to_string().contains(message));
        node.remove_manifest(&format!("{word}.json"));
    }
    for (name, old, new, message) in [
        (
            "export",
            "akri:discovery/handler@0.1.0",
            "akri:discovery/handler@0.9.0",
            "it exports akri:discovery/handler@0.9.0, the node knows",
        ),
        (
            "import",
            "akri:host/log@0.1.0",
            "akri:host/log@0.9.0",
            "imports akri:host/log@0.9.0; the node has version 0.1.0",
        ),
        (
            "unknown",
            "akri:host/log@0.1.0",
            "akri:host/lag@0.1.0",
            "imports akri:host/lag@0.1.0, which the node does not have",
        ),
    ] {
        node.add(&altered(&node, name, old, new));
        node.wait_for_pod(name, message, |pod| pod["status"].to_string().contains(message));
    }
    assert!(node.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_says_its_name_and_what_its_details_are() {
    let mut node = Node::start();
    // Without a name in its environment it has the one that it says; a description sees no network either.
    let as_described = "describes itself well";
    node.add(&altered(&node, "rule", as_described, &as_described.replace("well", "rule")));
    node.add(&altered(&node, "sock", as_described, &as_described.replace("well", "sock")));
    node.wait_for_running("rule");
    node.wait_for_socket("misbehave");
    node.wait_for_socket("no-network");
    let status = node.discover("misbehave", "fault: trap").await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status.message().contains("at /fault: ") && status.message().contains("/properties/fault/enum"),
        "{status:?}"
    );
    let (_stream, first) = node.first_list("misbehave", &details("count")).await;
    assert_eq!(first, ["step-0"]);
    // The environment counts before it.
    let named = HandlerPod {
        image: format!("fs://{}", node.path("rule.wasm").display()),
        ..HandlerPod::typed("named", "named", "typed-misbehave")
    };
    node.add(&named);
    node.wait_for_socket("named");
    // Details that are longer than those which are checked at once.
    let long = format!("fault: count\nmore: {}\n", "x".repeat(10_000));
    assert_eq!(node.first_list("named", &long).await.1, ["step-0"]);
    let status = node.discover("named", &format!("more: {}\nfault: 7\n", "x".repeat(10_000))).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    node.assert_undisturbed().await;
}

#[test]
fn describe_prints_what_a_handler_says_and_needs() {
    let node = Node::prepare();
    let component = fixture::component("debug-echo-typed");
    let text = node.command(&["describe", component.to_str().unwrap()]);
    let text = String::from_utf8(text.stdout).unwrap();
    for part in ["name          debugEcho", "shared        true", "akri:host/log@0.1.0", "\"descriptions\""] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json = node.command(&["describe", "--output", "json", component.to_str().unwrap()]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["handler"]["name"], "debugEcho");
    assert_eq!(json["handler"]["detailsSchema"]["required"], serde_json::json!(["descriptions"]));
    assert_eq!((&json["kind"], &json["grants"]), (&serde_json::json!("component"), &serde_json::json!([])));
}
