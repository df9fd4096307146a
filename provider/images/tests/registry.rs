//! Registries as people have them: who asks for credentials where, how images are built and named.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

use akri_krustlet_images::{
    Access, Credentials, GarbageCollection, ImagePolicy, Images, ImagesConfig, NodeCredentials, PullError, reference,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha512};
use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

const MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// What of a request matters.
#[derive(Clone, Debug)]
struct Seen {
    request: String,
    authorization: Option<String>,
    body: String,
}

type Answer = Box<dyn Fn(&Seen, &str) -> Option<(u16, String, Vec<u8>)> + Send + Sync>;

/// A registry of blobs and manifests by path; `gate` answers first, if it does.
struct Registry {
    address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Registry {
    fn start(content: HashMap<String, Vec<u8>>, gate: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (own, log) = (address.clone(), seen.clone());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let Some(request) = read(&stream) else { continue };
                log.lock().unwrap().push(request.clone());
                let path = request.request.split(' ').nth(1).unwrap_or_default();
                let (status, headers, body) = gate(&request, &own).unwrap_or_else(|| match content.get(path) {
                    Some(body) => (200, String::new(), body.clone()),
                    None => (404, String::new(), b"{}".to_vec()),
                });
                let length = body.len();
                let head =
                    format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
                let _ = stream.write_all(&[head.as_bytes(), &body].concat());
            }
        });
        Self { address, seen }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn read(stream: &TcpStream) -> Option<Seen> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut request = String::new();
    reader.read_line(&mut request).ok().filter(|length| *length > 0)?;
    let (mut authorization, mut length, mut line) = (None, 0, String::new());
    while reader.read_line(&mut line).unwrap_or(0) > 2 {
        let (name, value) = line.split_once(':')?;
        match name.to_ascii_lowercase().as_str() {
            "authorization" => authorization = Some(value.trim().to_owned()),
            "content-length" => length = value.trim().parse().ok()?,
            _ => {}
        }
        line.clear();
    }
    let mut body = vec![0; length];
    std::io::Read::read_exact(&mut reader, &mut body).ok()?;
    Some(Seen { request, authorization, body: String::from_utf8_lossy(&body).into_owned() })
}

fn open_to_all() -> Answer {
    Box::new(|_, _| None)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(content: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(content)))
}

fn sha512(content: &[u8]) -> String {
    format!("sha512:{}", hex(&Sha512::digest(content)))
}

/// The content of a repository `app`.
#[derive(Default)]
struct Repository(HashMap<String, Vec<u8>>);

impl Repository {
    fn blob(&mut self, media_type: &str, content: &[u8], digest: &str) -> Value {
        self.0.insert(format!("/v2/app/blobs/{digest}"), content.to_vec());
        json!({"mediaType": media_type, "digest": digest, "size": content.len()})
    }

    fn manifest(&mut self, tag: &str, manifest: &Value) -> Value {
        let body = manifest.to_string().into_bytes();
        let media_type = manifest["mediaType"].clone();
        for name in [tag, &sha256(&body), &sha512(&body)] {
            self.0.insert(format!("/v2/app/manifests/{name}"), body.clone());
        }
        json!({"mediaType": media_type, "digest": sha256(&body), "size": body.len()})
    }

    /// An image of one layer.
    fn image(&mut self, tag: &str, layer: (&str, &[u8]), config: (&str, &Value)) -> Value {
        let layer = self.blob(layer.0, layer.1, &sha256(layer.1));
        let content = config.1.to_string();
        let config = self.blob(config.0, content.as_bytes(), &sha256(content.as_bytes()));
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        self.manifest(tag, &json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer]}))
    }

    fn index(&mut self, tag: &str, entries: &[(&Value, Option<(&str, &str)>)]) -> Value {
        let entries: Vec<_> = entries
            .iter()
            .map(|(entry, platform)| {
                let mut entry = (*entry).clone();
                if let Some((os, architecture)) = platform {
                    entry["platform"] = json!({"os": os, "architecture": architecture});
                }
                entry
            })
            .collect();
        let media_type = "application/vnd.oci.image.index.v1+json";
        self.manifest(tag, &json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}))
    }
}

const ARTIFACT: (&str, &str) = ("application/wasm", "application/vnd.wasm.config.v0+json");
const IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

