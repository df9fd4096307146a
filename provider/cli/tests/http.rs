//! Requests of components by HTTP: what rules give, what they do not, and what hostile servers and guests make of them. All of it
//! on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::{HandlerPod, Node};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A server that says what it was asked; and how often that was.
struct Server {
    address: SocketAddr,
    asked: Arc<AtomicU64>,
}

impl Server {
    /// `/redirect` leads to another place, `/slow` never ends, `/large` has 65 MiB, `/silent` says nothing, `/nonsense` no HTTP.
    fn start(elsewhere: Option<SocketAddr>, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
        let counted = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (counted, tls) = (counted.clone(), tls.clone());
                std::thread::spawn(move || match tls {
                    None => serve(&stream, &stream, elsewhere, &counted),
                    Some(tls) => {
                        let mut stream = StreamOwned::new(ServerConnection::new(tls).unwrap(), stream);
                        let mut head = [0; 4096];
                        let length = stream.read(&mut head).unwrap_or(0);
                        serve(&head[..length], stream, elsewhere, &counted);
                    }
                });
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

fn serve(from: impl Read, mut to: impl Write, elsewhere: Option<SocketAddr>, asked: &AtomicU64) {
    let mut lines = BufReader::new(from).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let Some(first) = lines.next() else { return };
    asked.fetch_add(1, Ordering::Relaxed);
    let host = lines.find_map(|line| line.strip_prefix("host: ").map(str::to_owned)).unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default();
    let _ = match path {
        "/devices/redirect" => {
            write!(
                to,
                "HTTP/1.1 302 Found\r\nlocation: http://{}/secret\r\ncontent-length: 0\r\n\r\n",
                elsewhere.unwrap()
            )
        }
        "/devices/slow" => (|| {
            write!(to, "HTTP/1.1 200 OK\r\n\r\n")?;
            // Until the guest goes.
            loop {
                to.write_all(b"x")?;
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        })(),
        "/devices/large" => (|| {
            write!(to, "HTTP/1.1 200 OK\r\n\r\n")?;
            (0..65).try_for_each(|_| to.write_all(&vec![b'x'; 1 << 20]))
        })(),
        "/devices/silent" => {
            // Until the connection goes.
            let _ = lines.next();
            std::thread::sleep(std::time::Duration::from_secs(60));
            Ok(())
        }
        "/devices/nonsense" => write!(to, "SSH-2.0-what?\r\n\r\n"),
        path => {
            let said = format!("{host} {path}");
            write!(to, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{said}", said.len())
        }
    };
}

/// A node with a guest that has these rules.
fn node_with(mut node: Node, name: &str, rules: &str) -> Node {
    node.run();
    let mut pod = HandlerPod::typed(name, name, "typed-misbehave");
    pod.annotations.push(("akri-krustlet/network", rules));
    node.add(&HandlerPod::new("witness", "debugEcho", "debug-echo"));
    node.add(&pod);
    node.wait_for_running(name);
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_asks_what_its_pod_grants_and_is_told_no_elsewhere() {
    let other = Server::start(None, None);
    let server = Server::start(Some(other.address), None);
    let at = |path: &str| format!("http http://{}{path}", server.address);
    let rules = format!(
        "http http://{}/devices/*\nhttp http://[0.0.0.0/0]:1-65535\nhttp http://*.localhost:{}\n",
        server.address,
        server.address.port()
    );
    let mut node = node_with(Node::prepare(), "asks", &rules);
    let tries = [
        at("/devices/1?page=2"),
        at("/other"),
        at("/devices/..%2fother"),
        at("/devices/../other"),
        format!("http http://{}/", other.address),
        format!("http http://localhost:{}/devices/1", server.address.port()),
        format!("http http://a.localhost:{}/devices/1", server.address.port()),
        "http http://169.254.169.254/latest/meta-data".to_owned(),
        format!("follow http://{}/devices/redirect", server.address),
        at("/devices/nonsense"),
        "http http://127.0.0.1:99999/".to_owned(),
        "http ftp://127.0.0.1/".to_owned(),
    ];
    let found = node.outcomes("asks", &tries).await;
    assert_eq!(found[0], format!("200 {} /devices/1?page=2", server.address));
    for (what, outcome) in tries[1..9].iter().zip(&found[1..9]) {
        let unresolved = what.contains("a.localhost") && outcome.contains("leads nowhere");
        assert!(outcome == "Denied" || unresolved, "{what}: {outcome}");
    }
    assert_eq!(found[9..], [r#"Failed("the server does not speak HTTP")"#, "Url", "Url"]);
    // What was denied was not asked.
    assert_eq!((server.asked(), other.asked()), (3, 0));
    node.wait_for_log(&format!("network: request to http://{}/ denied: it is this machine's", other.address));
    node.wait_for_log(&format!("network: request to http://{}/other denied: it is this machine's", server.address));
    node.assert_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_server_and_a_greedy_guest_are_bounded() {
    let server = Server::start(None, None);
    let at = |what: &str, path: &str| format!("{what} http://{}{path}", server.address);
    let mut node = node_with(Node::prepare(), "greedy", &format!("http http://{}", server.address));
    let tries = [
        at("http", "/devices/slow"),
        at("http", "/devices/silent"),
        at("http", "/devices/large"),
        "long-words".to_owned(),
        at("many-requests 300", "/devices/1"),
    ];
    let found = node.outcomes("greedy", &tries).await;
    assert_eq!(found, ["Timeout", "Timeout", "TooLong", "[false, false, false, false]", "300 answered"]);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let rules = format!("http http://{}", silent.local_addr().unwrap());
    let mut pod = HandlerPod::typed("keeps", "keeps", "typed-misbehave");
    pod.annotations.push(("akri-krustlet/network", &rules));
    node.add(&pod);
    node.wait_for_running("keeps");
    let tries = [format!("keep-requests 40 http://{}", silent.local_addr().unwrap())];
    assert_eq!(node.outcomes("keeps", &tries).await, ["32 kept, 8 refused"]);
    node.assert_undisturbed().await;
}

/// A server's configuration with a certificate for 127.0.0.1 by an authority whose certificate is written to a file.
fn certified(authority_file: &Path) -> Arc<ServerConfig> {
    let mut of_authority = CertificateParams::new(Vec::new()).unwrap();
    of_authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(of_authority, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(authority_file, authority.pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_shows_a_certificate_that_the_machine_trusts_or_the_rule_takes_any() {
    let directory = tempfile::tempdir().unwrap();
    let (trusted, unknown) = (directory.path().join("trusted.pem"), directory.path().join("unknown.pem"));
    let (known, stranger) =
        (Server::start(None, Some(certified(&trusted))), Server::start(None, Some(certified(&unknown))));
    let plain = Server::start(None, None);
    let rules = format!(
        "http https://{0}/\nhttp https://{1}/\nhttp https://{1}/any any-certificate\nhttp https://{2}/\n",
        known.address, stranger.address, plain.address
    );
    let mut node = Node::prepare();
    node.environment.push(("SSL_CERT_FILE", trusted));
    node.environment.push(("SSL_CERT_DIR", directory.path().join("none")));
    let mut node = node_with(node, "tls", &rules);
    let tries = [
        format!("http https://{}/", known.address),
        format!("http https://{}/", stranger.address),
        format!("http https://{}/any", stranger.address),
        format!("http https://{}/", plain.address),
        format!("http http://{}/", known.address),
    ];
    let found = node.outcomes("tls", &tries).await;
    assert_eq!(found[0], format!("200 {} /", known.address));
    assert!(found[1].contains("its certificate is not one that the node trusts"), "{found:?}");
    assert_eq!(found[2], format!("200 {} /any", stranger.address));
    assert_eq!(found[3..], [r#"Failed("TLS failed")"#, "Denied"]);
    node.assert_undisturbed().await;
}
