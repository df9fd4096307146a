//! The Helm chart, by the real helm: what it says of itself, what it makes of its values, and its life in a cluster.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::cluster::{Cluster, Namespace, cluster, manifests};
use fixture::{Node, guest, wait_for};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Helm {
    program: PathBuf,
    kubeconfig: PathBuf,
    chart: PathBuf,
    home: tempfile::TempDir,
}

impl Helm {
    fn of(cluster: &Cluster) -> Self {
        let programs = control_plane::Programs::find_or_build().unwrap().with_cluster_tools().unwrap();
        let home = tempfile::tempdir().unwrap();
        let chart = home.path().join("chart");
        let copied = Command::new("cp")
            .args(["-rL".as_ref(), manifests().join("chart").as_os_str(), chart.as_os_str()])
            .status();
        assert!(copied.unwrap().success());
        provide_akri(&chart);
        let kubeconfig = cluster.directory.join("admin.conf");
        Self { program: programs.path("helm").unwrap(), kubeconfig, chart, home }
    }

    /// `arguments` with the chart for each `CHART`.
    fn run(&self, arguments: &[&str]) -> Output {
        let chart = self.chart.to_str().unwrap();
        let arguments = arguments.iter().map(|argument| if *argument == "CHART" { chart } else { *argument });
        let mut command = Command::new(&self.program);
        command.args(arguments).env("HELM_CACHE_HOME", self.home.path()).env("HELM_CONFIG_HOME", self.home.path());
        command.env("HELM_DATA_HOME", self.home.path()).env("KUBECONFIG", &self.kubeconfig).output().unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "helm {arguments:?}: {said}{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Akri's own chart is a dependency by reference: `AKRI_CHART` names its directory. Without it one that is as good as empty takes its
/// place, since helm takes no chart whose dependencies are missing.
fn provide_akri(chart: &Path) {
    let akri = chart.join("charts/akri");
    std::fs::create_dir_all(chart.join("charts")).unwrap();
    if let Some(real) = std::env::var_os("AKRI_CHART") {
        assert!(Command::new("cp").arg("-rL").arg(real).arg(&akri).status().unwrap().success());
        return;
    }
    std::fs::create_dir_all(akri.join("templates")).unwrap();
    std::fs::write(akri.join("Chart.yaml"), "apiVersion: v2\nname: akri\nversion: 0.13.26\n").unwrap();
    let agent = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: akri-agent-stand-in}\n";
    std::fs::write(akri.join("templates/agent.yaml"), agent).unwrap();
}

/// Every handler that the chart knows.
fn all_handlers(chart: &Path) -> Vec<String> {
    let values: Value = serde_saphyr::from_str(&std::fs::read_to_string(chart.join("values.yaml")).unwrap()).unwrap();
    values["handlers"].as_object().unwrap().keys().cloned().collect()
}

const CONFIGURATION: &str = r#"configurations={"cameras":{"discoveryHandler":{"name":"udev"},"capacity":1}}"#;

#[test]
fn the_api_server_takes_what_the_chart_makes_in_either_mode() {
    let Some(cluster) = cluster() else { return };
    let helm = Helm::of(cluster);
    cluster.define_configurations();
    cluster.kubectl_ok(&["create", "namespace", "akri-krustlet-status"]);
    let enabled = all_handlers(&helm.chart).into_iter().map(|name| format!("handlers.{name}.enabled=true"));
    let enabled = enabled.collect::<Vec<_>>().join(",");
    for mode in ["mode=handlers", "mode=node"] {
        helm.ok(&["lint", "--strict", "CHART", "--set", mode, "--set", &enabled]);
        let made = helm.ok(&[
            "template",
            "test",
            "CHART",
            "--set",
            mode,
            "--set",
            &enabled,
            "--set-json",
            CONFIGURATION,
            "--namespace",
            "default",
        ]);
        let file = helm.home.path().join("made.yaml");
        std::fs::write(&file, &made).unwrap();
        cluster.kubectl_ok(&["apply", "--dry-run=server", "--validate=strict", "-f", file.to_str().unwrap()]);
        assert!(made.contains("name: \"cameras\""), "{made}");
        let workloads = made.matches("kind: DaemonSet").count();
        assert_eq!(workloads, if mode == "mode=node" { all_handlers(&helm.chart).len() } else { 1 }, "{made}");
        // Akri itself only for who asks for it.
        assert!(!made.contains("akri-agent"), "{made}");
    }
    let with_akri = helm.ok(&["template", "test", "CHART", "--set", "akri.enabled=true"]);
    assert!(with_akri.contains("akri-agent"), "{with_akri}");
    let monitored = helm.ok(&[
        "template",
        "test",
        "CHART",
        "--set",
        "monitoring.rules.enabled=true,monitoring.dashboard.enabled=true",
    ]);
    for part in ["kind: PrometheusRule", "alert: AkriKrustletDown", "akri-krustlet.json"] {
        assert!(monitored.contains(part), "{part}");
    }
    // What is no value is named.
    for (wrong, named) in [
        ("handlers.udev.enable=true", "enable"),
        ("daemonset.hostNetwork=false", "daemonset"),
        ("mode=both", "mode"),
        ("daemonSet.dataPath=relative", "dataPath"),
        ("handlers.Udev.enabled=true", "Udev"),
        ("handlers.udev.env.A=1", "env"),
        ("handlers.udev.writableHostPaths./sys=/sys", "is in hostPaths and in writableHostPaths"),
        ("handlers.udev.hostPaths./x=/data", "no handler can mount it"),
    ] {
        let refused = helm.run(&["template", "test", "CHART", "--set", wrong]);
        let message = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && message.contains(named), "{wrong}: {message}");
    }
}

