//! The node's HTTPS endpoint: what kubectl gets by way of the API server, and what anybody else gets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::cluster::{Cluster, ClusterNode, cluster};
use fixture::wait_for;
use reqwest::{Client, Identity, Method, StatusCode};
use serde_json::{Value, json};
use std::io::Read as _;
use std::process::Stdio;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Every path that a kubelet has, and some that nobody has.
const PATHS: [&str; 14] = [
    "/",
    "/healthz",
    "/pods",
    "/configz",
    "/containerLogs/ns/pod/main",
    "/exec/ns/pod/main",
    "/attach/ns/pod/main",
    "/portForward/ns/pod",
    "/run/ns/pod/main",
    "/logs/",
    "/stats/summary",
    "/metrics",
    "/../pods",
    "/nothing",
];

fn client(identity: Option<Identity>) -> Client {
    let builder = Client::builder().tls_danger_accept_invalid_certs(true);
    match identity {
        Some(identity) => builder.identity(identity).build().unwrap(),
        None => builder.build().unwrap(),
    }
}

async fn ask(
    client: &Client,
    node: &ClusterNode,
    method: Method,
    path: &str,
    token: Option<&str>,
) -> (StatusCode, String) {
    let mut request = client.request(method, format!("https://127.0.0.1:{}{path}", node.port));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let answer = request.send().await.unwrap();
    (answer.status(), answer.text().await.unwrap())
}

