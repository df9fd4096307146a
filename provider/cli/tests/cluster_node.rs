//! A node joins a real cluster, and what keeps it from joining.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::cluster::{Cluster, ClusterNode, cluster};
use fixture::{condition, wait_for};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// The cluster's bootstrap kubeconfig with another user, or other parts replaced.
fn kubeconfig(node: &ClusterNode, cluster: &Cluster, change: impl Fn(String) -> String) -> PathBuf {
    let path = node.path("kubeconfig");
    std::fs::write(&path, change(std::fs::read_to_string(cluster.bootstrap()).unwrap())).unwrap();
    path
}

fn user_line(text: &str) -> String {
    text.lines().find(|line| line.starts_with("  user: ")).unwrap().to_owned()
}

/// A bootstrap kubeconfig whose requests nobody approves automatically.
fn unapproved(node: &ClusterNode, cluster: &Cluster, account: &str) -> PathBuf {
    cluster.kubectl_ok(&["create", "serviceaccount", account]);
    let (role, subject) = ("--clusterrole=system:node-bootstrapper", format!("--serviceaccount=default:{account}"));
    cluster.kubectl_ok(&["create", "clusterrolebinding", account, role, &subject]);
    let token = cluster.kubectl_ok(&["create", "token", account]);
    kubeconfig(node, cluster, |text| text.replace(&user_line(&text), &format!("  user: {{token: {}}}", token.trim())))
}

