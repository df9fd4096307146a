//! What a handler saw, written down and given to it again: `step --record`, `step --replay`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::{PROGRAM, component};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Exit code, standard output and error.
fn said(arguments: &[&str]) -> (i32, String, String) {
    static CACHE: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());
    let mut command = Command::new(PROGRAM);
    command.arg("step").args(arguments).env("XDG_CACHE_HOME", CACHE.path());
    let Output { status, stdout, stderr } = fixture::output(&mut command);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn path(component_name: &str) -> String {
    component(component_name).display().to_string()
}

/// Handlers and their recordings of real programs.
fn recordings() -> Vec<(String, PathBuf)> {
    let handlers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wasm-handlers");
    let of = |name: &str| {
        let files = std::fs::read_dir(handlers.join(name).join("tests")).unwrap().flatten();
        files.map(|file| (path(name), file.path())).collect::<Vec<_>>()
    };
    ["http", "onvif", "opcua", "udev", "zeroconf"].iter().flat_map(|name| of(name)).collect()
}

#[test]
fn what_was_recorded_of_real_programs_is_said_again_each_time() {
    let recordings = recordings();
    assert!(recordings.len() >= 5);
    for (module, recording) in recordings {
        let recording = recording.display().to_string();
        let replay = || said(&[&module, "--replay", &recording, "-o", "json"]);
        let (code, first, error) = replay();
        assert_eq!(code, 0, "{recording}: {first}{error}");
        let steps: Value = serde_json::from_str(&first).unwrap();
        let lists = steps["steps"].as_array().unwrap().iter().filter(|step| step["devices"].is_array());
        assert!(lists.count() > 0, "{recording}");
        // To the last instruction.
        for _ in 0..20 {
            assert_eq!(replay().1, first, "{recording}");
        }
    }
}

/// A server of a list, which is another one each time, and who asked it.
fn server() -> String {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let head: Vec<_> =
                BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            assert!(head.iter().any(|line| line == "authorization: Bearer hunter22-and-more"), "{head:?}");
            let body = match ASKED.fetch_add(1, Ordering::Relaxed) {
                0 => "pump\nvalve of hunter22-and-more\n",
                1 => "",
                _ => "valve of hunter22-and-more\n",
            };
            let _ = match body {
                "" => write!(stream, "HTTP/1.1 503 Busy\r\nset-cookie: of-a-session\r\ncontent-length: 0\r\n\r\n"),
                body => write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nstatus: 200 OK\r\nend: x\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                ),
            };
        }
    });
    format!("http://{address}/list?token=hunter22-and-more")
}

#[test]
fn a_handler_is_recorded_without_secrets_and_held_to_what_it_said() {
    let (http, url, directory) = (path("http"), server(), tempfile::tempdir().unwrap());
    let file = |name: &str| directory.path().join(name).display().to_string();
    let grant = format!("http {}*", url.split("list").next().unwrap());
    let details = format!(
        r#"{{"url": "{url}", "interval": 1, "headers": {{"authorization": {{"property": "token", "prefix": "Bearer "}}}}}}"#
    );
    let record = |to: &str, more: &[&str]| {
        let asked = ["--details", &details, "--property", "token=hunter22-and-more\n", "--grant", &grant];
        let arguments = [&[&http as &str], &asked[..], &["--steps", "3", "--record", to], more].concat();
        let (code, out, error) = said(&arguments);
        assert_eq!(code, 0, "{out}{error}");
        std::fs::read_to_string(to).unwrap()
    };
    let recording = file("list.rec");
    let text = record(&recording, &[]);
    for part in [
        "property token withheld",
        "> authorization \"withheld\"",
        "< set-cookie \"withheld\"",
        "valve of withheld",
        "status 503",
        "unavailable",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("hunter22") && !text.contains("of-a-session"), "{text}");
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&recording).unwrap().permissions().mode() & 0o777, 0o600);
    let (code, out, error) = said(&[&http, "--replay", &recording]);
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.contains("valve of withheld") && !out.contains("not recorded"), "{out}");
    let (code, _, error) = said(&[&http, "--replay", &recording, "--property", "token=hunter22-and-more"]);
    assert_eq!(code, 0, "with the value that is withheld: {error}");
    // The clock of the replay is the recording's.
    assert!(out.contains("at            2.0"), "{out}");
    // Somebody else's file is not written over; a recording is.
    std::fs::write(file("notes.txt"), "mine").unwrap();
    let (code, _, error) = said(&[&http, "--details", &details, "--record", &file("notes.txt")]);
    assert!(code != 0 && error.contains("it is there already and is no recording"), "{error}");
    assert_eq!(std::fs::read_to_string(file("notes.txt")).unwrap(), "mine");
    let (code, _, error) = said(&[&http, "--details", &details, "--record", "/nonexistent/x.rec"]);
    assert!(code != 0 && error.contains("/nonexistent/x.rec cannot be written"), "{error}");
    let whole = record(&recording, &["--record-secrets"]);
    assert!(
        whole.contains("property token \"hunter22-and-more\\n\"") && whole.contains("Bearer hunter22-and-more"),
        "{whole}"
    );
    // Edited: another answer has another list, and one that it does not wait for is told.
    std::fs::write(&recording, text.replace("\"pump\\n\"", "\"pumpe\\n\"")).unwrap();
    let (code, _, error) = said(&[&http, "--replay", &recording]);
    assert!(
        code == 5 && error.contains("as number 1: list \"pumpe\"") && error.contains("recorded: list \"pump\""),
        "{error}"
    );
    let other = text.replace("http 1 GET http", "http 1 GET https").replace("http 2 GET http", "http 2 GET https");
    std::fs::write(&recording, other.replace("http 3 GET http", "http 3 GET https")).unwrap();
    let (code, out, error) = said(&[&http, "--replay", &recording]);
    assert!(code == 5 && out.contains("not recorded  GET http://"), "{out}{error}");
    // What is none is told with its place and the way out.
    let cut = &text[..text.rfind("\n").unwrap()];
    let cut = &cut[..cut.rfind("\n").unwrap() + 1];
    for (text, message) in [
        (cut, "the recording is cut: its last line is no `end`. Record it again, or end it by hand"),
        ("hello", "line 1: it is no recording"),
        ("akri-krustlet recording 9\n", "of another version of akri-krustlet"),
        (&text.replace("status 503", "status many"), "\"many\" is not a status"),
    ] {
        std::fs::write(&recording, text).unwrap();
        let (code, _, error) = said(&[&http, "--replay", &recording]);
        assert!(code == 1 && error.contains(message) && error.contains("list.rec: line "), "{error}");
    }
    let (code, _, error) = said(&[&http, "--replay", "/nonexistent.rec"]);
    assert!(code == 1 && error.contains("/nonexistent.rec: No such file"), "{error}");
    let (code, _, error) = said(&[&http, "--replay", &recording, "--grant", "dns *"]);
    assert!(code == 2 && error.contains("cannot be used with"), "{error}");
}