fn of_artifact() -> Repository {
    let mut repository = Repository::default();
    repository.image("v1", (ARTIFACT.0, MODULE), (ARTIFACT.1, &json!({})));
    repository
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn images(directory: &Path) -> Images {
    let config = ImagesConfig {
        directory: directory.to_owned(),
        insecure_registries: Vec::new(),
        credentials: NodeCredentials::default(),
        module_size_limit: 1 << 20,
        garbage_collection: GarbageCollection::default(),
        policy: ImagePolicy::default(),
    };
    Images::open(config).unwrap()
}

/// Pulls an image of the registry; what its module is.
async fn pull(registry: &Registry, image: &str, credentials: &Credentials) -> Result<Vec<u8>, PullError> {
    let directory = tempfile::tempdir().unwrap();
    let images = images(directory.path());
    let reference = reference::parse(&format!("{}/{image}", registry.address)).unwrap();
    let (_, path) = images.pull(&reference, credentials).await?;
    Ok(std::fs::read(path).unwrap())
}

fn credentials(registry: &Registry, entry: &Value) -> Credentials {
    let json = json!({"auths": {registry.address.clone(): entry}}).to_string();
    Credentials::from_docker_config(json.as_bytes()).unwrap()
}

/// `/v2/` is open; whoever asks for more is challenged.
fn gate(challenge: &'static str, right: &'static str) -> Answer {
    Box::new(move |seen, own| {
        let path = seen.request.split(' ').nth(1).unwrap_or_default();
        if path.starts_with("/token") {
            let by_password = seen.authorization.as_deref() == Some("Basic dXNlcjpzZWNyZXQ=");
            let by_identity = seen.request.starts_with("POST ") && seen.body.contains("refresh_token=of-login");
            let status = if by_password || by_identity { 200 } else { 401 };
            return Some((status, String::new(), json!({"access_token": "good"}).to_string().into_bytes()));
        }
        if path == "/v2/" || seen.authorization.as_deref() == Some(right) {
            return None;
        }
        Some((401, format!("WWW-Authenticate: {}\r\n", challenge.replace("OWN", own)), b"{}".to_vec()))
    })
}

const BEARER: &str = "Bearer realm=\"http://OWN/token\",service=\"s\",scope=\"repository:app:pull\"";

#[tokio::test]
async fn credentials_are_given_wherever_they_are_asked_for() {
    let by_password = json!({"username": "user", "password": "secret"});
    let by_identity = json!({"auth": "dXNlcjo=", "identitytoken": "of-login"});
    for (challenge, right, entry) in [
        (BEARER, "Bearer good", &by_password),
        (BEARER, "Bearer good", &by_identity),
        ("Basic realm=\"r\"", "Basic dXNlcjpzZWNyZXQ=", &by_password),
        ("Negotiate, Basic realm=\"r\", charset=\"UTF-8\"", "Basic dXNlcjpzZWNyZXQ=", &by_password),
    ] {
        let registry = Registry::start(of_artifact().0, gate(challenge, right));
        let module = pull(&registry, "app:v1", &credentials(&registry, entry)).await;
        assert_eq!(module.unwrap(), MODULE, "{challenge}");
        let anonymous = pull(&registry, "app:v1", &Credentials::default()).await.unwrap_err().to_string();
        assert!(anonymous.contains("imagePullSecret"), "{challenge}: {anonymous}");
        let wrong = credentials(&registry, &json!({"username": "user", "password": "wrong"}));
        let refused = pull(&registry, "app:v1", &wrong).await.unwrap_err().to_string();
        assert!(refused.contains("refuses the credentials"), "{challenge}: {refused}");
    }
}

#[tokio::test]
async fn who_does_not_ask_for_credentials_gets_none() {
    let registry = Registry::start(of_artifact().0, open_to_all());
    let entry = credentials(&registry, &json!({"username": "user", "password": "secret"}));
    assert_eq!(pull(&registry, "app:v1", &entry).await.unwrap(), MODULE);
    assert!(registry.seen().iter().all(|seen| seen.authorization.is_none()), "{:?}", registry.seen());
}

#[tokio::test]
async fn images_of_any_build_and_name_are_understood() {
    let mut repository = Repository::default();
    let empty = json!({});
    let wasi = json!({"os": "wasip1", "architecture": "wasm"});
    let linux = json!({"os": "linux", "architecture": "amd64"});
    let unknown = json!({"config": {"Entrypoint": ["app.wasm"]}});
    let archive = tar(&[("app.wasm", MODULE)]);
    repository.image("oras", (LAYER, MODULE), ("application/vnd.oci.empty.v1+json", &empty));
    repository.image(
        "oras-typed",
        ("application/octet-stream", MODULE),
        ("application/vnd.unknown.config.v1+json", &empty),
    );
    let wasme = "application/vnd.module.wasm.content.layer.v1+wasm";
    repository.image("wasme", (wasme, MODULE), ("application/vnd.module.wasm.config.v1+json", &empty));
    let image = repository.image("image", (LAYER, &archive), (IMAGE_CONFIG, &wasi));
    repository.image("no-platform", (LAYER, &archive), (IMAGE_CONFIG, &unknown));
    repository.image("other-compression", (&format!("{LAYER}+gzip"), &archive), (IMAGE_CONFIG, &wasi));
    let compat = repository.image("linux", (LAYER, &archive), (IMAGE_CONFIG, &linux));
    let body = repository.0["/v2/app/manifests/linux"].clone();
    let mut annotated: Value = serde_json::from_slice(&body).unwrap();
    annotated["annotations"] = json!({"module.wasm.image/variant": "compat"});
    let annotated = repository.manifest("compat", &annotated);
    let inner = repository.index("inner", &[(&compat, Some(("linux", "amd64"))), (&image, Some(("wasi", "wasm")))]);
    repository.index("outer", &[(&inner, None)]);
    repository.index("reversed", &[(&compat, Some(("linux", "amd64"))), (&image, Some(("wasm", "wasi")))]);
    repository.index("empty-platform", &[(&image, Some(("", "")))]);
    repository.index("compat-index", &[(&annotated, Some(("linux", "amd64")))]);
    repository.index("linux-index", &[(&compat, Some(("linux", "amd64"))), (&compat, Some(("linux", "arm64")))]);
    let layer = repository.blob(ARTIFACT.0, MODULE, &sha512(MODULE));
    let config = repository.blob(ARTIFACT.1, b"{}", &sha512(b"{}"));
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let long = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer]});
    repository.manifest("long-digests", &long);
    let by_digest = format!("app@{}", sha512(long.to_string().as_bytes()));
    let registry = Registry::start(repository.0, open_to_all());
    for image in [
        "oras",
        "oras-typed",
        "wasme",
        "image",
        "no-platform",
        "other-compression",
        "compat",
        "inner",
        "outer",
        "reversed",
        "empty-platform",
        "compat-index",
        "long-digests",
    ] {
        let module = pull(&registry, &format!("app:{image}"), &Credentials::default()).await;
        assert_eq!(module.map_err(|error| format!("{image}: {error}")), Ok(MODULE.to_vec()));
    }
    assert_eq!(pull(&registry, &by_digest, &Credentials::default()).await.unwrap(), MODULE);
    for image in ["linux", "linux-index"] {
        let error = pull(&registry, &format!("app:{image}"), &Credentials::default()).await.unwrap_err().to_string();
        assert!(error.contains("it is for linux/amd64"), "{image}: {error}");
    }
}

