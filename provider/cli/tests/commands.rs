//! The commands as a handler's author uses them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]
mod fixture;

use fixture::{HandlerPod, Node, PROGRAM, guest, wait_for};
use serde_json::Value;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Output, Stdio};

const FOO: &str = r#"{"descriptions":["foo0","foo1"]}"#;

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn discover_shows_devices_with_the_names_of_their_instances() {
    let node = Node::start();
    let output = node.command(&["discover", "debugEcho", "--details", FOO, "--once"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("2 device(s)  +2 -0"), "{text}");
    assert!(text.contains("akri-debug-echo-8120fe") && text.contains("DEBUG_ECHO_DESCRIPTION=foo0"), "{text}");
}

#[test]
fn discover_prints_a_line_of_json_for_each_change() {
    let node = Node::start();
    node.wait_for_running("witness");
    let mut process = Command::new(PROGRAM)
        .args(["discover", "debugEcho", "--details", FOO, "--output", "json", "--configuration", "cfg"])
        .env("DISCOVERY_HANDLERS_DIRECTORY", node.path("akri"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    let first = next();
    assert_eq!(first["devices"][0]["instance"], "cfg-8120fe");
    assert_eq!(first["added"], serde_json::json!(["foo0", "foo1"]));
    std::fs::write(node.exchange_file("witness", "debug-echo-availability.txt"), "OFFLINE").unwrap();
    let second = next();
    assert_eq!(
        (&second["devices"], &second["removed"]),
        (&serde_json::json!([]), &serde_json::json!(["foo0", "foo1"]))
    );
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn discover_ends_with_the_codes_it_documents() {
    let node = Node::start();
    node.wait_for_running("witness");
    let output = node.command(&["discover", "nobody", "--timeout", "0.5"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("only debugEcho registered"), "{}", stderr(&output));
    let output = node.command(&["discover", "debugEcho", "--details", "descriptions: 7", "--once"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("InvalidArgument"), "{}", stderr(&output));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _enter = runtime.enter();
    let _agent = akri_krustlet_discovery::agent::RegistrationSocket::serve(&node.path("akri")).unwrap();
    let output = node.command(&["discover", "debugEcho", "--once"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(stderr(&output).contains("--socket"), "{}", stderr(&output));
    let socket = node.socket("debugEcho");
    let output =
        node.command(&["discover", "debugEcho", "--socket", socket.to_str().unwrap(), "--details", FOO, "--once"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn discover_takes_details_from_a_file_and_refuses_bad_flags() {
    let node = Node::start();
    let file = node.path("details.yaml");
    std::fs::write(&file, "descriptions:\n- from-file\n").unwrap();
    let output = node.command(&["discover", "debugEcho", "--details", &format!("@{}", file.display()), "--once"]);
    assert!(stdout(&output).contains("from-file"), "{}", stderr(&output));
    let output = node.command(&["discover", "debugEcho", "--property", "no-value"]);
    assert!(stderr(&output).contains("expected NAME=VALUE"));
    let output = node.command(&["discover", "debugEcho", "--details", "@/nonexistent"]);
    assert!(stderr(&output).contains("/nonexistent"));
}

#[test]
fn pods_lists_what_runs_and_what_is_wrong() {
    let node = Node::start();
    let mut pod = HandlerPod { handler: "", restart_policy: "Never", ..HandlerPod::fault("faulty", "trap") };
    pod.env.push(("FAULT_AT", "start"));
    node.add(&pod);
    node.wait_for_running("witness");
    node.wait_for_pod("faulty", "failed", |pod| pod["status"]["phase"] == "Failed");
    let text = stdout(&node.command(&["pods"]));
    assert!(text.starts_with("NAMESPACE  NAME     READY  STATUS"), "{text}");
    assert!(text.lines().any(|line| line.contains("witness") && line.contains("1/1    Running")), "{text}");
    assert!(text.contains("default/faulty: container main ended with code 134 (Error): "), "{text}");
    let unknown = Command::new(PROGRAM).args(["pods", "--data-dir", "/nonexistent"]).output().unwrap();
    assert!(stderr(&unknown).contains("no node has run with the data directory /nonexistent"));
}

#[test]
fn logs_follows_a_container_until_it_ends() {
    let node = Node::start();
    node.wait_for_running("witness");
    let mut process = Command::new(PROGRAM)
        .args(["logs", "witness", "-f"])
        .env("KRUSTLET_DATA_DIR", node.path("data"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("waiting for a request"));
    node.command(&["discover", "debugEcho", "--details", FOO, "--once"]);
    assert!(lines.next().unwrap().unwrap().contains("foo0"));
    node.remove_manifest("witness.json");
    assert!(wait_for(|| process.try_wait().unwrap().is_some()), "logs -f ends with the container");
}

#[test]
fn logs_takes_kubectls_flags() {
    let node = Node::start();
    node.wait_for_running("witness");
    node.command(&["discover", "debugEcho", "--details", FOO, "--once"]);
    assert!(wait_for(|| stdout(&node.command(&["logs", "witness"])).lines().count() >= 2));
    assert_eq!(stdout(&node.command(&["logs", "default/witness", "--tail", "1"])).lines().count(), 1);
    let stamped = stdout(&node.command(&["logs", "witness", "--timestamps"]));
    let time = stamped.split(' ').next().unwrap();
    assert!(time.parse::<jiff::Timestamp>().is_ok(), "{stamped}");
    assert!(!stdout(&node.command(&["logs", "witness", "--since", "1h"])).is_empty());
    for (arguments, words) in [
        (vec!["logs", "nobody"], "no pod default/nobody; there are: default/witness"),
        (vec!["logs", "witness", "-c", "x"], "it has: main"),
        (vec!["logs", "witness", "--previous"], "previous terminated container \"main\" in pod \"witness\" not found"),
        (vec!["logs", "witness", "--since", "soon"], "such as 30s, 5m or 2h"),
    ] {
        let output = node.command(&arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
    }
}

#[test]
fn check_tells_what_a_module_is_and_what_is_missing() {
    let run = |path: &std::path::Path| Command::new(PROGRAM).arg("check").arg(path).output().unwrap();
    let good = run(&guest("debug-echo"));
    assert!(stdout(&good).contains("a WASI preview 1 command"), "{}", stderr(&good));
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: Vec<u8>| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let large = r#"(module (memory (export "memory") 1601) (func (export "_start")))"#;
    let tables =
        format!(r#"(module (memory (export "memory") 1) (func (export "_start")) {})"#, "(table 1 funcref)".repeat(5));
    let large = run(&file("large.wasm", wat::parse_str(large).unwrap()));
    assert!(
        large.status.success() && stdout(&large).contains("101 MiB of memory from its start"),
        "{}",
        stdout(&large)
    );
    let missing = r#"(module (import "env" "f" (func)) (memory (export "memory") 1) (func (export "_start")))"#;
    for (path, words) in [
        (
            file("component.wasm", wat::parse_str("(component)").unwrap()),
            "it exports nothing; a component is a discovery handler by",
        ),
        (file("missing.wasm", wat::parse_str(missing).unwrap()), "env.f"),
        (file("tables.wasm", wat::parse_str(tables).unwrap()), "it has 5 tables, and a guest may have 4"),
        (file("text.wasm", b"hello".to_vec()), "not WebAssembly"),
        (directory.path().join("nonexistent.wasm"), "nonexistent.wasm"),
    ] {
        let output = run(&path);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
    }
}

#[test]
fn every_command_has_help_and_shells_have_completion() {
    for command in ["run", "discover", "pods", "logs", "check", "describe"] {
        let output = Command::new(PROGRAM).args([command, "--help"]).output().unwrap();
        assert!(output.status.success() && stdout(&output).len() > 150, "{command}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(PROGRAM).args(["completion", shell]).output().unwrap();
        assert!(stdout(&output).contains("discover"), "{shell}");
    }
    let nothing = Command::new(PROGRAM).arg("run").output().unwrap();
    assert!(stderr(&nothing).contains("--manifests"), "{}", stderr(&nothing));
}

#[test]
fn a_second_node_on_the_same_data_is_refused_with_the_first_ones_pid() {
    let node = Node::start();
    node.wait_for_running("witness");
    let manifests = node.path("manifests");
    let output = node.command(&["run", "--manifests", manifests.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&format!("(pid {})", node.pid())), "{}", stderr(&output));
}

#[test]
fn a_demo_without_akris_programs_says_where_they_come_from() {
    let demos = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demos");
    for demo in ["wasm-broker-uses-akri-device", "akri-uses-wasm-handler", "real-devices"] {
        let run = || {
            let mut command = std::process::Command::new(demos.join(demo).join("run"));
            command.env_remove("AKRI_BIN");
            command
        };
        let output = run().output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("set AKRI_BIN") && text.contains("docker cp"), "{text}");
        assert_eq!(run().arg("--wrong").output().unwrap().status.code(), Some(2));
        let help = run().arg("--help").output().unwrap();
        assert!(help.status.success() && String::from_utf8(help.stdout).unwrap().contains("--cluster existing"));
    }
}

/// The figures of README, as docs/benchmarks.md names them.
const FIGURES: [(&str, &str); 4] = [
    ("Discover to first list, p50", "Discover to first list, fresh connection each, p50 of 500"),
    ("a file changes, the list follows, p50", "availability file written to list at the client, p50 of 50"),
    (
        "one more idle handler, private memory",
        "each further idle handler pod of the same image, private (dirty and page tables)",
    ),
    (
        "1,000 handlers, each with a stream: CPU when idle",
        "... CPU over 60 s idle, of a core, from the sixth minute on",
    ),
];

#[test]
fn readmes_figures_are_those_of_the_benchmarks() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let rows = |file: &str| -> Vec<Vec<String>> {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        let rows = text.lines().filter(|line| line.starts_with("| "));
        rows.map(|row| row.split('|').skip(1).map(|cell| cell.trim().to_owned()).collect()).collect()
    };
    let (readme, measured) = (rows("README.md"), rows("docs/benchmarks.md"));
    let of = |rows: &[Vec<String>], figure: &str| {
        let row = rows.iter().find(|row| row[0] == figure);
        row.unwrap_or_else(|| panic!("no figure {figure:?}")).clone()
    };
    for (told, figure) in FIGURES {
        let (told, measured) = (of(&readme, told), of(&measured, figure));
        // A number and its unit; README says of what, the benchmarks how it was spread.
        let number = |cell: &str| cell.split(' ').take(2).collect::<Vec<_>>().join(" ");
        assert_eq!(
            number(&told[1]),
            number(&measured[1]),
            "{figure}: README's figure is not that of docs/benchmarks.md"
        );
        if !told[2].is_empty() {
            assert_eq!(
                number(&told[2]),
                number(&measured[2]),
                "{figure}: README's figure is not that of docs/benchmarks.md"
            );
        }
    }
}
