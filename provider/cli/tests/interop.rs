//! Handlers in other languages than Rust, built by `make interop`: the same contract.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::{DEADLINE, HandlerPod, Node, PROGRAM, lines_of, next_ids};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The example in a language, if it was built.
fn example(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        println!("skipped: {variable} does not name the example of that language (make interop builds it)");
    }
    path
}

async fn finds_words(language: &str, path: PathBuf) {
    let mut node = Node::start();
    let image = format!("fs://{}", path.display());
    node.add(&HandlerPod { image, limits: r#"{"memory": "128Mi"}"#, ..HandlerPod::typed(language, "", "udev") });
    // Its name is what it says of itself.
    let (_stream, ids) = node.first_list("words", r#"{"words": ["a", 10, "ä b"]}"#).await;
    assert_eq!(ids, ["10", "a", "ä b"]);
    // Each stream has an instance of its own.
    let mut other = node.discover("words", r#"{"words": ["other"]}"#).await.unwrap();
    assert_eq!(next_ids(&mut other).await, ["other"]);
    for (details, what) in [
        (r#"{"words": "none"}"#, "words"),
        (r#"{"words": ["nothing"]}"#, r#"words: "nothing" is none"#),
        ("{}", "words"),
    ] {
        let refused = node.discover("words", details).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{details}: {refused}");
        assert!(refused.message().contains(what), "{details}: {refused}");
    }
    let log = node.log_of(language);
    assert!(log.contains("INFO 3 words"), "{log}");
    node.assert_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_in_python_answers_by_the_contract() {
    let Some(path) = example("HANDLER_IN_PYTHON") else { return };
    finds_words("python", path).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_in_javascript_answers_by_the_contract() {
    let Some(path) = example("HANDLER_IN_JAVASCRIPT") else { return };
    finds_words("javascript", path).await;
}

/// A project of `new-handler`, built, tested, run and asked by the commands of its README. Needs what brings the language's packages.
fn new_project_works(language: &str, first: &str) {
    if std::env::var_os("HANDLER_IN_PYTHON").is_none() {
        println!("skipped: make interop does it");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let project = directory.path().join("meter");
    let run = |program: &str, arguments: &[&str], at: &Path| {
        let output =
            Command::new(program).args(arguments).current_dir(at).env("AKRI_KRUSTLET", PROGRAM).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
        said
    };
    run(PROGRAM, &["new-handler", "meter", "--language", language], directory.path());
    run("make", &["--silent", "test"], &project);
    run("make", &["--silent"], &project);
    let pod = ["--pod", "manifests/pod.yaml", "--details", "@details.yaml"];
    let said = run(PROGRAM, &[&["step", "target/meter.wasm"], &pod[..]].concat(), &project);
    assert!(said.contains("METER_DEVICE=one") && said.contains("2 device(s)"), "{said}");
    // `dev` finds the Makefile, and takes what is saved.
    let mut command = Command::new(PROGRAM);
    command.arg("dev").arg(&project).stdout(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let lines = lines_of(&mut process);
    let mut said = Vec::new();
    let mut wait = |text: &str| loop {
        let Ok(line) = lines.recv_timeout(5 * DEADLINE) else { panic!("{text}: {said:#?}") };
        said.push(line.clone());
        if line.contains(text) {
            return;
        }
    };
    wait("METER_DEVICE=two");
    let source = project.join(first);
    let text = std::fs::read_to_string(&source).unwrap();
    std::fs::write(
        &source,
        text.replace("line.strip()", "line.strip().upper()")
            .replace("map(String)", "map((name) => String(name).toUpperCase())"),
    )
    .unwrap();
    wait("METER_DEVICE=TWO");
    let pid = rustix::process::Pid::from_child(&process);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(process.wait().unwrap().success());
}

#[test]
fn a_new_handler_in_python_works_as_it_stands() {
    new_project_works("python", "devices.py");
}

#[test]
fn a_new_handler_in_javascript_works_as_it_stands() {
    new_project_works("js", "devices.js");
}

/// Servers of a moment: a list by HTTP, one by a connection, and somebody who answers datagrams. Their addresses.
fn servers() -> [String; 3] {
    use std::io::{Read as _, Write as _};
    let tcp = |answer: &'static [&'static [u8]]| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 1000]);
                answer.iter().for_each(|piece| drop(stream.write_all(piece)));
            }
        });
        address
    };
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp = socket.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 1000]) {
            let _ = socket.send_to(b"me", from);
        }
    });
    let http = tcp(&[b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\npump\nvalve\n"]);
    [http, tcp(&[b"pump no.\r\nval", b"ve\r\n.\r\n"]), udp]
}

/// A project of each protocol, built, tested, and asked; the tools are those of the first one.
fn protocols_work(language: &str, tools: &[&str], protocols: &[&str]) {
    if std::env::var_os("HANDLER_IN_PYTHON").is_none() {
        println!("skipped: `make interop` builds handlers in other languages");
        return;
    }
    let [http, tcp, udp] = servers();
    let (host, port) = tcp.split_once(':').unwrap();
    let directory = tempfile::tempdir().unwrap();
    let first = directory.path().join(protocols[0]);
    for protocol in protocols {
        let project = directory.path().join(protocol);
        let run = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(arguments).current_dir(&project).env("AKRI_KRUSTLET", PROGRAM);
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{program} {arguments:?}: {said}");
            said
        };
        let made = Command::new(PROGRAM)
            .args(["new-handler", "meter", "--language", language, "--protocol", protocol])
            .arg(&project)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        if project != first {
            for tool in tools {
                std::os::unix::fs::symlink(first.join(tool), project.join(tool)).unwrap();
                // Newer than what the project says that it wants, which is the same.
                let installed =
                    std::fs::File::options().append(true).open(project.join(tool).join("installed")).unwrap();
                installed.set_modified(std::time::SystemTime::now()).unwrap();
            }
        }
        run("make", &["--silent", "test"]);
        run("make", &["--silent"]);
        let described = run(PROGRAM, &["describe", "target/meter.wasm"]);
        let (details, grants, found, needs): (String, Vec<String>, &str, &str) = match *protocol {
            "http" => {
                let grant = format!("http http://{http}/*");
                (
                    format!("url: http://{http}/list"),
                    vec!["--grant".to_owned(), grant],
                    "METER_DEVICE=valve",
                    "http details",
                )
            }
            "tcp" => {
                let grant = format!("tcp {tcp}");
                (
                    format!("{{host: {host}, port: {port}}}"),
                    vec!["--grant".to_owned(), grant],
                    "METER_DEVICE=pump no.",
                    "plant.example:7000",
                )
            }
            "udp" => {
                let grant = format!("udp {udp}");
                (
                    format!("ask: {udp}"),
                    vec!["--grant".to_owned(), grant],
                    "METER_DEVICE=127.0.0.1:",
                    "udp 239.255.0.1:4000",
                )
            }
            _ => {
                let event = "add /devices/x SUBSYSTEM=tty";
                let flags = ["--uevents", "tty", "--volume", "/sys", "--event", event];
                (String::from("class: tty"), flags.map(str::to_owned).into(), "METER_DEVICE=/", "tty")
            }
        };
        assert!(described.contains(needs), "{protocol}: {described}");
        let grants: Vec<_> = grants.iter().map(String::as_str).collect();
        let said = run(PROGRAM, &[&["step", "target/meter.wasm", "--details", &details], &grants[..]].concat());
        assert!(said.contains(found), "{protocol}: {said}");
    }
}

#[test]
fn handlers_of_each_protocol_in_python_work_as_they_stand() {
    protocols_work("python", &[".venv"], &["http", "tcp", "udp", "uevents"]);
}

#[test]
fn handlers_of_each_protocol_in_javascript_work_as_they_stand() {
    protocols_work("js", &["node_modules"], &["tcp", "udp", "uevents"]);
}