fn csrs_of(cluster: &Cluster, requestor: &str) -> Vec<String> {
    let list: serde_json::Value = serde_json::from_str(&cluster.kubectl_ok(&["get", "csr", "-o", "json"])).unwrap();
    let of = |csr: &&serde_json::Value| csr["spec"]["username"].as_str().unwrap().contains(requestor);
    let items = list["items"].as_array().unwrap().iter().filter(of);
    items.map(|csr| csr["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_node_joins_with_a_bootstrap_token_and_describes_itself() {
    let Some(cluster) = cluster() else { return };
    let mut node = ClusterNode::prepare("joins").with(&[
        "--node-labels",
        "site=lab,topology.kubernetes.io/zone=z1",
        "--max-pods",
        "7",
        "--system-reserved",
        "cpu=500m,memory=1Gi",
        "--node-ip",
        "127.0.0.1,::1",
    ]);
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    let object = cluster.get("node", "default", "joins").unwrap();
    let labels = &object["metadata"]["labels"];
    for (label, value) in [
        ("kubernetes.io/arch", "wasm32-wasi"),
        ("kubernetes.io/os", "wasm32-wasi"),
        ("type", "krustlet"),
        ("site", "lab"),
        ("topology.kubernetes.io/zone", "z1"),
    ] {
        assert_eq!(labels[label], value, "{labels:#}");
    }
    let taints = object["spec"]["taints"].as_array().unwrap();
    for effect in ["NoSchedule", "NoExecute"] {
        let ours = |taint: &serde_json::Value| taint["key"] == "kubernetes.io/arch" && taint["effect"] == effect;
        assert!(taints.iter().any(ours), "{taints:#?}");
    }
    let status = &object["status"];
    assert_eq!(status["daemonEndpoints"]["kubeletEndpoint"]["Port"], node.port);
    assert_eq!(status["nodeInfo"]["kubeletVersion"], "v1.36.3");
    assert_eq!(status["nodeInfo"]["containerRuntimeVersion"], "wasmtime://48.0.8");
    assert_eq!(status["capacity"]["pods"], "7");
    let cores: u64 = status["capacity"]["cpu"].as_str().unwrap().parse().unwrap();
    assert_eq!(status["allocatable"]["cpu"], format!("{}m", cores * 1000 - 500));
    assert_eq!(
        (&status["addresses"][0]["address"], &status["addresses"][1]["address"]),
        (&"127.0.0.1".into(), &"::1".into())
    );
    for kind in ["MemoryPressure", "DiskPressure", "PIDPressure"] {
        assert_eq!(condition(&object, kind), Some(false), "{kind}");
    }
    for secret in ["data/pki/client.pem", "data/kubeconfig"] {
        assert_eq!(node.path(secret).metadata().unwrap().permissions().mode() & 0o777, 0o600, "{secret}");
    }
    let key = std::fs::read_to_string(node.path("data/pki/client.pem")).unwrap();
    let key = key.lines().find(|line| line.len() == 64).unwrap();
    assert!(!node.log().contains(key) && !node.log().contains("0123456789abcdef"), "no secret in the log");
}

#[test]
fn a_deleted_node_registers_again_and_a_restart_leaves_it_ready_and_needs_no_token() {
    let Some(cluster) = cluster() else { return };
    let mut node = ClusterNode::join(cluster, "returns");
    let uid = |cluster: &Cluster| cluster.get("node", "default", "returns").map(|node| node["metadata"]["uid"].clone());
    let first = uid(cluster).unwrap();
    cluster.kubectl_ok(&["delete", "node", "returns", "--wait=false"]);
    assert!(wait_for(|| uid(cluster).is_some_and(|uid| uid != first)), "log:\n{}", node.log());
    node.wait_until_ready(cluster);

    assert_eq!(node.terminate(), Some(0));
    let object = cluster.get("node", "default", "returns").unwrap();
    assert_eq!(condition(&object, "Ready"), Some(true), "a restart takes a second");
    // kubeadm removes the bootstrap file; the node has its certificate.
    let requests = csrs_of(cluster, "system:node:returns").len();
    node.run(Path::new("/nonexistent/bootstrap.conf"));
    node.wait_for_log("the node is registered, its object was there");
    node.wait_until_ready(cluster);
    assert_eq!(csrs_of(cluster, "system:node:returns").len(), requests, "no new client certificate");
}

#[test]
fn a_wrong_token_and_a_wrong_authority_are_named() {
    let Some(cluster) = cluster() else { return };
    let mut node = ClusterNode::prepare("wrong-token");
    let file = kubeconfig(&node, cluster, |text| text.replace("0123456789abcdef", "fedcba9876543210"));
    node.run(&file);
    assert_eq!(node.wait(), Some(1));
    assert!(node.log().contains("refuses the bootstrap token"), "{}", node.log());
    assert!(!node.log().contains("fedcba9876543210"), "{}", node.log());

    let mut node = ClusterNode::prepare("wrong-authority");
    let key = rcgen::KeyPair::generate().unwrap();
    let other = rcgen::CertificateParams::default().self_signed(&key).unwrap().pem();
    let file = kubeconfig(&node, cluster, |text| {
        let start = text.find("certificate-authority-data: ").unwrap() + "certificate-authority-data: ".len();
        let end = start + text[start..].find('}').unwrap();
        let other = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &other);
        format!("{}{other}{}", &text[..start], &text[end..])
    });
    node.run(&file);
    node.wait_for_log("certificate-authority in the kubeconfig is not the one");
    // It may be the API server's certificate that is about to be exchanged: the node goes on trying.
    assert!(node.is_running());
}

#[test]
fn a_request_waits_for_approval_over_a_restart_and_a_denied_one_ends_the_node() {
    let Some(cluster) = cluster() else { return };
    let mut node = ClusterNode::prepare("approved-by-hand");
    let file = unapproved(&node, cluster, "joiner-approved");
    node.run(&file);
    node.wait_for_log("kubectl certificate approve node-csr-");
    let requests = csrs_of(cluster, "joiner-approved");
    node.kill();
    node.run(&file);
    assert!(wait_for(|| node.log().matches("kubectl certificate approve").count() == 2), "{}", node.log());
    assert_eq!(csrs_of(cluster, "joiner-approved"), requests, "the same request is taken up");
    // One that nobody approves is removed after a day; the node asks again.
    cluster.kubectl_ok(&["delete", "csr", &requests[0]]);
    node.wait_for_log("the request is gone");
    assert!(wait_for(|| csrs_of(cluster, "joiner-approved").len() == 1));
    cluster.kubectl_ok(&["certificate", "approve", &csrs_of(cluster, "joiner-approved")[0]]);
    node.wait_until_ready(cluster);

    let mut node = ClusterNode::prepare("denied");
    let file = unapproved(&node, cluster, "joiner-denied");
    node.run(&file);
    node.wait_for_log("kubectl certificate approve node-csr-");
    cluster.kubectl_ok(&["certificate", "deny", &csrs_of(cluster, "joiner-denied")[0]]);
    assert_eq!(node.wait(), Some(1));
    assert!(node.log().contains("was denied") && node.log().contains("kubectl delete csr"), "{}", node.log());
}

#[test]
fn the_endpoints_certificate_is_the_clusters_once_it_is_approved() {
    let Some(cluster) = cluster() else { return };
    let node = ClusterNode::join(cluster, "serving");
    node.wait_for_log("kubectl certificate approve node-serving-csr-");
    cluster.kubectl_ok(&["certificate", "approve", &csrs_of(cluster, "system:node:serving")[0]]);
    node.wait_for_log("the node's endpoint has a certificate of the cluster");
    assert_eq!(node.path("data/pki/serving.pem").metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn an_expired_or_unreadable_certificate_is_replaced() {
    let Some(cluster) = cluster() else { return };
    let mut node = ClusterNode::prepare("expired");
    std::fs::create_dir_all(node.path("data/pki")).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::default();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "system:node:expired");
    parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let pem = format!("{}{}", parameters.self_signed(&key).unwrap().pem(), key.serialize_pem());
    std::fs::write(node.path("data/pki/client.pem"), pem).unwrap();
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    assert!(node.log().contains("was valid until 2021-01-01T00:00:00Z only"), "{}", node.log());
    node.kill();
    std::fs::write(node.path("data/pki/client.pem"), "nonsense").unwrap();
    node.run(&cluster.bootstrap());
    node.wait_for_log("cannot be used; asking for a new one");
    node.wait_until_ready(cluster);
}

#[test]
fn a_kubeconfig_of_the_node_works_with_any_form_of_key_and_by_address_and_name() {
    let Some(cluster) = cluster() else { return };
    let mut first = ClusterNode::join(cluster, "own-kubeconfig");
    assert_eq!(first.terminate(), Some(0));
    let own = std::fs::read_to_string(first.path("data/kubeconfig")).unwrap();
    let client = first.path("data/pki/client.pem");
    let sec1 = first.path("sec1.pem");
    let converted =
        std::process::Command::new("openssl").arg("ec").arg("-in").arg(&client).arg("-out").arg(&sec1).output();
    let mut keys = vec![client.clone()];
    match converted {
        Ok(output) if output.status.success() => keys.push(sec1),
        _ => println!("skipped: keys in SEC1 form, which need the openssl command to be made"),
    }
    for key in keys {
        for server in ["127.0.0.1", "localhost"] {
            let text = own.replace("https://127.0.0.1", &format!("https://{server}"));
            let key_line = format!("\"client-key\": \"{}\"", client.display());
            let text = text.replace(&key_line, &format!("\"client-key\": \"{}\"", key.display()));
            std::fs::write(first.path("by-hand"), text).unwrap();
            let mut command = first.command(&cluster.bootstrap());
            let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
            let at = arguments.iter().position(|argument| argument == "--bootstrap-file").unwrap();
            command = std::process::Command::new(fixture::PROGRAM);
            command.args(&arguments[..at]).args(&arguments[at + 2..]).arg("--kubeconfig").arg(first.path("by-hand"));
            let log = std::fs::File::create(first.path("node.log")).unwrap();
            let mut process = command.env("RUST_LOG", "info").stderr(log).spawn().unwrap();
            let joined = wait_for(|| first.log().contains("the node is registered"));
            let _ = process.kill();
            let _ = process.wait();
            assert!(joined, "{server}, {}: {}", key.display(), first.log());
        }
    }
}

#[test]
fn a_kubeconfigs_files_are_read_again_when_they_change() {
    let Some(cluster) = cluster() else { return };
    let mut first = ClusterNode::join(cluster, "renewed-by-hand");
    assert_eq!(first.terminate(), Some(0));
    let own = std::fs::read_to_string(first.path("data/kubeconfig")).unwrap();
    let (client, copy) = (first.path("data/pki/client.pem"), first.path("identity.pem"));
    let good = std::fs::read(&client).unwrap();
    std::fs::write(&copy, &good).unwrap();
    let by_hand = first.path("by-hand");
    std::fs::write(&by_hand, own.replace(client.to_str().unwrap(), copy.to_str().unwrap())).unwrap();
    // As `run`, with the kubeconfig in place of the bootstrap file.
    let command = first.command(&cluster.bootstrap());
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let at = arguments.iter().position(|argument| argument == "--bootstrap-file").unwrap();
    let mut command = std::process::Command::new(fixture::PROGRAM);
    command.args(&arguments[..at]).args(&arguments[at + 2..]).arg("--kubeconfig").arg(&by_hand);
    let log = std::fs::File::create(first.path("node.log")).unwrap();
    let mut process = command.env("RUST_LOG", "info").stderr(log).spawn().unwrap();
    let says = |text: &str| wait_for(|| first.log().contains(text));
    let registered = says("the node is registered");
    std::fs::write(&copy, "no certificate").unwrap();
    let told = says("the node goes on with the credentials that it has");
    std::fs::write(&copy, &good).unwrap();
    let read_again = says("the node's credentials were changed and are read again");
    let _ = process.kill();
    let _ = process.wait();
    assert!(registered && told && read_again, "{registered} {told} {read_again}: {}", first.log());
}

#[test]
fn an_administrators_kubeconfig_is_refused() {
    let Some(cluster) = cluster() else { return };
    let node = ClusterNode::prepare("administrator");
    let output = std::process::Command::new(fixture::PROGRAM)
        .args(["run", "--node-name", "administrator", "--data-dir"])
        .arg(node.path("data"))
        .arg("--kubeconfig")
        .arg(cluster.directory.join("admin.conf"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("its user is kubernetes-admin, and not system:node:administrator"), "{message}");
}

#[test]
fn a_second_node_of_one_name_and_a_port_in_use_are_named() {
    let Some(cluster) = cluster() else { return };
    let mut first = ClusterNode::join(cluster, "only-one");
    let mut second = ClusterNode::prepare("only-one");
    second.run(&cluster.bootstrap());
    assert_eq!(second.wait(), Some(1));
    assert!(second.log().contains("another node named only-one runs on"), "{}", second.log());
    assert!(first.is_running());

    let mut third = ClusterNode::prepare("no-port");
    third.port = first.port;
    third.run(&cluster.bootstrap());
    assert_eq!(third.wait(), Some(1));
    let expected = format!("cannot listen on 127.0.0.1:{}", first.port);
    assert!(third.log().contains(&expected) && third.log().contains("--port"), "{}", third.log());
}

#[test]
fn flags_that_make_no_node_are_named_before_anything_is_asked() {
    let run = |arguments: &[&str], environment: &[(&str, &str)]| {
        let directory = tempfile::tempdir().unwrap();
        let output = std::process::Command::new(fixture::PROGRAM)
            .arg("run")
            .arg("--data-dir")
            .arg(directory.path())
            .args(arguments)
            .env_remove("KUBECONFIG")
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let missing = ["--bootstrap-file", "/nonexistent"];
    for (arguments, environment, message) in [
        (&[][..], &[][..], "where do the pods come from?"),
        (&[], &[("KUBERNETES_SERVICE_HOST", "10.96.0.1")], "a service account of the cluster cannot be a node"),
        (&["--node-name", "Not_A_Name"], &[], "\"Not_A_Name\" cannot be a node's name"),
        (&["--node-labels", "kubernetes.io/os=linux"], &[], "the node sets it itself"),
        (&["--node-labels", "node-role.kubernetes.io/edge="], &[], "NodeRestriction"),
        (&["--system-reserved", "cpu=much"], &[], "not a quantity"),
        (&missing, &[], "/nonexistent"),
        (
            &["--manifests", "/tmp", "--kubeconfig", "/nonexistent", "--status-config-map", "a/b"],
            &[],
            "a node without a cluster",
        ),
        (&["--manifests", "/tmp", "--kubeconfig", "/nonexistent"], &[], "kubeconfig /nonexistent"),
        (
            &[
                "--manifests",
                "/tmp",
                "--node-shutdown-grace-period",
                "5",
                "--node-shutdown-grace-period-critical-pods",
                "6",
            ],
            &[],
            "critical pods have 6 s of the 5 s of all",
        ),
        (&["--tracing-endpoint", "https://collector:4317"], &[], "without TLS"),
        (&["--node-ip", "here", "--bootstrap-file", "x"], &[], "invalid IP address"),
        (
            &["--node-ip", "10.0.0.1,10.0.0.2", "--bootstrap-file", "x"],
            &[],
            "one IPv4 address and one IPv6 address at most",
        ),
        (&["--node-ip", "fd00::1,10.0.0.1,fd00::2", "--bootstrap-file", "x"], &[], "one IPv4 address and one IPv6"),
        (&["--node-ip", "0.0.0.0", "--bootstrap-file", "x"], &[], "no address of a machine"),
        (&["--node-name", &"a".repeat(64), "--bootstrap-file", "x"], &[], "at most 63"),
        (&["--hostname", "under_score_", "--bootstrap-file", "x"], &[], "choose one with --hostname"),
    ] {
        let output = run(arguments, environment);
        assert!(output.contains(message), "{arguments:?}: {output}");
    }
}
