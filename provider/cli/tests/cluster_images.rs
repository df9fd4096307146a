//! Images from registries, real and faulty, as pods of a real cluster.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use akri_krustlet_discovery::agent;
use akri_proto::v0::DiscoverRequest;
use fixture::cluster::{Cluster, ClusterNode, Namespace, cluster};
use fixture::registry::{Access, FaultyRegistry, Registry, USER, gzip, tar};
use fixture::{guest, next_ids, wait_for};
use futures::FutureExt as _;
use serde_json::{Value, json};

fn module() -> Vec<u8> {
    std::fs::read(guest("misbehave")).unwrap()
}

fn pod(node: &ClusterNode, name: &str, image: &str) -> Value {
    let mut pod = node.fault_pod(name, "sleep");
    pod["spec"]["containers"][0]["image"] = json!(image);
    pod
}

fn waiting(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]["state"]["waiting"]
}

/// Waits until the pod says why its image cannot be had.
fn wait_for_message(namespace: &Namespace<'_>, node: &ClusterNode, name: &str, message: &str) -> Value {
    namespace.wait_for_pod(node, name, message, |pod| {
        waiting(pod)["message"].as_str().is_some_and(|text| text.contains(message))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_layout_of_an_image_runs_and_is_pulled_as_its_policy_says() {
    let Some(cluster) = cluster() else { return };
    let registry = Registry::start(Access::Public);
    let mut node = ClusterNode::prepare("layouts").with(&["--insecure-registries", &registry.address]);
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    let namespace = cluster.namespace("layouts");
    let module = module();
    let platform = br#"{"os":"wasip1","architecture":"wasm","config":{"Entrypoint":["/app.wasm"]}}"#;
    let image_config = "application/vnd.oci.image.config.v1+json";
    let gzipped = gzip(&tar("app.wasm", &module));
    let images = [
        ("artifact", registry.push_module("artifact:v1", &module).await),
        (
            "wasm-to-oci",
            registry
                .push(
                    "seed:v1",
                    (&module, "application/vnd.wasm.content.layer.v1+wasm"),
                    (b"{}", "application/vnd.wasm.config.v1+json"),
                )
                .await,
        ),
        (
            "archive",
            registry
                .push("archive:v1", (&gzipped, "application/vnd.oci.image.layer.v1.tar+gzip"), (platform, image_config))
                .await,
        ),
    ];
    for (name, image) in &images {
        namespace.apply(pod(&node, name, image));
        let pod = namespace.wait_until_ready(&node, name);
        let status = &pod["status"]["containerStatuses"][0];
        let id = status["imageID"].as_str().unwrap();
        assert!(id.starts_with(image.rsplit_once(':').unwrap().0) && id.contains("@sha256:"), "{id}");
        namespace.wait_for_event(&node, name, "Successfully pulled image");
    }
    // The node tells which images it has.
    let listed = || {
        let node = cluster.get("node", "", &node.name).unwrap_or_default();
        let images = node["status"]["images"].as_array().cloned().unwrap_or_default();
        images.iter().flat_map(|image| image["names"].as_array().cloned().unwrap_or_default()).collect::<Vec<_>>()
    };
    let all_are = || images.iter().all(|(_, image)| listed().contains(&json!(image)));
    assert!(wait_for(all_are), "{:?}", listed());
    // By digest, from the store.
    let id =
        namespace.pod("artifact").unwrap()["status"]["containerStatuses"][0]["imageID"].as_str().unwrap().to_owned();
    namespace.apply(pod(&node, "by-digest", &id));
    namespace.wait_until_ready(&node, "by-digest");
    namespace.apply(pod(&node, "again", &images[0].1));
    namespace.wait_until_ready(&node, "again");
    namespace.wait_for_event(&node, "again", "already present on machine");
    // Another image under the same tag is noticed by Always only.
    let other = std::fs::read(guest("debug-echo")).unwrap();
    registry.push_module("artifact:v1", &other).await;
    let with_policy = |name: &str, policy: &str, image: &str| {
        let mut pod = pod(&node, name, image);
        pod["spec"]["containers"][0]["imagePullPolicy"] = json!(policy);
        pod
    };
    namespace.apply(with_policy("always", "Always", &images[0].1));
    let pod = namespace.wait_until_ready(&node, "always");
    assert_ne!(pod["status"]["containerStatuses"][0]["imageID"], id);
    namespace.apply(with_policy("never", "Never", &format!("{}/artifact:v9", registry.address)));
    let refused = wait_for_message(&namespace, &node, "never", "imagePullPolicy Never");
    assert_eq!(waiting(&refused)["reason"], "ErrImageNeverPull");
    // Images for other machines, and what is no WebAssembly, are named.
    let linux = br#"{"os":"linux","architecture":"amd64","config":{}}"#;
    let linux = registry
        .push("linux:v1", (&gzipped, "application/vnd.oci.image.layer.v1.tar+gzip"), (linux, image_config))
        .await;
    let script = registry.push_module("script:v1", b"#!/bin/sh").await;
    for (name, image, message) in [
        ("linux", linux.as_str(), "it is for linux/amd64; this node runs WebAssembly"),
        ("script", &script, "its module is not WebAssembly"),
        ("missing", &format!("{}/artifact:v8", registry.address), "has no such image: check the name and the tag"),
    ] {
        namespace.apply(self::pod(&node, name, image));
        wait_for_message(&namespace, &node, name, message);
        namespace.wait_for_event(&node, name, "Failed Error: ErrImagePull");
    }
    namespace.wait_for_pod(&node, "missing", "backing off", |pod| waiting(pod)["reason"] == "ImagePullBackOff");
    namespace.wait_for_event(&node, "missing", "BackOff Back-off pulling image");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_changed_in_place_follows() {
    let Some(cluster) = cluster() else { return };
    let registry = Registry::start(Access::Public);
    let mut node = ClusterNode::prepare("in-place").with(&["--insecure-registries", &registry.address]);
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    let namespace = cluster.namespace("in-place");
    let first = registry.push_module("first:v1", &std::fs::read(guest("debug-echo")).unwrap()).await;
    let second = registry.push_module("second:v1", &std::fs::read(guest("polling-echo")).unwrap()).await;
    let missing = format!("{}/missing:v1", registry.address);
    let mut pod = node.handler_pod("changed", "changed");
    pod["spec"]["containers"][0]["image"] = json!(missing);
    namespace.apply(pod);
    namespace.wait_for_pod(&node, "changed", "backing off", |pod| waiting(pod)["reason"] == "ImagePullBackOff");
    let set_image = |image: &str| namespace.kubectl_ok(&["set", "image", "pod/changed", &format!("main={image}")]);
    let runs = |pod: &Value, image: &str| {
        let status = &pod["status"]["containerStatuses"][0];
        status["image"] == image && status["state"]["running"].is_object() && status["ready"] == true
    };
    set_image(&first);
    let pod = namespace.wait_for_pod(&node, "changed", "repaired", |pod| runs(pod, &first));
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    // Its stream goes over to the other image's guest.
    let request =
        DiscoverRequest { discovery_details: r#"{"descriptions":["foo0"]}"#.to_owned(), ..Default::default() };
    let mut stream = agent::discover(node.socket("changed"), request).await.unwrap();
    assert_eq!(next_ids(&mut stream).await, ["foo0"]);
    set_image(&second);
    let pod = namespace.wait_for_pod(&node, "changed", "upgraded", |pod| runs(pod, &second));
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(status["restartCount"], 1);
    assert!(status["imageID"].as_str().unwrap().contains("/second@sha256:"), "{status:#}");
    assert_eq!(pod["status"]["observedGeneration"], pod["metadata"]["generation"]);
    namespace.wait_for_event(&node, "changed", "Killing Container main definition changed, will be restarted");
    set_image(&missing);
    namespace.wait_for_pod(&node, "changed", "backing off", |pod| waiting(pod)["reason"] == "ImagePullBackOff");
    set_image(&first);
    let pod = namespace.wait_for_pod(&node, "changed", "repaired", |pod| runs(pod, &first));
    // What is no change for the container does not start it again.
    namespace.kubectl_ok(&["label", "pod/changed", "some=label"]);
    let debug =
        ["debug", "changed", "--image=registry.example/tools", "--profile=general", "--quiet", "--attach=false"];
    namespace.kubectl_ok(&debug);
    namespace.wait_for_event(&node, "changed", "FailedValidation an ephemeral container is not run");
    let ids = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(ids(&namespace.pod("changed").unwrap()), ids(&pod));
    while let Some(message) = stream.message().now_or_never() {
        assert_eq!(fixture::ids(message.unwrap().expect("the stream goes on")), ["foo0"]);
    }
    // The node's next life begins with the pod as it is now.
    let before = ids(&pod);
    node.kill();
    node.run(&cluster.bootstrap());
    namespace.wait_for_pod(&node, "changed", "taken up again", |pod| runs(pod, &first) && ids(pod) != before);
    namespace.kubectl_ok(&["patch", "pod", "changed", "-p", r#"{"spec":{"activeDeadlineSeconds":1}}"#]);
    let pod = namespace.wait_for_pod(&node, "changed", "overdue", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(pod["status"]["reason"], "DeadlineExceeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn unused_images_go_when_the_disk_is_nearly_full() {
    let Some(cluster) = cluster() else { return };
    let registry = Registry::start(Access::Public);
    // To this node, any disk is.
    let full = ["--image-gc-high-threshold", "0", "--image-gc-low-threshold", "0"];
    let at_once = ["--image-gc-minimum-age", "0", "--image-gc-period", "1", "--insecure-registries", &registry.address];
    let mut node = ClusterNode::prepare("nearly-full").with(&full).with(&at_once);
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    let namespace = cluster.namespace("nearly-full");
    let used = registry.push_module("used:v1", &module()).await;
    let unused = registry.push_module("unused:v1", &std::fs::read(guest("debug-echo")).unwrap()).await;
    for (name, image) in [("used", &used), ("unused", &unused)] {
        namespace.apply(pod(&node, name, image));
        namespace.wait_until_ready(&node, name);
    }
    let count = |directory: &str| std::fs::read_dir(node.path("data").join(directory)).unwrap().count();
    // A whole period and more with pods of both.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(count("images/images"), 2);
    let compiled = count("modules");
    namespace.kubectl_ok(&["delete", "pod", "unused", "--grace-period=0", "--force"]);
    let of_nodes = Namespace { cluster, name: "default".to_owned() };
    of_nodes.wait_for_event(&node, &node.name, "ImageGarbageCollection the disk is nearly full; removed 1 images");
    assert_eq!((count("images/images"), count("images/blobs/sha256")), (1, 1));
    assert!(count("modules") < compiled, "what was compiled of it goes too");
    namespace.apply(pod(&node, "again", &used));
    namespace.wait_until_ready(&node, "again");
    namespace.wait_for_event(&node, "again", "already present on machine");
    namespace.apply(pod(&node, "pulled-again", &unused));
    namespace.wait_until_ready(&node, "pulled-again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_image_needs_the_pods_secret_or_the_nodes_credentials() {
    let Some(cluster) = cluster() else { return };
    for (name, access) in [("password", Access::Password), ("token", Access::Token)] {
        let registry = Registry::start(access);
        private_images(cluster, &registry, name).await;
    }
}

async fn private_images(cluster: &Cluster, registry: &Registry, name: &str) {
    let mut node = ClusterNode::prepare(name).with(&["--insecure-registries", &registry.address]);
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    let namespace = cluster.namespace(name);
    let image = registry.push_module("private:v1", &module()).await;
    namespace.apply(pod(&node, "anonymous", &image));
    wait_for_message(&namespace, &node, "anonymous", "imagePullSecret");

    let (user, password) = USER;
    let server = format!("--docker-server={}", registry.address);
    let secret = |name: &str, user: &str, password: &str| {
        let (user, password) = (format!("--docker-username={user}"), format!("--docker-password={password}"));
        namespace.kubectl_ok(&["create", "secret", "docker-registry", name, &server, &user, &password]);
    };
    secret("good", user, password);
    secret("bad", user, "wrong-horse");
    let with_secrets = |name: &str, secrets: &[&str]| {
        let mut pod = pod(&node, name, &image);
        let secrets: Vec<_> = secrets.iter().map(|name| json!({ "name": name })).collect();
        pod["spec"]["imagePullSecrets"] = json!(secrets);
        pod
    };
    namespace.apply(with_secrets("bad-secret", &["bad"]));
    wait_for_message(&namespace, &node, "bad-secret", "refuses the credentials");
    // One that works is found among others, and one that is missing is told.
    namespace.apply(with_secrets("good-secret", &["absent", "bad", "good"]));
    namespace.wait_until_ready(&node, "good-secret");
    namespace.wait_for_event(&node, "good-secret", "FailedToRetrieveImagePullSecret imagePullSecret absent");
    // What others have pulled is not for all: each shows its right.
    let on_node = |name: &str, policy: &str, secrets: &[&str]| {
        let mut pod = with_secrets(name, secrets);
        pod["spec"]["containers"][0]["imagePullPolicy"] = json!(policy);
        pod
    };
    namespace.apply(on_node("no-right", "IfNotPresent", &[]));
    wait_for_message(&namespace, &node, "no-right", "imagePullSecret");
    namespace.apply(on_node("no-right-never", "Never", &["bad"]));
    wait_for_message(&namespace, &node, "no-right-never", "credentials that this pod does not have");
    namespace.apply(on_node("right-never", "Never", &["good"]));
    namespace.wait_until_ready(&node, "right-never");
    assert!(!node.log().contains("wrong-horse") && !node.log().contains(password), "no secret in the log");

    let auth = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("{user}:{password}"));
    let mut other = ClusterNode::prepare(&format!("{name}-node"));
    let file = other.path("credentials.json");
    std::fs::write(&file, json!({"auths": {registry.address.clone(): {"auth": auth}}}).to_string()).unwrap();
    other = other.with(&["--insecure-registries", &registry.address]);
    let mut other = other.with(&["--registry-credentials", &file.display().to_string()]);
    other.run(&cluster.bootstrap());
    other.wait_until_ready(cluster);
    namespace.apply(pod(&other, "nodes-credentials", &image));
    namespace.wait_until_ready(&other, "nodes-credentials");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_misbehaves_is_named_and_what_can_be_saved_is() {
    let Some(cluster) = cluster() else { return };
    let registry = FaultyRegistry::start(module(), None);
    let other_module = std::fs::read(guest("debug-echo")).unwrap();
    let elsewhere = FaultyRegistry::start(other_module.clone(), None);
    let secure = FaultyRegistry::start(other_module, Some(&elsewhere));
    let insecure = format!("{},{}", registry.address, secure.address);
    let mut node = ClusterNode::prepare("faulty").with(&["--insecure-registries", &insecure]);
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    let namespace = cluster.namespace("faulty");
    let failing = [
        ("forbidden", "refuses to serve this without credentials"),
        ("missing", "has no such image"),
        ("broken", "it answered 500"),
        ("other-content", "the image is damaged there or on the way"),
        ("always-broken-off", "the download"),
        ("huge", "its layer has 1073741824 bytes"),
    ];
    for (repository, _) in failing {
        namespace.apply(pod(&node, repository, &registry.image(repository)));
    }
    for (repository, message) in failing {
        wait_for_message(&namespace, &node, repository, message);
    }
    // 429 twice, then the image; a download that broke off goes on where it was.
    for repository in ["broken-off", "busy"] {
        namespace.apply(pod(&node, repository, &registry.image(repository)));
        namespace.wait_until_ready(&node, repository);
    }
    assert!(registry.seen("/v2/busy/manifests").len() >= 3);
    let ranges: Vec<_> = registry.seen("/v2/broken-off/blobs").into_iter().filter_map(|seen| seen.range).collect();
    assert_eq!(ranges.len(), 1, "{ranges:?}");
    assert!(ranges[0].starts_with("bytes=") && ranges[0] != "bytes=0-", "{ranges:?}");

    // A token for the registry does not go where the registry redirects to.
    namespace.kubectl_ok(&[
        "create",
        "secret",
        "docker-registry",
        "token",
        &format!("--docker-server={}", secure.address),
        "--docker-username=token-user",
        "--docker-password=secret",
    ]);
    let mut redirected = pod(&node, "redirect", &secure.image("redirect"));
    redirected["spec"]["imagePullSecrets"] = json!([{"name": "token"}]);
    namespace.apply(redirected);
    namespace.wait_until_ready(&node, "redirect");
    let stored = elsewhere.seen("/v2/stored/blobs");
    assert!(!stored.is_empty() && stored.iter().all(|seen| seen.authorization.is_none()), "{stored:?}");
    assert!(
        secure.seen("/v2/redirect/blobs").iter().any(|seen| seen.authorization.as_deref() == Some("Bearer good-token"))
    );
    // A registry on this machine that has no TLS is spoken to without, as by containerd.
    let local = FaultyRegistry::start(module(), None);
    namespace.apply(pod(&node, "no-tls", &local.image("x")));
    namespace.wait_until_ready(&node, "no-tls");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_want_the_same_image_at_once_download_it_once() {
    let Some(cluster) = cluster() else { return };
    let registry = FaultyRegistry::start(module(), None);
    let mut node = ClusterNode::prepare("together").with(&["--insecure-registries", &registry.address]);
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    let namespace = cluster.namespace("together");
    for number in 0..8 {
        namespace.apply(pod(&node, &format!("p{number}"), &registry.image("shared")));
    }
    for number in 0..8 {
        namespace.wait_until_ready(&node, &format!("p{number}"));
    }
    assert_eq!(registry.seen("/v2/shared/blobs").len(), 1);
}