#[tokio::test]
async fn an_image_says_how_it_is_started() {
    let mut repository = Repository::default();
    let config = json!({"os": "wasi", "architecture": "wasm", "config": {
        "Entrypoint": ["b.wasm", "--level", "2"], "Cmd": ["serve"], "Env": ["MODE=image", "PATH=/bin", "EMPTY="], "WorkingDir": "/opt"}});
    let other = [MODULE, b"b"].concat();
    let archive = tar(&[("opt/a.wasm", MODULE), ("opt/b.wasm", &other)]);
    repository.image("v1", (LAYER, &archive), (IMAGE_CONFIG, &config));
    let registry = Registry::start(repository.0, open_to_all());
    let directory = tempfile::tempdir().unwrap();
    let images = images(directory.path());
    let reference = reference::parse(&format!("{}/app:v1", registry.address)).unwrap();
    let (image, path) = images.pull(&reference, &Credentials::default()).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), other);
    assert_eq!(image.launch.entrypoint_args, ["--level", "2"]);
    assert_eq!(
        (image.launch.cmd.clone(), image.launch.program.clone()),
        (vec!["serve".to_owned()], Some("b.wasm".to_owned()))
    );
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(image.launch.env, [pair("MODE", "image"), pair("PATH", "/bin"), pair("EMPTY", "")]);
    assert_eq!(images.find(&reference).unwrap().0, image, "it is remembered");
}

