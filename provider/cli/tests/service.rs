//! The node as a service: what it tells systemd, its file of settings, what SIGHUP changes, its log for programs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::{HandlerPod, Node, wait_for};
use serde_json::Value;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// systemd's end of the socket: each datagram is what was told.
struct Systemd(UnixDatagram);

impl Systemd {
    fn listen(node: &mut Node) -> Self {
        let path = node.path("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        node.environment.push(("NOTIFY_SOCKET", path));
        Self(socket)
    }

    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// The first datagram with this line that is still to come.
    fn wait_for(&self, line: &str) -> String {
        loop {
            let told = self.next();
            if told.lines().any(|other| other == line) {
                return told;
            }
        }
    }
}

fn hang_up(node: &Node) {
    let pid = rustix::process::Pid::from_raw(node.pid().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
}

#[test]
fn systemd_hears_of_the_start_the_reload_the_end_and_that_the_node_is_alive() {
    let mut node = Node::prepare();
    node.environment.push(("WATCHDOG_USEC", "200000".into()));
    let systemd = Systemd::listen(&mut node);
    node.add(&HandlerPod::new("witness", "debugEcho", "debug-echo"));
    node.run();
    assert!(systemd.wait_for("READY=1").contains("STATUS="));
    for _ in 0..3 {
        systemd.wait_for("WATCHDOG=1");
    }
    hang_up(&node);
    let told = systemd.wait_for("RELOADING=1");
    assert!(told.lines().any(|line| line.starts_with("MONOTONIC_USEC=")), "{told}");
    systemd.wait_for("READY=1");
    assert!(node.is_running());
    assert_eq!(node.terminate(), Some(0));
    systemd.wait_for("STOPPING=1");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_come_from_a_file_and_some_change_while_the_node_runs() {
    let mut node = Node::prepare();
    let (config, ceiling) = (node.path("config.yaml"), node.path("ceiling"));
    let write = |port: u16, level: &str| {
        let text = format!(
            "# of this machine\nport: {port}\nlog-level: {level}\nlog-format: json\nnetwork-ceiling: {}\n",
            ceiling.display()
        );
        std::fs::write(&config, text).unwrap();
    };
    std::fs::write(&ceiling, "").unwrap();
    write(3000, "warn");
    node.environment.push(("AKRI_KRUSTLET_CONFIG", config.clone()));
    node.without_log_level = true;
    let systemd = Systemd::listen(&mut node);
    // It asks for what nobody serves: whether it may is what is told.
    let mut pod = HandlerPod::typed("probe", "probe", "event-echo");
    pod.annotations = vec![
        ("akri-krustlet/uevents", "mem"),
        ("akri-krustlet/links", "lo"),
        ("akri-krustlet/network", "join 239.255.255.250:3702"),
    ];
    pod.exchange = true;
    node.add(&pod);
    node.run();
    systemd.wait_for("READY=1");
    node.wait_for_socket("probe");
    assert!(!node.log().contains("\"level\":\"INFO\""), "only warnings were asked for: {}", node.log());

    std::fs::write(&ceiling, "deny 239.255.255.250\n").unwrap();
    write(3001, "info");
    hang_up(&node);
    systemd.wait_for("READY=1");
    node.wait_for_log("the change counts from the next start on: port");
    // The pod's grant is the same; the operator's ceiling is not.
    let _ = node.discover("probe", r#"{"groups": ["239.255.255.250:3702"]}"#).await;
    node.wait_for_log("denied: the node gives it to no pod (--network-ceiling)");
    for line in node.log().lines() {
        let object: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        for field in ["timestamp", "level", "message"] {
            assert!(object[field].is_string(), "{line}");
        }
    }

    std::fs::write(&config, "prot: 3001\n").unwrap();
    hang_up(&node);
    let words = r#"unknown setting \"prot\"; did you mean \"port\"?"#;
    let told = || node.log().lines().any(|line| line.contains("cannot be reloaded") && line.contains(words));
    assert!(wait_for(told), "{}", node.log());
    assert!(node.is_running());
}

/// The exposure of the unit as systemd reckons it: 0 is the least, and an ordinary unit has 9.6.
#[test]
fn the_unit_is_one_that_systemd_takes_and_calls_ok() {
    let unit = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/node/akri-krustlet.service");
    let analyze = |arguments: &[&str]| {
        let output = std::process::Command::new("systemd-analyze").args(arguments).arg(&unit).output();
        output.ok().map(|output| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (output.status.success(), text(&output.stdout) + &text(&output.stderr))
        })
    };
    let Some((_, verified)) = analyze(&["verify", "--man=no"]) else {
        eprintln!("skipped: systemd-analyze is not installed, so nobody looks at the unit");
        return;
    };
    // That the program is not at its place here is all that may be said.
    let wrong =
        verified.lines().find(|line| line.contains("akri-krustlet.service") && !line.contains("not executable"));
    assert_eq!(wrong, None, "{verified}");
    let (is_ok, report) = analyze(&["security", "--offline=true", "--threshold=40", "--no-pager"]).unwrap();
    assert!(is_ok, "{report}");
}

#[test]
fn a_support_bundle_has_no_secret() {
    let mut node = Node::prepare();
    let mut pod: Value =
        serde_json::from_str(&HandlerPod::new("witness", "debugEcho", "debug-echo").manifest()).unwrap();
    pod["metadata"]["annotations"]["example.com/note"] = "s3cret".into();
    pod["spec"]["containers"][0]["args"] = serde_json::json!(["--password", "s3cret"]);
    let header = serde_json::json!([{"name": "Authorization", "value": "s3cret"}]);
    let probe = serde_json::json!({"httpGet": {"port": 80, "path": "/s3cret", "httpHeaders": header}});
    let mut refused = pod.clone();
    refused["metadata"]["name"] = "refused".into();
    refused["spec"]["containers"][0]["livenessProbe"] = probe;
    let env = pod["spec"]["containers"][0]["env"].as_array_mut().unwrap();
    env.push(serde_json::json!({"name": "PASSWORD", "value": "s3cret"}));
    node.write_manifest("witness.json", &pod.to_string());
    node.write_manifest("refused.json", &refused.to_string());
    node.add(&HandlerPod {
        handler: "",
        env: vec![("FAULT", "print"), ("FAULT_AT", "start")],
        ..HandlerPod::fault("words", "print")
    });
    node.run();
    node.wait_for_running("witness");
    node.wait_for_pod("refused", "refused", |pod| pod["status"]["phase"] == "Failed");
    let bundle = node.path("bundle.tar.gz");
    let unpacked = |arguments: &[&str]| {
        let output = node.command(&[&["support-bundle", "--output", bundle.to_str().unwrap()], arguments].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let file = std::fs::File::open(&bundle).unwrap();
        let mut files = std::collections::BTreeMap::new();
        for entry in tar::Archive::new(flate2::read::GzDecoder::new(file)).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
            files.insert(name.trim_start_matches("akri-krustlet-support/").to_owned(), text);
        }
        std::fs::remove_file(&bundle).unwrap();
        files
    };
    let files = unpacked(&[]);
    assert_eq!(files.keys().collect::<Vec<_>>(), ["files.txt", "node.txt", "pods.json"]);
    assert!(files["node.txt"].contains("running: true"), "{}", files["node.txt"]);
    assert!(files["files.txt"].contains("status.json"), "{}", files["files.txt"]);
    let pods = &files["pods.json"];
    for text in ["\"witness\"", "PASSWORD", "DiscoveryHealthy", "FailedValidation", "(left out)"] {
        assert!(pods.contains(text), "{text} is not in {pods}");
    }
    assert!(files.values().all(|text| !text.contains("s3cret")), "{files:?}");
    assert!(unpacked(&["--logs"]).keys().any(|name| name.starts_with("logs/default_witness_")));
    let twice = || node.command(&["support-bundle", "--output", bundle.to_str().unwrap()]);
    assert!(twice().status.success());
    assert!(String::from_utf8_lossy(&twice().stderr).contains("bundle.tar.gz: File exists"));
}