#[test]
fn a_replay_goes_nowhere_and_ends() {
    let (events, misbehave, directory) = (path("event-echo"), path("typed-misbehave"), tempfile::tempdir().unwrap());
    let recording = directory.path().join("x.rec").display().to_string();
    let replay = |module: &str, text: &str, more: &[&str]| {
        std::fs::write(&recording, format!("akri-krustlet recording 1\n{text}")).unwrap();
        said(&[&[module, "--replay", &recording], more].concat())
    };
    // What comes in the recording comes, whatever this machine has: no rule and no right is needed.
    let details = r#"details "{\"uevents\":[\"tty\"],\"watch\":[\"/data\"],\"groups\":[\"239.1.2.3:4000\"]}""#;
    let (code, out, error) = replay(
        &events,
        &format!(
            "{details}\nvolume /data\n0 directory /data/x\n0 link eth0 10.0.0.1/24 multicast\n1 uevent add /devices/x SUBSYSTEM=tty DEVNAME=ttyS9\n\
             2 file /data/new \"1\"\n2 changed /data new\n3 group 239.1.2.3:4000 < 10.0.0.7:5 eth0 \"hello\"\n4 end\n"
        ),
        &[],
    );
    assert!(code == 5 && out.contains("/devices/x") && out.contains("3.000 s of the recording"), "{out}{error}");
    // A guest that computes for ever has no other time than this machine's.
    let (code, _, error) =
        replay(&misbehave, "details \"{\\\"fault\\\":\\\"loop\\\"}\"\n1 end\n", &["--timeout", "0.5"]);
    assert!(code == 1 && error.contains("took longer than"), "{error}");
    for (text, message) in [
        ("0 symlink /data /etc\n", "is behind the link /data"),
        ("0 symlink /data/l /etc\n0 file /data/l/passwd \"x\"\n", "/data/l/passwd is behind the link /data/l"),
        ("0 file /data/../../x \"x\"\n", "absolute path without `..`"),
    ] {
        let (code, _, error) = replay(&events, &format!("{details}\nvolume /data\n{text}1 end\n"), &[]);
        assert!(code == 1 && error.contains(message), "{error}");
    }
    // Refused details are what they were.
    let (code, out, error) = replay(&events, "details \"1\"\n0 invalid-details \"x\"\n1 end\n", &[]);
    assert!(code == 5 && error.contains("recorded: invalid-details \"x\""), "{out}{error}");
}

/// Who does not answer is not one who refuses.
#[test]
fn a_server_that_does_not_answer_is_silent_in_a_replay_too() {
    // With a connection that nobody accepts its queue is full, and what comes then gets no answer.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let _first = std::net::TcpStream::connect(address).unwrap();
    let (opcua, directory) = (path("opcua"), tempfile::tempdir().unwrap());
    let recording = directory.path().join("x.rec").display().to_string();
    let details =
        format!(r#"{{"opcuaDiscoveryMethod": {{"standard": {{"discoveryUrls": ["opc.tcp://{address}/"]}}}}}}"#);
    let grant = format!("tcp {address}");
    let (_, out, error) = said(&[&opcua, "--details", &details, "--grant", &grant, "--record", &recording]);
    assert!(format!("{out}{error}").contains("no answer in time"), "{out}{error}");
    let text = std::fs::read_to_string(&recording).unwrap();
    assert!(text.contains(&format!("failed {address} timeout")), "{text}");
    let (code, out, error) = said(&[&opcua, "--replay", &recording]);
    assert!(code == 0 && out.contains("no answer in time") && !out.contains("not recorded"), "{out}{error}{text}");
}
