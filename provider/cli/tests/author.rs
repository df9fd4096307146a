//! What the author of a handler has besides a node: `step`, `annotate`, `manifests`, and what a module says of itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::{HandlerPod, Node, PROGRAM, component, guest, wait_for};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::LazyLock;

/// With a cache of the tests' own, which several commands use at once.
fn run(arguments: &[&str]) -> Output {
    static CACHE: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());
    fixture::output(Command::new(PROGRAM).args(arguments).env("XDG_CACHE_HOME", CACHE.path()))
}

fn ok(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Exit code, standard output and error.
fn said(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = run(arguments);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn path(component_name: &str) -> String {
    component(component_name).display().to_string()
}

#[test]
fn a_module_is_asked_step_by_step_without_a_node() {
    let echo = path("debug-echo-typed");
    let answer: Value =
        serde_json::from_str(&ok(&["step", &echo, "--details", "descriptions: [b, a]", "-o", "json"])).unwrap();
    let step = &answer["steps"][0];
    let ids: Vec<_> = step["devices"].as_array().unwrap().iter().map(|device| device["id"].clone()).collect();
    assert_eq!(ids, ["a", "b"]);
    assert!((1..500).contains(&step["allocations"].as_u64().unwrap()), "{step}");
    assert!(step["fuel"].as_u64().unwrap() > 1000 && step["memoryBytes"].as_u64().unwrap() >= 65_536, "{step}");
    assert_eq!(answer["log"], json!(["INFO debugEcho: 2 devices"]));
    // The same work is the same fuel.
    let again: Value =
        serde_json::from_str(&ok(&["step", &echo, "--details", "descriptions: [b, a]", "-o", "json"])).unwrap();
    assert_eq!(again["steps"][0]["fuel"], step["fuel"]);
    let text = ok(&["step", &echo, "--details", "descriptions: [a]"]);
    for part in [
        "opened",
        "step 1",
        "units of fuel",
        "allocations of the node",
        "1 device(s)",
        "akri-debug-echo-",
        "log           INFO",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for (arguments, code, message) in [
        (&[echo.as_str(), "--details", "descriptions: 1"][..], 3, "descriptions"),
        (&[&echo, "--details", "{"], 3, "details"),
        (&[&echo, "--details", "@/nonexistent"], 1, "/nonexistent"),
        (&[&path("typed-misbehave"), "--details", "fault: trap"], 2, "the guest trapped"),
        (&[&path("typed-misbehave"), "--details", "fault: exit"], 2, "exited with code"),
        (&[&path("typed-misbehave"), "--details", "fault: loop", "--timeout", "0.5"], 2, "took longer than"),
        (&[&path("typed-misbehave"), "--details", "fault: unavailable-in-open"], 2, "the network is away"),
        (&[&path("typed-misbehave"), "--details", "fault: long-id"], 2, "its id has 2000 bytes"),
        (&[&path("typed-misbehave"), "--details", "fault: large-list"], 2, "bytes, 3145728 at most are taken"),
        (&[&guest("debug-echo").display().to_string()], 1, "no component that is a discovery handler"),
        (&[&path("workload")], 1, "no component that is a discovery handler"),
        (&["/nonexistent.wasm"], 1, "/nonexistent.wasm"),
    ] {
        let (ended, _, error) = said(&[&["step"], arguments].concat());
        assert_eq!((ended, error.contains(message)), (code, true), "{arguments:?}: {error}");
    }
}

#[test]
fn a_step_reaches_what_it_is_given_and_is_told_of_events() {
    let (events, misbehave) = (path("event-echo"), path("typed-misbehave"));
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("here"), "x").unwrap();
    let volume = format!("/data={}", directory.path().display());
    let details = "{watch: [/data], uevents: [tty]}";
    let arguments = [
        "step",
        &events,
        "--details",
        details,
        "--uevents",
        "tty",
        "--volume",
        &volume,
        "--links",
        "*",
        "--grant",
        "join 239.255.255.250:3702",
        "-o",
        "json",
    ];
    let event = "add /devices/x SUBSYSTEM=tty DEVNAME=ttyS9";
    let answer: Value = serde_json::from_str(&ok(&[&arguments[..], &["--event", event]].concat())).unwrap();
    let ids = |step: usize| answer["steps"][step]["devices"].to_string();
    assert!(ids(0).contains("here") && !ids(0).contains("/devices/x"), "{answer:#}");
    assert!(ids(1).contains("/devices/x"), "{answer:#}");
    // Without the grants it says what is missing, and opens nothing.
    let (code, _, error) = said(&["step", &events, "--details", details]);
    assert!(code == 2 && error.contains("akri-krustlet/uevents"), "{code}: {error}");
    let tries = |rule: &[&str]| {
        let details = json!({"fault": "reach", "tries": ["tcp 127.0.0.1:9"]}).to_string();
        let arguments = [&["step", &misbehave, "--details", &details], rule].concat();
        ok(&arguments)
    };
    let denied = tries(&[]);
    assert!(denied.contains("denied"), "{denied}");
    let refused = tries(&["--grant", "tcp 127.0.0.1:9"]);
    assert!(!refused.contains("denied"), "{refused}");
    let (code, _, error) = said(&["step", &events, "--grant", "tcp nowhere"]);
    assert!(code == 2 && error.contains("network, line 1"), "a flag that makes no sense: {code}: {error}");
    // A list, and then nothing that it wanted to be asked for.
    let (code, said, error) = said(&[
        "step",
        &path("debug-echo-typed"),
        "--details",
        "descriptions: [a]",
        "--steps",
        "2",
        "--timeout",
        "0.3",
    ]);
    assert!(
        code == 4 && said.contains("1 device(s)") && error.contains("after step 1 nothing came"),
        "{code}: {error}"
    );
    // What is compiled is executed: no guest writes there.
    let cache = tempfile::tempdir().unwrap();
    let mut command = Command::new(PROGRAM);
    let volume = format!("/x={}:rw", cache.path().display());
    command.args(["step", &path("debug-echo-typed"), "--volume", &volume]).env("XDG_CACHE_HOME", cache.path());
    let refused = fixture::output(&mut command);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("has the compiled modules in it"), "{refused:?}");
}

#[test]
fn a_module_that_asks_for_the_disk_does_not_get_it_by_the_way() {
    let directory = tempfile::tempdir().unwrap();
    let home = std::env::home_dir().unwrap().display().to_string();
    let volumes = ["/a=/:rw".to_owned(), "/b=/".to_owned(), format!("/c={home}/.ssh"), "/d=/sys".to_owned()];
    let arguments: Vec<_> = volumes.iter().flat_map(|volume| ["--volume", volume.as_str()]).collect();
    let file = annotated(directory.path(), &component("debug-echo-typed"), &arguments);
    let (code, _, error) = said(&["step", &file, "--grant-needs", "--details", "descriptions: [a]"]);
    assert_eq!(code, 0, "{error}");
    assert!(error.contains("given         a volume mounted at /d, of /sys\n"), "{error}");
    assert!(
        error.contains("The module needs what it is not given") && error.contains("mounted at /a, of /, writable"),
        "{error}"
    );
}

/// A module that says something of itself, in a directory.
fn annotated(directory: &Path, module: &Path, arguments: &[&str]) -> String {
    let output = directory.join("annotated.wasm").display().to_string();
    ok(&[&["annotate", module.to_str().unwrap(), "-o", &output], arguments].concat());
    output
}

#[test]
fn what_a_module_needs_is_written_into_it_and_told_to_whoever_runs_it() {
    let directory = tempfile::tempdir().unwrap();
    for module in [component("debug-echo-typed"), guest("debug-echo")] {
        let file = annotated(
            directory.path(),
            &module,
            &[
                "--network",
                "tcp details",
                "--uevents",
                "usb,net",
                "--volume",
                "/data=/var/lib/data:rw",
                "--version",
                "2.0",
            ],
        );
        let described: Value = serde_json::from_str(&ok(&["describe", &file, "-o", "json"])).unwrap();
        assert_eq!(described["about"]["version"], "2.0");
        let volume = json!({"path": "/data", "source": "/var/lib/data", "writable": true});
        assert_eq!(
            described["needs"],
            json!({"network": ["tcp details"], "uevents": ["usb", "net"], "volumes": [volume]})
        );
        // What is named again is another, and what is not stays; nothing piles up.
        let size = std::fs::metadata(&file).unwrap().len();
        for _ in 0..3 {
            ok(&["annotate", &file, "--uevents", "tty,mem", "--version", "2.1"]);
        }
        assert_eq!(std::fs::metadata(&file).unwrap().len(), size);
        let described: Value = serde_json::from_str(&ok(&["describe", &file, "-o", "json"])).unwrap();
        assert_eq!(described["needs"]["uevents"], json!(["tty", "mem"]));
        assert_eq!(described["needs"]["network"], json!(["tcp details"]));
        ok(&["check", &file]);
    }
    let file = directory.path().join("annotated.wasm").display().to_string();
    let needs = directory.path().join("needs.yaml");
    for (text, message) in [
        ("netwerk: []", "netwerk"),
        ("links: [a b]", "is no name"),
        ("- x", "needs.yaml"),
        ("network: [tcp x]", "network, line 1"),
    ] {
        std::fs::write(&needs, text).unwrap();
        let (code, _, error) = said(&["annotate", &file, "--needs", needs.to_str().unwrap()]);
        assert!(code == 1 && error.contains(message), "{text}: {error}");
    }
    for (arguments, message) in [
        (&["annotate", file.as_str()][..], "nothing to write"),
        (&["annotate", needs.to_str().unwrap(), "--version", "1"], "not WebAssembly"),
    ] {
        let (code, _, error) = said(arguments);
        assert!(code == 1 && error.contains(message), "{arguments:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_tells_what_a_module_needs_and_its_pod_does_not_give() {
    let directory = tempfile::tempdir().unwrap();
    let file = annotated(
        directory.path(),
        &component("debug-echo-typed"),
        &["--network", "udp 239.255.255.250:3702", "--links", "eth0", "--host-path", "/dev"],
    );
    let mut node = Node::prepare();
    let image = format!("fs://{file}");
    let mut narrow = HandlerPod { image: image.clone(), ..HandlerPod::typed("narrow", "narrow", "debug-echo-typed") };
    narrow.annotations.push(("akri-krustlet/network", "udp 239.255.255.250:1-65535"));
    node.add(&narrow);
    let mut whole = HandlerPod { image, ..HandlerPod::typed("whole", "whole", "debug-echo-typed") };
    let network = "udp 239.255.255.250:3702\ntcp details";
    whole.annotations.extend([
        ("akri-krustlet/network", network),
        ("akri-krustlet/links", "*"),
        ("akri-krustlet/allowed-host-paths", "/dev/null"),
    ]);
    node.add(&whole);
    node.run();
    // It runs all the same.
    let (_stream, ids) = node.first_list("narrow", "descriptions: [a]").await;
    assert_eq!(ids, ["a"]);
    node.first_list("whole", "descriptions: [a]").await;
    let told = "[akri-krustlet] its module needs what its pod does not give: annotation akri-krustlet/links: eth0; annotation akri-krustlet/allowed-host-paths: /dev\n";
    assert!(wait_for(|| node.log_of("narrow").contains(told)), "{}", node.log_of("narrow"));
    assert!(!node.log_of("whole").contains("needs"), "{}", node.log_of("whole"));
    // `check` says it beforehand.
    let manifest = |name: &str| node.path("manifests").join(format!("{name}.json")).display().to_string();
    let (code, _, error) = said(&["check", &file, "--pod", &manifest("narrow")]);
    assert!(code == 1 && error.contains("akri-krustlet/links: eth0"), "{error}");
    let whole = ok(&["check", &file, "--pod", &manifest("whole")]);
    assert!(whole.contains("pod           default/whole gives what it needs"), "{whole}");
    let (code, _, error) = said(&["check", &file, "--pod", &manifest("whole"), "--container", "other"]);
    assert!(code == 1 && error.contains("no pod in it has a container other"), "{error}");
}

#[test]
fn manifests_of_this_project_give_its_handlers_what_they_need() {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests");
    for name in ["http", "onvif", "opcua", "udev", "zeroconf"] {
        let pod = manifests.join(name).join("pod.yaml").display().to_string();
        let said = ok(&["check", &path(name), "--pod", &pod]);
        assert!(said.contains("gives what it needs"), "{said}");
        let described: Value = serde_json::from_str(&ok(&["describe", &path(name), "-o", "json"])).unwrap();
        assert!(described["needs"].is_object() && described["about"]["description"].is_string(), "{described:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_are_made_from_what_a_module_says_and_run_as_they_stand() {
    let udev = path("udev");
    let documents = |arguments: &[&str]| -> Vec<Value> {
        let text = ok(&[&["manifests"], arguments].concat());
        text.split("---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect()
    };
    let all = documents(&[&udev, "--image", "registry.example/udev:v1"]);
    let kinds: Vec<_> = all.iter().map(|document| document["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["DaemonSet", "Configuration"]);
    let template = &all[0]["spec"]["template"];
    assert_eq!(template["spec"]["containers"][0]["image"], "registry.example/udev:v1");
    assert_eq!(template["metadata"]["annotations"]["akri-krustlet/uevents"], "*");
    assert!(all[1]["spec"]["discoveryHandler"]["discoveryDetails"].as_str().unwrap().contains("udevRules:"));
    // A pod of it, and the details of its Configuration, as they are.
    let named = documents(&[&udev, "--name", "mine"]);
    assert_eq!(
        (named[0]["metadata"]["name"].as_str(), named[1]["metadata"]["name"].as_str()),
        (Some("mine"), Some("mine"))
    );
    let mut node = Node::prepare();
    node.arguments.extend(["--allowed-host-paths", "/dev"]);
    node.write_manifest("udev.yaml", &ok(&["manifests", &udev, "--kind", "pod"]));
    node.write_manifest("echo.yaml", &ok(&["manifests", &path("debug-echo-typed"), "--kind", "pod", "--name", "echo"]));
    let module = guest("debug-echo").display().to_string();
    let exchange = ok(&["manifests", &module, "--kind", "pod", "--handler", "exchangeEcho"]);
    node.write_manifest("exchange.yaml", &exchange);
    node.run();
    let (_stream, ids) = node.first_list("udev", r#"udevRules: ['KERNEL=="null"']"#).await;
    assert_eq!(ids, ["/devices/virtual/mem/null"]);
    let configuration = &documents(&[&path("debug-echo-typed"), "--kind", "configuration"])[0];
    let details = configuration["spec"]["discoveryHandler"]["discoveryDetails"].as_str().unwrap();
    let (_stream, ids) = node.first_list("debugEcho", details).await;
    assert_eq!(ids.len(), 1, "{details}");
    node.first_list("exchangeEcho", r#"{"descriptions": ["a"]}"#).await;
    for (arguments, message) in [
        (&["manifests", module.as_str(), "--kind", "configuration"][..], "it is no discovery handler"),
        (&["manifests", &udev, "--name", "Upper"], "lower-case"),
        (&["manifests", "./nothing.wasm"], "there is no such file"),
        (&["manifests", &path("workload"), "--handler", "x"], "is a component, and no discovery handler"),
    ] {
        let (code, _, error) = said(arguments);
        assert!(code != 0 && error.contains(message), "{arguments:?}: {error}");
    }
}