#[tokio::test]
async fn a_private_image_is_for_those_who_have_shown_their_right() {
    let registry = Registry::start(of_artifact().0, gate(BEARER, "Bearer good"));
    let directory = tempfile::tempdir().unwrap();
    let images = images(directory.path());
    let reference = reference::parse(&format!("{}/app:v1", registry.address)).unwrap();
    let good = credentials(&registry, &json!({"username": "user", "password": "secret"}));
    let (image, _) = images.pull(&reference, &good).await.unwrap();
    assert!(matches!(image.access, Access::Holders(_)));
    assert!(images.may_run(&image, &reference, &good));
    let wrong = credentials(&registry, &json!({"username": "user", "password": "guess"}));
    assert!(
        !images.may_run(&image, &reference, &wrong) && !images.may_run(&image, &reference, &Credentials::default())
    );
    // Another right, shown to the registry once, counts too; the first one still does.
    let other = credentials(&registry, &json!({"auth": "dXNlcjo=", "identitytoken": "of-login"}));
    assert!(!images.may_run(&image, &reference, &other));
    let (image, _) = images.pull(&reference, &other).await.unwrap();
    assert!(images.may_run(&image, &reference, &other) && images.may_run(&image, &reference, &good));
    let record = std::fs::read_dir(directory.path().join("images")).unwrap().next().unwrap().unwrap().path();
    let record = std::fs::read_to_string(record).unwrap();
    assert!(!record.contains("secret") && !record.contains("of-login"), "{record}");
}

#[tokio::test]
async fn the_nodes_credentials_are_read_again_when_their_file_is_changed() {
    let registry = Registry::start(of_artifact().0, gate(BEARER, "Bearer good"));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.json");
    let write = |password: &str| {
        let entry = json!({"username": "user", "password": password});
        std::fs::write(&file, json!({"auths": {registry.address.clone(): entry}}).to_string()).unwrap();
    };
    write("old");
    let config = ImagesConfig {
        directory: directory.path().join("images"),
        insecure_registries: vec![registry.address.clone()],
        credentials: NodeCredentials::of_file(file.clone()).unwrap(),
        module_size_limit: 1 << 20,
        garbage_collection: GarbageCollection::default(),
        policy: ImagePolicy::default(),
    };
    let images = Images::open(config).unwrap();
    let reference = reference::parse(&format!("{}/app:v1", registry.address)).unwrap();
    assert!(images.pull(&reference, &Credentials::default()).await.is_err());
    write("secret");
    let (image, _) = images.pull(&reference, &Credentials::default()).await.unwrap();
    assert_eq!(image.access, Access::Everyone, "the node's own right is for all of its pods");
    std::fs::write(&file, "{").unwrap();
    images.pull(&reference, &Credentials::default()).await.unwrap();
}

#[tokio::test]
async fn credentials_do_not_go_where_an_answer_redirects() {
    // It asks for credentials as if it were the registry.
    let evil = Registry::start(HashMap::new(), gate(BEARER, "nothing"));
    let elsewhere = evil.address.clone();
    let redirects = move |part: &'static str| -> Answer {
        let elsewhere = elsewhere.clone();
        Box::new(move |seen, own| {
            let path = seen.request.split(' ').nth(1).unwrap_or_default();
            if path.contains(part) {
                let location = format!("Location: http://{elsewhere}{path}\r\n");
                return Some((307, location, Vec::new()));
            }
            gate(BEARER, "Bearer good")(seen, own)
        })
    };
    let password = json!({"username": "user", "password": "secret"});
    let identity = json!({"auth": "dXNlcjo=", "identitytoken": "of-login"});
    for (part, entry) in [("/blobs/", &password), ("/token", &password), ("/token", &identity)] {
        let registry = Registry::start(of_artifact().0, redirects(part));
        assert!(pull(&registry, "app:v1", &credentials(&registry, entry)).await.is_err());
    }
    let seen = evil.seen();
    assert!(seen.iter().any(|seen| seen.request.contains("/blobs/")), "it was asked for the blob");
    assert!(seen.iter().all(|seen| seen.authorization.is_none() && !seen.request.contains("/token")), "{seen:?}");
}

