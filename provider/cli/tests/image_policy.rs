//! Images that a node's operator wants signed, or named by digest. Signatures are made as cosign makes them, and by cosign itself if
//! `COSIGN` names it (version 3).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fixture::registry::{Access, Registry, WASM_CONFIG};
use fixture::{HandlerPod, Node, PROGRAM, component, wait_for};
use oci_client::client::{Client, ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::secrets::RegistryAuth;
use rcgen::{KeyPair, SigningKey as _};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// An image of a component in a registry: its name, and its digest.
async fn pushed(registry: &Registry, name: &str) -> (String, String) {
    let image = registry.push_module(name, &std::fs::read(component("debug-echo-typed")).unwrap()).await;
    let output = fixture::output(Command::new(PROGRAM).args(["inspect", "-o", "json", &image]));
    let inspected: Value = serde_json::from_slice(&output.stdout).unwrap();
    let id = inspected["image"].as_str().unwrap().to_owned();
    (image, id.split_once('@').unwrap().1.to_owned())
}

/// Signs what `says` as cosign does it, and puts it where an image of this digest has its signatures.
async fn sign(registry: &Registry, repository: &str, digest: &str, key: &KeyPair, says: &str) {
    let payload = json!({
        "critical": {
            "identity": {"docker-reference": format!("{}/{repository}", registry.address)},
            "image": {"docker-manifest-digest": says},
            "type": "cosign container image signature",
        },
        "optional": null,
    })
    .to_string();
    let signature = STANDARD.encode(key.sign(payload.as_bytes()).unwrap());
    let annotations = BTreeMap::from([("dev.cosignproject.cosign/signature".to_owned(), signature)]);
    let kind = "application/vnd.dev.cosign.simplesigning.v1+json".to_owned();
    let layer = ImageLayer::new(payload.into_bytes(), kind, Some(annotations));
    let tag = format!("{}.sig", digest.replace(':', "-"));
    let reference = format!("{}/{repository}:{tag}", registry.address).parse().unwrap();
    let protocol = ClientProtocol::HttpsExcept(vec![registry.address.clone()]);
    let client = Client::new(ClientConfig { protocol, ..ClientConfig::default() });
    let config = Config::new(b"{}".to_vec(), WASM_CONFIG.to_owned(), None);
    client.push(&reference, &[layer], config, &RegistryAuth::Anonymous, None).await.unwrap();
}

fn handler(name: &'static str, image: &str, pull_policy: &str) -> String {
    let mut pod: Value = serde_json::from_str(&HandlerPod::typed(name, name, "debug-echo-typed").manifest()).unwrap();
    pod["spec"]["containers"][0]["image"] = json!(image);
    pod["spec"]["containers"][0]["imagePullPolicy"] = json!(pull_policy);
    pod.to_string()
}

fn waiting(node: &Node, pod: &str) -> String {
    let pod = node.pod(pod);
    pod.map(|pod| pod["status"]["containerStatuses"][0]["state"]["waiting"].to_string()).unwrap_or_default()
}

fn wait_for_refusal(node: &Node, pod: &str, message: &str) {
    let is_refused = || {
        let waiting = waiting(node, pod);
        waiting.contains("SignatureValidationFailed") && waiting.contains(message)
    };
    assert!(wait_for(is_refused), "{pod}: {message}: {}\n{}", waiting(node, pod), node.log());
}

fn policy(directory: &Path, registry: &Registry, key: &str) {
    let address = &registry.address;
    let text = format!(
        "images:\n- names: {address}/open/*\n  anything: true\n- names: {address}/pinned/*\n  digest: true\n- names: {address}/signed/*\n  keys: [{key}]\n"
    );
    std::fs::write(directory.join("policy.new"), text).unwrap();
    std::fs::rename(directory.join("policy.new"), directory.join("policy.yaml")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_images_that_the_operator_trusts_are_run() {
    if fixture::cluster::is_skipped() {
        return;
    }
    let registry = Registry::start(Access::Public);
    let mut node = Node::prepare();
    let (ours, theirs) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    for (name, key) in [("ours.pub", &ours), ("theirs.pub", &theirs)] {
        std::fs::write(node.path(name), key.public_key_pem()).unwrap();
    }
    policy(node.directory.path(), &registry, "ours.pub");
    node.environment.push(("KRUSTLET_IMAGE_POLICY", node.path("policy.yaml")));
    let (open, _) = pushed(&registry, "open/echo:v1").await;
    let (pinned, pinned_digest) = pushed(&registry, "pinned/echo:v1").await;
    let (signed, digest) = pushed(&registry, "signed/echo:v1").await;
    let (unnamed, _) = pushed(&registry, "elsewhere/echo:v1").await;
    let by_digest = format!("{}@{pinned_digest}", pinned.trim_end_matches(":v1"));
    for (name, image) in [
        ("open", open.as_str()),
        ("pinned", &pinned),
        ("by-digest", &by_digest),
        ("signed", &signed),
        ("unnamed", &unnamed),
    ] {
        node.write_manifest(&format!("{name}.json"), &handler(name, image, "IfNotPresent"));
    }
    node.run();
    for name in ["open", "by-digest"] {
        node.wait_for_socket(name);
    }
    wait_for_refusal(&node, "unnamed", "names no such image");
    wait_for_refusal(&node, "pinned", "by digest: name the image REPOSITORY@sha256:...");
    wait_for_refusal(&node, "signed", &format!("signed by ours.pub, and {digest} has no signature"));
    // Somebody else's, and one of another image.
    sign(&registry, "signed/echo", &digest, &theirs, &digest).await;
    wait_for_refusal(&node, "signed", "made by another key");
    sign(&registry, "signed/echo", &digest, &ours, &format!("sha256:{}", "0".repeat(64))).await;
    wait_for_refusal(&node, "signed", "made by ours.pub, of another image");
    sign(&registry, "signed/echo", &digest, &ours, &digest).await;
    node.wait_for_socket("signed");

    // What was found is remembered, whether the registry is there or not.
    drop(registry);
    node.kill();
    node.run();
    for name in ["open", "by-digest", "signed"] {
        node.wait_for_socket(name);
    }
    assert!(node.log().contains("signed by ours.pub"), "a refusal is in the node's log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_changes_counts_for_the_pods_that_come_and_a_wrong_one_for_none() {
    if fixture::cluster::is_skipped() {
        return;
    }
    let registry = Registry::start(Access::Public);
    let mut node = Node::prepare();
    let (ours, theirs) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    for (name, key) in [("ours.pub", &ours), ("theirs.pub", &theirs)] {
        std::fs::write(node.path(name), key.public_key_pem()).unwrap();
    }
    policy(node.directory.path(), &registry, "ours.pub");
    let file = node.path("policy.yaml");
    let refused = |text: &str| {
        std::fs::write(node.path("wrong.yaml"), text).unwrap();
        let wrong = node.path("wrong.yaml").display().to_string();
        let output = node.command(&["run", "--manifests", "/nonexistent", "--image-policy", &wrong]);
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let error = refused("images:\n- names: registry.example/*\n");
    assert!(error.contains("--image-policy") && error.contains("entry 1: it asks for nothing"), "{error}");
    let error = refused("images:\n- names: registry.example/*\n  keys: [policy.yaml]\n");
    assert!(error.contains("it has no public key"), "{error}");

    node.environment.push(("KRUSTLET_IMAGE_POLICY", file.clone()));
    let (image, digest) = pushed(&registry, "signed/echo:v1").await;
    sign(&registry, "signed/echo", &digest, &ours, &digest).await;
    node.write_manifest("first.json", &handler("first", &image, "IfNotPresent"));
    node.run();
    node.wait_for_socket("first");
    // An edit that went wrong: the rules from before count on.
    std::fs::write(&file, "images: [").unwrap();
    node.write_manifest("second.json", &handler("second", &image, "Always"));
    node.wait_for_socket("second");
    node.wait_for_log("the image policy cannot be read again");
    policy(node.directory.path(), &registry, "theirs.pub");
    node.write_manifest("third.json", &handler("third", &image, "IfNotPresent"));
    wait_for_refusal(&node, "third", "signed by theirs.pub");
    // Nobody may ask for its signature.
    node.write_manifest("fourth.json", &handler("fourth", &image, "Never"));
    let never = "was pulled before the node's image policy asked for its signature";
    assert!(wait_for(|| waiting(&node, "fourth").contains(never)), "{}", waiting(&node, "fourth"));
    sign(&registry, "signed/echo", &digest, &theirs, &digest).await;
    node.wait_for_socket("third");
}

/// Signatures of cosign itself, in both places where it puts them.
#[tokio::test(flavor = "multi_thread")]
async fn what_cosign_has_signed_is_pulled() {
    let Some(cosign) = std::env::var_os("COSIGN") else {
        println!("skipped: COSIGN does not name the program");
        return;
    };
    if fixture::cluster::is_skipped() {
        return;
    }
    let registry = Registry::start(Access::Public);
    let directory = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&cosign);
        command.args(arguments).current_dir(directory.path()).env("COSIGN_PASSWORD", "");
        let output = fixture::output(&mut command);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run(&["generate-key-pair"]);
    policy(directory.path(), &registry, "cosign.pub");
    let pull = |image: &str| {
        let mut command = Command::new(PROGRAM);
        let file = directory.path().join("pulled.wasm");
        command.args(["pull", image, "--force", "--image-policy", "policy.yaml"]).arg(file);
        let output = fixture::output(command.current_dir(directory.path()));
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    for (name, new_bundle) in [("signed/old", "false"), ("signed/new", "true")] {
        let (image, digest) = pushed(&registry, &format!("{name}:v1")).await;
        let (pulled, error) = pull(&image);
        assert!(!pulled && error.contains("has no signature"), "{error}");
        let by_digest = format!("{}/{name}@{digest}", registry.address);
        let common =
            ["--key", "cosign.key", "--tlog-upload=false", "--use-signing-config=false", "--allow-http-registry", "-y"];
        if name == "signed/new" {
            std::fs::write(directory.path().join("predicate.json"), "{}").unwrap();
            run(&[
                &["attest", "--type", "custom", "--predicate", "predicate.json"],
                &common[..],
                &[by_digest.as_str()],
            ]
            .concat());
            let (pulled, error) = pull(&image);
            assert!(!pulled && error.contains("not a signature of an image"), "{error}");
        }
        let format = format!("--new-bundle-format={new_bundle}");
        run(&[&["sign", &format], &common[..], &[by_digest.as_str()]].concat());
        let (pulled, error) = pull(&image);
        assert!(pulled, "{error}");
    }
}
