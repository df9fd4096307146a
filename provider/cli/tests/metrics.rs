//! The node in numbers: what a node without a cluster tells to this machine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::{HandlerPod, Node, wait_for};
use serde_json::Value;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

/// Status line and headers, and the body, of an HTTP answer.
fn ask(mut stream: impl std::io::Read + std::io::Write, path: &str, headers: &str) -> (String, String) {
    write!(stream, "GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

/// A page, whole.
fn page(socket: &Path, path: &str) -> String {
    let (head, body) = ask(UnixStream::connect(socket).unwrap(), path, "Host: node\r\n");
    assert!(head.starts_with("http/1.1 200"), "{head}");
    body
}

/// The value of a series; 0 if it is not there.
fn value(page: &str, series: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

/// Has Prometheus' own tool look at a page, where there is one.
fn check_by_promtool(page: &str) {
    let tool = Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut tool) = tool else {
        eprintln!(
            "skipped: promtool is not installed (Debian: apt-get install prometheus), so the format is not checked by it"
        );
        return;
    };
    tool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = tool.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{page}", String::from_utf8_lossy(&output.stdout));
}

/// A node with metrics on a socket.
fn node() -> (Node, std::path::PathBuf) {
    let mut node = Node::prepare();
    let socket = node.path("metrics.sock");
    node.arguments = vec!["--metrics-address", format!("unix:{}", socket.display()).leak()];
    (node, socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_tells_its_handlers_streams_and_containers() {
    let (mut node, socket) = node();
    node.add(&HandlerPod::new("witness", "debugEcho", "debug-echo"));
    node.add(&HandlerPod::typed("typed", "typed", "debug-echo-typed"));
    let spins = HandlerPod { limits: r#"{"cpu": "100m", "memory": "32Mi"}"#, ..HandlerPod::fault("spinner", "spin") };
    node.add(&HandlerPod { handler: "", env: vec![("FAULT", "spin"), ("FAULT_AT", "start")], ..spins });
    node.run();
    node.wait_for_running("spinner");
    node.wait_for_running("witness");
    let series = |name: &str| format!("akri_krustlet_{name}{{handler=\"debugEcho\"}}");
    assert_eq!(value(&page(&socket, "/metrics"), &series("streams")), 0.0);

    let (stream, _) = node.first_list("debugEcho", r#"{"descriptions": ["foo0", "foo1"]}"#).await;
    let (_typed, _) = node.first_list("typed", r#"{"descriptions": ["foo0"]}"#).await;
    let refused = node.discover("typed", r#"{"descriptions": 3}"#).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    let metrics = page(&socket, "/metrics");
    for (name, expected) in [("streams", 1.0), ("devices", 2.0), ("lists_total", 1.0)] {
        assert_eq!(value(&metrics, &series(name)), expected, "{name}\n{metrics}");
    }
    for (series, expected) in [
        ("akri_krustlet_discover_calls_total{handler=\"typed\",code=\"Ok\"}", 1.0),
        ("akri_krustlet_discover_calls_total{handler=\"typed\",code=\"InvalidArgument\"}", 1.0),
        ("akri_krustlet_first_list_duration_seconds_count{handler=\"debugEcho\"}", 1.0),
        ("akri_krustlet_step_duration_seconds_count{handler=\"typed\"}", 1.0),
        ("akri_krustlet_discovery_healthy{namespace=\"default\",pod=\"witness\"}", 1.0),
        ("akri_krustlet_module_compile_duration_seconds_count{result=\"compiled\"}", 3.0),
        ("kubelet_running_pods", 3.0),
        ("kubelet_running_containers{container_state=\"running\"}", 3.0),
        ("kubelet_started_pods_total", 3.0),
        ("kubelet_started_containers_total{container_type=\"container\"}", 3.0),
        ("kubelet_node_name{node=\"test-node\"}", 1.0),
    ] {
        assert_eq!(value(&metrics, series), expected, "{series}\n{metrics}");
    }
    assert!(value(&metrics, "process_resident_memory_bytes") > 1e6);
    check_by_promtool(&metrics);

    drop(stream);
    assert!(wait_for(|| value(&page(&socket, "/metrics"), &series("streams")) == 0.0), "the stream is still counted");
    let last = page(&socket, "/metrics");
    assert!(last.contains(&series("devices")) && value(&last, &series("devices")) == 0.0, "{last}");
    node.remove_manifest("witness.json");
    let gone = || !page(&socket, "/metrics").contains("handler=\"debugEcho\"");
    assert!(wait_for(gone), "what was counted of a handler that is gone is still told");
}

#[test]
fn what_containers_take_is_told_as_a_kubelet_and_cadvisor_tell_it() {
    let (mut node, socket) = node();
    let limits = r#"{"cpu": "100m", "memory": "32Mi"}"#;
    let env = vec![("FAULT", "spin"), ("FAULT_AT", "start")];
    node.add(&HandlerPod { handler: "", env, limits, ..HandlerPod::fault("spinner", "spin") });
    node.run();
    node.wait_for_running("spinner");
    let labels = "{container=\"main\",namespace=\"default\",pod=\"spinner\"}";
    let cpu = || value(&page(&socket, "/metrics/resource"), &format!("container_cpu_usage_seconds_total{labels}"));
    assert!(wait_for(|| cpu() > 0.05), "a guest that spins takes no time");
    let resource = page(&socket, "/metrics/resource");
    let memory = value(&resource, &format!("container_memory_working_set_bytes{labels}"));
    assert!((65_536.0..33_554_432.0).contains(&memory), "{resource}");
    assert!(value(&resource, "pod_cpu_usage_seconds_total{namespace=\"default\",pod=\"spinner\"}") > 0.0, "{resource}");
    assert!(
        value(&resource, "node_cpu_usage_seconds_total") > 0.0
            && value(&resource, "node_memory_working_set_bytes") > 0.0
    );
    check_by_promtool(&resource);

    let cadvisor = page(&socket, "/metrics/cadvisor");
    let of = |name: &str| {
        cadvisor.lines().find(|line| line.starts_with(&format!("{name}{{")) && line.contains("pod=\"spinner\""))
    };
    for (name, expected) in [
        ("container_spec_memory_limit_bytes", 33_554_432.0),
        ("container_spec_cpu_quota", 10_000.0),
        ("container_spec_cpu_period", 100_000.0),
    ] {
        let line = of(name).unwrap_or_else(|| panic!("no {name}:\n{cadvisor}"));
        assert_eq!(line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap(), expected, "{line}");
    }
    let line = of("container_cpu_usage_seconds_total").unwrap();
    for label in ["cpu=\"total\"", "container=\"main\"", "image=\"fs://", "id=\"wasmtime://"] {
        assert!(line.contains(label), "{line}");
    }

    let summary = || -> Value { serde_json::from_str(&page(&socket, "/stats/summary")).unwrap() };
    let rate = || summary()["pods"][0]["containers"][0]["cpu"]["usageNanoCores"].as_u64().unwrap();
    assert!(wait_for(|| rate() > 50_000_000), "a tenth of a core: {}", summary());
    let summary = summary();
    assert_eq!(summary["pods"][0]["podRef"]["name"], "spinner");
    assert_eq!(summary["node"]["nodeName"], "test-node");
}

#[test]
fn metrics_are_this_machines_alone_and_open_metrics_for_who_asks() {
    let (node, socket) = {
        let (mut node, socket) = node();
        node.run();
        (node, socket)
    };
    assert!(wait_for(|| UnixStream::connect(&socket).is_ok()), "{}", node.log());
    let (head, body) = ask(
        UnixStream::connect(&socket).unwrap(),
        "/metrics",
        "Host: node\r\nAccept: application/openmetrics-text;version=1.0.0\r\n",
    );
    assert!(head.contains("content-type: application/openmetrics-text"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    let (head, body) = ask(UnixStream::connect(&socket).unwrap(), "/nothing", "Host: node\r\n");
    assert!(head.starts_with("http/1.1 404") && body.contains("/metrics/cadvisor"), "{head} {body}");

    // A free port of the loopback.
    let port = control_plane::port::free().unwrap();
    let mut node = Node::prepare();
    node.arguments = vec!["--metrics-address", format!("127.0.0.1:{port}").leak()];
    node.run();
    assert!(wait_for(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()), "{}", node.log());
    let asked = |host: &str| {
        let stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        ask(stream, "/metrics", &format!("Host: {host}\r\n")).0
    };
    assert!(asked(&format!("localhost:{port}")).starts_with("http/1.1 200"));
    assert!(asked("rebound.example").starts_with("http/1.1 421"), "{}", asked("rebound.example"));
}

/// Names of metrics in a text.
fn names(text: &str) -> std::collections::BTreeSet<String> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let prefixes = ["akri_krustlet_", "kubelet_", "process_", "rest_client_"];
    let words =
        text.split(|letter| !is_part(letter)).filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix)));
    let plain = |word: &str| word.trim_end_matches("_bucket").trim_end_matches("_total").to_owned();
    words.map(plain).filter(|word| !["akri_krustlet_metrics", "akri_krustlet_node"].contains(&word.as_str())).collect()
}

#[test]
fn the_documentation_the_alerts_and_the_dashboard_name_what_there_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    // The names that the program has, as its sources quote them.
    let counted = read("provider/metrics/src/lib.rs");
    let sources = counted.split("#[cfg(test)]").next().unwrap().to_owned() + &read("provider/node/src/metrics/node.rs");
    let quoted: String = sources.split('"').skip(1).step_by(2).collect::<Vec<_>>().join(" ");
    let told = names(&quoted);
    assert!(told.len() > 25, "{told:?}");
    assert_eq!(names(read("docs/operate.md").split("## Metrics").nth(1).unwrap()), told);
    for file in ["alerts.yaml", "dashboard.json"] {
        let named = names(&read(&format!("manifests/monitoring/{file}")));
        assert!(named.len() > 5 && named.is_subset(&told), "{file}: {:?}", named.difference(&told).collect::<Vec<_>>());
    }
    let rules = root.join("manifests/monitoring");
    let tested = Command::new("promtool").args(["test", "rules", "alerts_test.yaml"]).current_dir(rules).output();
    match tested {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()))
        }
        Err(_) => eprintln!("skipped: promtool is not installed, so the alert rules' own tests are not run"),
    }
}