fn token(cluster: &Cluster, account: &str, role: Option<&str>) -> String {
    cluster.kubectl_ok(&["create", "serviceaccount", account]);
    if let Some(role) = role {
        let (role, subject) = (format!("--clusterrole={role}"), format!("--serviceaccount=default:{account}"));
        cluster.kubectl_ok(&["create", "clusterrolebinding", account, &role, &subject]);
    }
    cluster.kubectl_ok(&["create", "token", account]).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_nothing_and_a_log_reader_reads_logs_only() {
    let Some(cluster) = cluster() else { return };
    let node = ClusterNode::join(cluster, "guarded");
    let namespace = cluster.namespace("guarded");
    namespace.apply(node.fault_pod("printer", "print"));
    namespace.wait_until_ready(&node, "printer");
    let foreign = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::default();
    parameters.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "kubernetes-admin");
    let pem = format!("{}{}", parameters.self_signed(&foreign).unwrap().pem(), foreign.serialize_pem());
    let anonymous = client(None);
    let foreign = client(Some(Identity::from_pem(pem.as_bytes()).unwrap()));
    let nobody = token(cluster, "nobody", None);
    for method in [Method::GET, Method::POST] {
        for path in PATHS {
            for (who, token) in [(&anonymous, None), (&anonymous, Some("no-token")), (&foreign, None)] {
                let (status, body) = ask(who, &node, method.clone(), path, token).await;
                assert_eq!((status, body.trim()), (StatusCode::UNAUTHORIZED, "Unauthorized"), "{method} {path}");
            }
            let (status, _) = ask(&anonymous, &node, method.clone(), path, Some(&nobody)).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path}");
        }
    }
    let reader = token(cluster, "reader", Some("akri-krustlet-log-reader"));
    let log = "/containerLogs/guarded/printer/main";
    let (status, body) = ask(&anonymous, &node, Method::GET, log, Some(&reader)).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert!(body.contains("line 99"), "{body}");
    for path in PATHS.into_iter().filter(|path| !path.starts_with("/containerLogs") && !path.starts_with("/logs")) {
        let (status, body) = ask(&anonymous, &node, Method::GET, path, Some(&reader)).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{path}: {body}");
    }
    assert_eq!(ask(&anonymous, &node, Method::POST, log, Some(&reader)).await.0, StatusCode::FORBIDDEN);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_sees_what_a_kubelet_shows() {
    let Some(cluster) = cluster() else { return };
    let node = ClusterNode::join(cluster, "shown");
    let namespace = cluster.namespace("shown");
    namespace.apply(node.fault_pod("seen", "sleep"));
    namespace.wait_until_ready(&node, "seen");
    let pem = |name: &str| std::fs::read_to_string(cluster.directory.join("pki").join(name)).unwrap();
    let pem = format!("{}{}", pem("apiserver-kubelet.crt"), pem("apiserver-kubelet.key"));
    let api_server = client(Some(Identity::from_pem(pem.as_bytes()).unwrap()));
    let get = async |path: &str| ask(&api_server, &node, Method::GET, path, None).await;
    assert_eq!(get("/healthz").await, (StatusCode::OK, "ok\n".to_owned()));
    let pods: Value = serde_json::from_str(&get("/pods").await.1).unwrap();
    assert_eq!(pods["items"][0]["metadata"]["name"], "seen");
    assert_eq!(pods["items"][0]["status"]["phase"], "Running");
    let configz: Value = serde_json::from_str(&get("/configz").await.1).unwrap();
    assert_eq!(configz["kubeletconfig"]["maxPods"], 110);
    assert_eq!(get("/nothing").await.0, StatusCode::NOT_FOUND);
    assert_eq!(get("/containerLogs/shown/other/main").await.0, StatusCode::NOT_FOUND);
    assert_eq!(get("/containerLogs/shown/seen/other").await.0, StatusCode::NOT_FOUND);
    for (query, status) in [
        ("tailLines=1000000000000", StatusCode::OK),
        ("tailLines=18446744073709551615", StatusCode::OK),
        ("limitBytes=9223372036854775807", StatusCode::OK),
        ("sinceSeconds=9223372036854775807", StatusCode::OK),
        ("tailLines=-1", StatusCode::BAD_REQUEST),
        ("sinceTime=yesterday", StatusCode::BAD_REQUEST),
    ] {
        let (got, body) = get(&format!("/containerLogs/shown/seen/main?{query}")).await;
        assert_eq!(got, status, "{query}: {body}");
    }
    let too_long = "x".repeat(200_000);
    let long = api_server.get(format!("https://127.0.0.1:{}/pods", node.port)).header("x-long", &too_long).send().await;
    assert!(long.is_err() || long.unwrap().status().is_client_error());
    assert_eq!(get("/healthz").await.0, StatusCode::OK, "the endpoint serves on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_says_nothing_delays_nobody() {
    let Some(cluster) = cluster() else { return };
    let node = ClusterNode::join(cluster, "silent");
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(tokio::net::TcpStream::connect(("127.0.0.1", node.port)).await.unwrap());
    }
    let mut nonsense = tokio::net::TcpStream::connect(("127.0.0.1", node.port)).await.unwrap();
    nonsense.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    // A TLS alert, then the end.
    let mut answer = Vec::new();
    let _ = nonsense.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    let (status, _) = ask(&client(None), &node, Method::GET, "/pods", None).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

#[test]
fn healthz_is_for_everybody_on_request() {
    let Some(cluster) = cluster() else { return };
    let mut node = ClusterNode::prepare("healthy").with(&["--anonymous-healthz"]);
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let answer = |path: &str| runtime.block_on(ask(&client(None), &node, Method::GET, path, None));
    assert_eq!(answer("/healthz"), (StatusCode::OK, "ok\n".to_owned()));
    assert_eq!(answer("/pods").0, StatusCode::UNAUTHORIZED);
}

#[test]
fn kubectl_logs_takes_its_flags_and_exec_says_why_not() {
    let Some(cluster) = cluster() else { return };
    let node = ClusterNode::join(cluster, "logs");
    let namespace = cluster.namespace("logs");
    namespace.apply(node.fault_pod("printer", "print"));
    namespace.wait_until_ready(&node, "printer");
    let logs = |arguments: &[&str]| namespace.kubectl_ok(&[&["logs", "printer"], arguments].concat());
    assert!(wait_for(|| logs(&[]).contains("line on stderr")), "{}", logs(&[]));
    let all = logs(&[]);
    assert_eq!(all.lines().count(), 102, "{all}");
    assert_eq!(logs(&["--tail=2"]).lines().count(), 2);
    assert_eq!(logs(&["--tail=0"]), "");
    assert_eq!(logs(&["--limit-bytes=10"]), all[..10]);
    assert_eq!(logs(&["--since=1h"]), all);
    assert_eq!(logs(&["--since-time=2999-01-01T00:00:00Z"]), "");
    let stamped = logs(&["--timestamps", "--tail=1"]);
    assert!(stamped.starts_with("20") && stamped.contains("Z line"), "{stamped}");
    let refused = namespace.kubectl(&["logs", "printer", "--previous"]);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(message.contains("previous terminated container \"main\" in pod \"printer\" not found"), "{message}");

    // Follows until the container ends; its last life stays readable.
    let mut crashing = node.fault_pod("crashing", "exit3");
    crashing["spec"]["containers"][0]["env"] =
        json!([{"name": "FAULT", "value": "exit3"}, {"name": "FAULT_AT", "value": "start"}]);
    namespace.apply(crashing);
    namespace
        .wait_for_pod(&node, "crashing", "restarted", |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1);
    assert!(namespace.kubectl_ok(&["logs", "crashing", "--previous"]).contains("misbehave: exit3"));
    let mut follow =
        cluster.kubectl_command(&["-n", "logs", "logs", "-f", "printer"]).stdout(Stdio::piped()).spawn().unwrap();
    namespace.kubectl_ok(&["delete", "pod", "printer", "--grace-period=1", "--timeout=20s"]);
    let mut followed = String::new();
    follow.stdout.take().unwrap().read_to_string(&mut followed).unwrap();
    assert!(follow.wait().unwrap().success());
    assert!(followed.starts_with(&all[..50]), "{followed}");

    namespace.apply(node.fault_pod("closed", "sleep"));
    namespace.wait_until_ready(&node, "closed");
    for arguments in [&["exec", "closed", "--", "sh"][..], &["attach", "closed"], &["port-forward", "closed", "0:80"]] {
        let output = namespace.kubectl(arguments);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        assert!(message.contains("is not supported") || arguments[0] == "port-forward", "{arguments:?}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_read_metrics_gets_them_and_nobody_else() {
    let Some(cluster) = cluster() else { return };
    let node = ClusterNode::join(cluster, "measured");
    let namespace = cluster.namespace("measured");
    namespace.apply(node.fault_pod("printer", "print"));
    namespace.wait_until_ready(&node, "printer");
    cluster.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "metrics-reader"},
        "rules": [{"apiGroups": [""], "resources": ["nodes/metrics", "nodes/stats"], "verbs": ["get"]}],
    }));
    let reader = token(cluster, "metrics-reader", Some("metrics-reader"));
    let nobody = token(cluster, "no-metrics-reader", None);
    let anonymous = client(None);
    let series = "container_memory_working_set_bytes{container=\"main\",namespace=\"measured\",pod=\"printer\"}";
    for (path, text) in [
        ("/metrics", "kubelet_running_pods 1"),
        ("/metrics", "rest_client_requests_total{method=\"GET\",code=\"200\"}"),
        ("/metrics", "kubelet_certificate_manager_client_ttl_seconds "),
        ("/metrics/resource", series),
        ("/metrics/cadvisor", "container_spec_memory_limit_bytes{"),
        ("/stats/summary", "\"podRef\":{\"name\":\"printer\""),
    ] {
        let (status, page) = ask(&anonymous, &node, Method::GET, path, Some(&reader)).await;
        assert_eq!(status, StatusCode::OK, "{path}: {page}");
        assert!(page.contains(text), "{path}: no {text} in\n{page}");
        assert_eq!(ask(&anonymous, &node, Method::GET, path, Some(&nobody)).await.0, StatusCode::FORBIDDEN, "{path}");
        assert_eq!(ask(&anonymous, &node, Method::GET, path, None).await.0, StatusCode::UNAUTHORIZED, "{path}");
    }
    let (status, page) = ask(&anonymous, &node, Method::GET, "/metrics/probes", Some(&reader)).await;
    assert!(status == StatusCode::NOT_FOUND && page.contains("/metrics/cadvisor"), "{status} {page}");
    assert_eq!(ask(&anonymous, &node, Method::POST, "/metrics", Some(&reader)).await.0, StatusCode::FORBIDDEN);
}
