//! Modules to registries and back: `push`, `pull`, `inspect`, with a real registry.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use base64::Engine as _;
use fixture::registry::{Access, Registry, USER};
use fixture::{HandlerPod, Node, PROGRAM, component, guest};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    // Nobody has logged in.
    command.args(arguments).env("HOME", "/nonexistent").env_remove("DOCKER_CONFIG").env_remove("XDG_RUNTIME_DIR");
    command.output().unwrap()
}

fn ok(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(!output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

fn pushed(arguments: &[&str]) -> Value {
    serde_json::from_str(&ok(&[&["push", "-o", "json"], arguments].concat())).unwrap()
}

fn is_skipped() -> bool {
    fixture::cluster::is_skipped()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_is_pulled_by_nodes_people_and_other_tools() {
    if is_skipped() {
        return;
    }
    let registry = Registry::start(Access::Public);
    let (module, typed) = (guest("debug-echo"), component("debug-echo-typed"));
    let (echo, other) = (format!("{}/echo:v1", registry.address), format!("{}/typed:v1", registry.address));
    let first = pushed(&[module.to_str().unwrap(), &echo, "--tag", "v1.0", "--annotation", "team=edge"]);
    assert_eq!(first["tags"], json!(["v1", "v1.0"]));
    assert!(first["sentBytes"].as_u64().unwrap() > std::fs::metadata(&module).unwrap().len());
    // The same module is the same image, and is not sent again.
    let again = pushed(&[module.to_str().unwrap(), &echo, "--annotation", "team=edge", "--no-clobber"]);
    assert_eq!((&again["digest"], &again["sentBytes"]), (&first["digest"], &json!(0)));

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pulled.wasm");
    for image in [format!("{}/echo:v1.0", registry.address), first["image"].as_str().unwrap().to_owned()] {
        ok(&["pull", &image, file.to_str().unwrap(), "--force"]);
        assert_eq!(std::fs::read(&file).unwrap(), std::fs::read(&module).unwrap());
    }
    let message = refused(&["pull", &echo, file.to_str().unwrap()]);
    assert!(message.contains("is there already") && message.contains("--force"), "{message}");

    ok(&["push", typed.to_str().unwrap(), &other]);
    let described: Value = serde_json::from_str(&ok(&["inspect", &other, "-o", "json"])).unwrap();
    assert_eq!(described["handler"]["name"], described["annotations"]["akri-krustlet/handler"], "{described:#}");
    assert_eq!(described["layers"][0]["mediaType"], "application/wasm");
    let text = ok(&["inspect", &echo]);
    for part in ["team=edge", "org.opencontainers.image.title=debug-echo.wasm", "module, a WASI preview 1 command"] {
        assert!(text.contains(part), "{part}: {text}");
    }

    // A node runs both.
    let mut node = Node::prepare();
    for (name, image) in [("echo", &echo), ("typed", &other)] {
        let pod = HandlerPod::new(name, name, "debug-echo").manifest();
        let mut pod: Value = serde_json::from_str(&pod).unwrap();
        pod["spec"]["containers"][0]["image"] = json!(image);
        node.write_manifest(&format!("{name}.json"), &pod.to_string());
    }
    node.run();
    for name in ["echo", "typed"] {
        node.wait_for_socket(name);
    }

    let programs = control_plane::Programs::find_or_build().unwrap().with_cluster_tools().unwrap();
    let oras = Command::new(programs.path("oras").unwrap())
        .args(["pull", "--plain-http", &echo, "--output"])
        .arg(directory.path())
        .output()
        .unwrap();
    assert!(oras.status.success(), "{}", String::from_utf8_lossy(&oras.stderr));
    assert_eq!(std::fs::read(directory.path().join("debug-echo.wasm")).unwrap(), std::fs::read(&module).unwrap());
}

/// What the Bytecode Alliance's own tool says of it, if WKG names that.
#[test]
fn what_was_pushed_is_pulled_by_wkg() {
    let Some(wkg) = std::env::var_os("WKG") else {
        println!("skipped: WKG names no program (cargo install wkg)");
        return;
    };
    if is_skipped() {
        return;
    }
    let registry = Registry::start(Access::Public);
    let (image, module) = (format!("{}/lines:v1", registry.address), fixture::component("lines"));
    pushed(&[module.to_str().unwrap(), &image]);
    let directory = tempfile::tempdir().unwrap();
    let pulled = directory.path().join("lines.wasm");
    let mut command = Command::new(wkg);
    command.args(["oci", "pull", "--insecure", &registry.address, &image, "--output"]).arg(&pulled);
    let output = fixture::output(&mut command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read(pulled).unwrap(), std::fs::read(module).unwrap());
}

#[test]
fn a_tag_of_another_image_stays_if_that_is_wanted() {
    if is_skipped() {
        return;
    }
    let registry = Registry::start(Access::Public);
    let image = format!("{}/one:v1", registry.address);
    let (first, second) = (guest("debug-echo"), guest("misbehave"));
    let digest = pushed(&[first.to_str().unwrap(), &image])["digest"].clone();
    let message = refused(&["push", second.to_str().unwrap(), &image, "--tag", "new", "--no-clobber"]);
    for part in [":v1 is there already", digest.as_str().unwrap(), "leave out --no-clobber"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    // Nothing of it.
    let missing = refused(&["inspect", &format!("{}/one:new", registry.address)]);
    assert!(missing.contains("no such image"), "{missing}");
    let other = pushed(&[second.to_str().unwrap(), &image])["digest"].clone();
    assert_ne!(other, digest);
    let text = ok(&["inspect", &image]);
    assert!(text.contains(other.as_str().unwrap()), "{text}");
}

fn login(directory: &Path, registry: &Registry, password: &str) -> String {
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("{}:{password}", USER.0));
    let path = directory.join("config.json");
    std::fs::write(&path, json!({"auths": {&registry.address: {"auth": auth}}}).to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_registry_that_wants_to_know_who_pushes_is_told() {
    if is_skipped() {
        return;
    }
    let module = guest("debug-echo");
    for access in [Access::Password, Access::Token] {
        let registry = Registry::start(access);
        let image = format!("{}/team/echo:v1", registry.address);
        let directory = tempfile::tempdir().unwrap();
        let push = ["push", module.to_str().unwrap(), &image];
        let message = refused(&push);
        for part in [registry.address.as_str(), "without credentials", "team/echo", "log in first"] {
            assert!(message.contains(part), "{part}: {message}");
        }
        let wrong = login(directory.path(), &registry, "wrong");
        let message = refused(&[&push[..], &["--registry-credentials", &wrong]].concat());
        assert!(message.contains("the user of these credentials"), "{message}");
        assert!(!message.contains("wrong\""), "{message}");
        let right = login(directory.path(), &registry, USER.1);
        ok(&[&push[..], &["--registry-credentials", &right]].concat());
        ok(&["inspect", &image, "--registry-credentials", &right]);
    }
}

/// Hands connections on to `target` and breaks off one whose client has sent `most` bytes, once.
fn breaking_proxy(target: String, most: usize) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (broken, told) = (Arc::new(AtomicUsize::new(0)), Arc::default());
    let counted: Arc<AtomicUsize> = Arc::clone(&told);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect(&target).unwrap();
            let (broken, counted) = (broken.clone(), counted.clone());
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || {
                let (mut buffer, mut sum) = ([0; 4096], 0);
                while let Ok(read @ 1..) = from.read(&mut buffer) {
                    sum += read;
                    if sum > most && broken.fetch_add(1, Ordering::SeqCst) == 0 {
                        counted.fetch_add(1, Ordering::SeqCst);
                        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                        return;
                    }
                    if to.write_all(&buffer[..read]).is_err() {
                        return;
                    }
                }
                let _ = to.shutdown(Shutdown::Write);
            });
            let (mut from, mut to) = (server, client);
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
    });
    (address, told)
}

#[test]
fn an_upload_that_breaks_off_goes_on() {
    if is_skipped() {
        return;
    }
    let registry = Registry::start(Access::Public);
    let (proxy, broken) = breaking_proxy(registry.address.clone(), 50_000);
    let module = guest("debug-echo");
    let digest = pushed(&[module.to_str().unwrap(), &format!("{proxy}/echo:v1")])["digest"].clone();
    assert_eq!(broken.load(Ordering::SeqCst), 1);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("echo.wasm");
    ok(&["pull", &format!("{}/echo@{}", registry.address, digest.as_str().unwrap()), file.to_str().unwrap()]);
    assert_eq!(std::fs::read(&file).unwrap(), std::fs::read(&module).unwrap());
}

#[test]
fn what_cannot_be_pushed_is_told_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let (text, none) = (directory.path().join("module.txt"), directory.path().join("none.wasm"));
    std::fs::write(&text, "no module").unwrap();
    let closed = format!("127.0.0.1:{}", control_plane::port::free().unwrap());
    let (module, here) = (guest("debug-echo"), format!("{closed}/x:v1"));
    for (module, image, extra, message) in [
        (text.to_str().unwrap(), here.as_str(), &[][..], "module.txt would not run"),
        (none.to_str().unwrap(), &here, &[], "none.wasm"),
        (module.to_str().unwrap(), &here, &[], &closed),
        (module.to_str().unwrap(), "registry.example/Upper:v1", &[], "is not a repository"),
        (module.to_str().unwrap(), "registry.example/x:v1", &["--tag", "a tag"], "is not a tag"),
        (module.to_str().unwrap(), "registry.example/x:v1", &["--annotation", "nothing"], "expected KEY=VALUE"),
        (
            module.to_str().unwrap(),
            "registry.example/x@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            &[],
            "push to a tag",
        ),
        (module.to_str().unwrap(), &here, &["--registry-credentials", "/nonexistent"], "/nonexistent"),
    ] {
        let said = refused(&[&["push", module, image], extra].concat());
        assert!(said.contains(message), "{message}: {said}");
    }
    let said = refused(&["pull", &here, directory.path().join("x.wasm").to_str().unwrap()]);
    assert!(said.contains(&closed), "{said}");
    // Nothing is left behind.
    let left = std::fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(left, 1);
}