/// The data of a ConfigMap as files of a directory, as a pod has it.
fn written(cluster: &Cluster, name: &str, directory: &Path) {
    let map = cluster.get("configmap", "chart", name).unwrap();
    for (file, content) in map["data"].as_object().unwrap() {
        std::fs::write(directory.join(file), content.as_str().unwrap()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_installed_changed_taken_back_and_leaves_nothing() {
    let Some(cluster) = cluster() else { return };
    let helm = Helm::of(cluster);
    let namespace = Namespace { cluster, name: "chart".to_owned() };
    let image = format!("handlers.debug-echo.image=fs://{}", guest("debug-echo").display());
    let own_status = "daemonSet.status.namespace=chart-status";
    let common =
        ["--namespace", "chart", "--set", "handlers.debug-echo.enabled=true", "--set", &image, "--set", own_status];
    let released = |how: &[&str]| helm.ok(&[how, &["edge", "CHART"], &common].concat());
    let notes = released(&["install", "--create-namespace"]);
    assert!(notes.contains("debug-echo") && notes.contains("chart-status"), "{notes}");

    // What the DaemonSet's pods would have is what the program runs.
    let mut node = Node::prepare();
    let settings = node.path("settings");
    std::fs::create_dir(&settings).unwrap();
    written(cluster, "edge-akri-krustlet-settings", &settings);
    written(cluster, "edge-akri-krustlet-handlers", &node.path("manifests"));
    node.environment.push(("AKRI_KRUSTLET_CONFIG", settings.join("config.yaml")));
    node.arguments = vec!["--metrics-address", "127.0.0.1:0"];
    node.run();
    node.wait_for_socket("debugEcho");
    let stream = node.discover("debugEcho", r#"{"descriptions":["a"]}"#).await;
    assert!(stream.is_ok(), "{}", node.log());
    assert!(node.pod("udev").is_some(), "the other handler of the release is not there");

    // A change of the handlers starts no pod again, one of the settings does.
    let template = || {
        let set = cluster.get("daemonset", "chart", "edge-akri-krustlet").unwrap();
        set["spec"]["template"]["metadata"]["annotations"]["akri-krustlet/settings"].as_str().unwrap().to_owned()
    };
    let handlers = || cluster.get("configmap", "chart", "edge-akri-krustlet-handlers").unwrap()["data"].clone();
    let (first, both) = (template(), handlers());
    released(&["upgrade", "--set", "handlers.udev.enabled=false"]);
    assert_eq!((template(), handlers().get("udev.yaml")), (first.clone(), None));
    released(&["upgrade", "--set", "daemonSet.settings.log-level=debug"]);
    assert_ne!(template(), first);
    helm.ok(&["rollback", "edge", "1", "--namespace", "chart"]);
    assert_eq!((template(), handlers()), (first, both));

    helm.ok(&["uninstall", "edge", "--namespace", "chart"]);
    let kinds = "daemonsets,configmaps,serviceaccounts,roles,rolebindings,secrets";
    let left = || namespace.kubectl_ok(&["get", kinds, "-l", "app.kubernetes.io/instance=edge", "-o", "name"]);
    assert!(wait_for(|| left().is_empty()), "{}", left());
    assert!(
        wait_for(|| cluster.get("namespace", "", "chart-status").is_none()),
        "the namespace of the statuses is left"
    );
}