#[tokio::test]
async fn a_digest_alone_gives_no_right_to_what_another_repository_has() {
    let registry = Registry::start(of_artifact().0, gate(BEARER, "Bearer good"));
    let directory = tempfile::tempdir().unwrap();
    let images = images(directory.path());
    let of = |address: &str| reference::parse(&format!("{address}/app:v1")).unwrap();
    let good = credentials(&registry, &json!({"username": "user", "password": "secret"}));
    images.pull(&of(&registry.address), &good).await.unwrap();
    // The manifest is public there; the module, which it has not, is the private one of the other.
    let mut content = of_artifact().0;
    content.retain(|path, _| !path.contains(&sha256(MODULE)));
    let evil = Registry::start(content, open_to_all());
    let error = images.pull(&of(&evil.address), &Credentials::default()).await.unwrap_err().to_string();
    assert!(error.contains("has no such image"), "{error}");
}

#[tokio::test]
async fn an_index_leads_by_digests_only() {
    let mut repository = of_artifact();
    let entry = repository.image("moving", (ARTIFACT.0, MODULE), (ARTIFACT.1, &json!({"other": 1})));
    for (tag, name) in [("by-tag", "moving"), ("by-path", "../../other/manifests/x"), ("by-nothing", "")] {
        let mut entry = entry.clone();
        entry["digest"] = json!(name);
        repository.index(tag, &[(&entry, Some(("wasip1", "wasm")))]);
        let registry = Registry::start(repository.0.clone(), open_to_all());
        let error = pull(&registry, &format!("app:{tag}"), &Credentials::default()).await.unwrap_err().to_string();
        assert!(error.contains("which is no digest that can be checked"), "{tag}: {error}");
        assert!(registry.seen().iter().all(|seen| !seen.request.contains(name) || name.is_empty()), "{tag}");
    }
}

/// Whoever may push to a repository may put there what they like beside an image.
#[tokio::test]
async fn signatures_without_end_cost_a_few_requests() {
    const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEfs7pAkKyIvHXwUiE2nkYKvOkIp/G\nMLkdiCEB9Ksp2BkNy9yedDulSE3hE/g4bAAE0TU5PLSvfmIWnSgBHt41ng==\n-----END PUBLIC KEY-----\n";
    let mut repository = of_artifact();
    let digest = sha256(&repository.0["/v2/app/manifests/v1"]);
    let hex = digest.strip_prefix("sha256:").unwrap().to_owned();
    let mut layer = repository.blob("application/vnd.dev.cosign.simplesigning.v1+json", b"{}", &sha256(b"{}"));
    layer["annotations"] = json!({"dev.cosignproject.cosign/signature": "QQ=="});
    repository.manifest(&format!("sha256-{hex}.sig"), &json!({"schemaVersion": 2, "layers": vec![layer.clone(); 600]}));
    // A bundle with more signatures than anybody makes, and a list of it many times over.
    let kind = "application/vnd.dev.sigstore.bundle.v0.3+json";
    let envelope = json!({"payload": "e30=", "payloadType": "application/vnd.in-toto+json", "signatures": vec![json!({"sig": "QQ=="}); 4000]});
    let bundle = json!({"dsseEnvelope": envelope}).to_string();
    let bundle = repository.blob(kind, bundle.as_bytes(), &sha256(bundle.as_bytes()));
    let mut entry = repository.manifest("bundle", &json!({"schemaVersion": 2, "layers": [bundle]}));
    entry["artifactType"] = json!(kind);
    let list = json!({"schemaVersion": 2, "manifests": vec![entry.clone(); 600]});
    repository.0.insert(format!("/v2/app/referrers/{digest}"), list.to_string().into_bytes());
    let registry = Registry::start(repository.0, open_to_all());
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("cosign.pub"), KEY).unwrap();
    let policy = format!("images:\n- names: {}/*\n  keys: [cosign.pub]\n", registry.address);
    std::fs::write(directory.path().join("policy.yaml"), policy).unwrap();
    let config = ImagesConfig {
        directory: directory.path().join("images"),
        insecure_registries: Vec::new(),
        credentials: NodeCredentials::default(),
        module_size_limit: 1 << 20,
        garbage_collection: GarbageCollection::default(),
        policy: ImagePolicy::of_file(directory.path().join("policy.yaml")).unwrap(),
    };
    let images = Images::open(config).unwrap();
    let reference = reference::parse(&format!("{}/app:v1", registry.address)).unwrap();
    let error = images.pull(&reference, &Credentials::default()).await.unwrap_err().to_string();
    assert!(error.contains("has none that counts, of 32: made by another key"), "{error}");
    let asked = registry.seen().len();
    assert!(asked < 110, "{asked} requests");
}
