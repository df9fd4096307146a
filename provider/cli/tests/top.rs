//! `top` and the web page: what a node is at, to be looked at.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::{HandlerPod, Node, wait_for};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;

/// A node with a handler that has found something, and whoever has asked it.
async fn node(arguments: &[&'static str]) -> (Node, tonic::Streaming<akri_proto::v0::DiscoverResponse>) {
    let mut node = Node::prepare();
    node.arguments.extend(arguments);
    node.add(&HandlerPod::typed("echo", "debugEcho", "debug-echo-typed"));
    node.run();
    node.wait_for_socket("debugEcho");
    node.wait_for_running("echo");
    let mut stream = node.discover("debugEcho", "descriptions: [<img src=x onerror=alert(1)>, two]").await.unwrap();
    assert_eq!(stream.message().await.unwrap().unwrap().devices.len(), 2);
    (node, stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn top_shows_handlers_devices_containers_and_logs() {
    let (mut node, stream) = node(&[]).await;
    let top = || {
        let output = node.command(&["top", "--once"]);
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (ok, text) = top();
    assert!(ok, "{text}");
    for part in [
        "debugEcho",
        "shared",
        "serves",
        "two",
        "<img src=x",
        "default/echo/",
        "running",
        " of 64.0 MiB",
        "2 devices",
        "Started",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    drop(stream);
    assert!(wait_for(|| !top().1.contains("<img src=x")), "the devices of a stream go with it: {}", top().1);
    let said = node.command(&["top", "--interval", "0"]);
    assert!(String::from_utf8_lossy(&said.stderr).contains("--interval 0"));
    // Its socket is not for others.
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(node.path("data/overview.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o007, 0, "{mode:o}");
    node.terminate();
    let (ok, text) = {
        let output = node.command(&["top", "--once"]);
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    assert!(!ok && text.contains("no node runs here with the data directory") && text.contains("--data-dir"), "{text}");
}

/// Head and body of an answer.
fn get(port: u16, path: &str, host: &str) -> (String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_web_page_shows_the_same_and_runs_nothing_of_a_guests() {
    let port = control_plane::port::free().unwrap();
    let address: &'static str = format!("127.0.0.1:{port}").leak();
    let (node, _stream) = node(&["--web", "--metrics-address", address]).await;
    assert!(wait_for(|| TcpStream::connect(("127.0.0.1", port)).is_ok()));
    let (head, page) = get(port, "/", "localhost");
    assert!(head.starts_with("http/1.1 200") && head.contains("content-type: text/html"), "{head}");
    for rule in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"] {
        assert!(head.contains(rule), "{rule}: {head}");
    }
    // All of it is here, and nothing of it is written in the page itself.
    assert!(
        !page.contains("http:") && !page.contains("https:") && !page.contains("onclick") && !page.contains("style="),
        "{page}"
    );
    let (_, script) = get(port, "/page.js", "localhost");
    assert!(!["innerHTML", "eval(", "document.write", "http:", "https:"].iter().any(|word| script.contains(word)));
    let (head, overview) = get(port, "/overview", "127.0.0.1");
    assert!(head.contains("application/json") && overview.contains("<img src=x onerror=alert(1)>"), "{head}{overview}");
    let parsed: serde_json::Value = serde_json::from_str(&overview).unwrap();
    let container = parsed["handlers"][0]["container"].as_str().unwrap();
    let (_, log) = get(port, &format!("/logs/{container}"), "localhost");
    assert!(log.contains("2 devices"), "{log}");
    let (head, why) = get(port, "/logs/default/nobody/x", "localhost");
    assert!(head.starts_with("http/1.1 404") && why.contains("default/nobody is not on this node"), "{head}{why}");
    for path in ["/logs/x", "/logs/a/b/c/d", "/logs/..%2f..%2f/etc/passwd", "/page.html", "/../page.js"] {
        assert!(get(port, path, "localhost").0.starts_with("http/1.1 404"), "{path}");
    }
    // A page of somebody else's in a browser of this machine.
    assert!(get(port, "/overview", "evil.example").0.starts_with("http/1.1 421"));
    let Some(browser) = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()))
    else {
        println!("skipped: there is no Chromium here (Debian: apt-get install chromium)");
        return;
    };
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new(browser);
    command
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--enable-logging=stderr",
            "--log-level=0",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(["--virtual-time-budget=6000", "--dump-dom"])
        .arg(format!("http://localhost:{port}/"));
    let output = fixture::output(&mut command);
    let (shown, said) =
        (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned());
    for part in [
        "<td>debugEcho (shared)</td>",
        "<td>two</td>",
        "&lt;img src=x onerror=alert(1)&gt;",
        "default/echo",
        "<td class=\"good\">serves</td>",
    ] {
        assert!(shown.contains(part), "{part}: {shown}{said}");
    }
    let complaints: Vec<_> =
        said.lines().filter(|line| line.contains("CONSOLE") || line.contains("Content Security Policy")).collect();
    assert!(complaints.is_empty() && !shown.contains("<img"), "{complaints:#?}");
    drop(node);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_of_this_machine_has_metrics_and_no_more_unless_it_is_asked_for() {
    let port = control_plane::port::free().unwrap();
    let address: &'static str = format!("127.0.0.1:{port}").leak();
    let (_node, _stream) = node(&["--metrics-address", address]).await;
    assert!(wait_for(|| TcpStream::connect(("127.0.0.1", port)).is_ok()));
    assert!(get(port, "/metrics", "localhost").0.starts_with("http/1.1 200"));
    for path in ["/", "/page.js", "/overview", "/logs/default/echo/echo"] {
        assert!(get(port, path, "localhost").0.starts_with("http/1.1 404"), "{path}");
    }
}
