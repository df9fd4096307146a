//! `new-handler`: a project of a discovery handler that builds, tests and runs as it stands.

use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};

/// Make a project of a new discovery handler, which builds, tests and runs as it stands.
#[derive(Debug, clap::Args)]
pub(crate) struct NewHandlerArguments {
    /// The handler's name, as in spec.discoveryHandler.name of a Configuration
    #[arg(value_parser = handler_name)]
    name: String,
    /// What it is written in
    #[arg(long, value_enum, default_value_t)]
    language: Language,
    /// How it finds its devices; the project begins with something that works by it [default: file; in JavaScript the details name them, and there are udp, tcp and uevents]
    #[arg(long, value_enum)]
    protocol: Option<Protocol>,
    /// Where to make it [default: NAME, here]
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Language {
    #[default]
    Rust,
    /// JavaScript; needs npm
    #[value(alias = "javascript")]
    Js,
    /// Python; needs python3
    Python,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Protocol {
    /// A file of a volume
    File,
    /// A web server
    Http,
    /// Datagrams
    Udp,
    /// A connection
    Tcp,
    /// The kernel's events
    Uevents,
}

/// Longest name: it is a pod's and a crate's, too.
const MOST_NAME: usize = 40;

fn handler_name(text: &str) -> Result<String, String> {
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let fits = (1..=MOST_NAME).contains(&text.len())
        && text.bytes().all(is_letter)
        && text.starts_with(|letter: char| letter.is_ascii_lowercase())
        && !text.ends_with('-')
        && !text.contains("--")
        && !RESERVED.contains(&text);
    if fits {
        return Ok(text.to_owned());
    }
    Err(format!(
        "a handler's name has at most {MOST_NAME} lower-case letters, digits and `-`, begins with a letter, and is no word of Rust or name of its library"
    ))
}

/// What cargo takes for no package, and names that the project's libraries have.
const RESERVED: [&str; 67] = [
    "abstract",
    "akri",
    "akri-handler",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "log",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "n",
    "no",
    "null",
    "off",
    "on",
    "override",
    "priv",
    "proc-macro",
    "pub",
    "ref",
    "return",
    "schemars",
    "self",
    "serde",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "y",
    "yes",
    "yield",
];

macro_rules! template {
    ($file:literal) => {
        include_str!(concat!("../../../wasm-handlers/templates/", $file))
    };
}

/// Files of the SDK, which is a part of the project: path there, and content.
macro_rules! sdk {
    ($($file:literal),* $(,)?) => {
        [$((concat!("akri-handler/src/", $file), include_str!(concat!("../../../wasm-handlers/sdk/src/", $file)))),*]
    };
}

const SDK: [(&str, &str); 19] = sdk![
    "details.rs",
    "device.rs",
    "fake/mod.rs",
    "fake/network.rs",
    "fake/replay.rs",
    "filter.rs",
    "fs.rs",
    "http.rs",
    "lib.rs",
    "links.rs",
    "logger.rs",
    "multicast.rs",
    "random.rs",
    "tcp.rs",
    "time.rs",
    "udp.rs",
    "uevents.rs",
    "wait.rs",
    "watch.rs",
];

const WIT: [(&str, &str); 2] = [
    ("akri-handler/wit/world.wit", include_str!("../../../proto/wit/world.wit")),
    ("akri-handler/wit/deps/akri-host/host.wit", include_str!("../../../proto/wit/deps/akri-host/host.wit")),
];

/// Files of the library that it replays with.
macro_rules! recording {
    ($($file:literal),* $(,)?) => {
        [$((concat!("akri-handler/recording/src/", $file), include_str!(concat!("../../../wasm-handlers/recording/src/", $file)))),*]
    };
}

const RECORDING: [(&str, &str); 6] = recording!["lib.rs", "read.rs", "script.rs", "secrets.rs", "tests.rs", "write.rs"];

const RECORDING_MANIFEST: &str = include_str!("../../../wasm-handlers/recording/Cargo.toml");
const SDK_MANIFEST: &str = include_str!("../../../wasm-handlers/sdk/Cargo.toml");

/// What the protocols' projects have otherwise: what the handler does, the pod's annotations and parts of its specification, and
/// details that work.
struct Parts {
    what: &'static str,
    source: &'static str,
    /// What it saw and said once; in Rust.
    recording: &'static str,
    annotations: &'static str,
    has_network: bool,
    /// Where a volume is mounted, and of which directory.
    mount: Option<(&'static str, &'static str)>,
    details: &'static str,
}

impl Protocol {
    fn parts(self) -> Parts {
        match self {
            Self::File => Parts {
                what: "each line of a file is a device",
                source: template!("rust/file.rs"),
                recording: template!("rust/file.rec"),
                annotations: "",
                has_network: false,
                mount: Some(("/etc/devices", "../devices")),
                details: "file: devices.txt\n",
            },
            Self::Http => Parts {
                what: "each line of what a web server answers is a device",
                source: template!("rust/http.rs"),
                recording: template!("rust/http.rec"),
                annotations: "    # The servers that Configurations name; narrow it to yours.\n    akri-krustlet/network: http details\n",
                has_network: true,
                mount: None,
                details: "url: http://devices.example/list\n",
            },
            Self::Udp => Parts {
                what: "who answers a datagram is a device",
                source: template!("rust/udp.rs"),
                recording: template!("rust/udp.rec"),
                annotations: "    # Where it may ask.\n    akri-krustlet/network: udp 239.255.0.1:4000\n",
                has_network: true,
                mount: None,
                details: "ask: 239.255.0.1:4000\n",
            },
            Self::Tcp => Parts {
                what: "a server is asked for a list by a connection",
                source: template!("rust/tcp.rs"),
                recording: template!("rust/tcp.rec"),
                annotations: "    # The server; yours will be another one.\n    akri-krustlet/network: tcp plant.example:7000\n",
                has_network: true,
                mount: None,
                details: "host: plant.example\nport: 7000\n",
            },
            Self::Uevents => Parts {
                what: "what a class of the kernel has is a device",
                source: template!("rust/uevents.rs"),
                recording: template!("rust/uevents.rec"),
                annotations: "    # Which uevents of the kernel it may follow.\n    akri-krustlet/uevents: tty\n",
                has_network: false,
                mount: Some(("/sys", "/sys")),
                details: "class: tty\n",
            },
        }
    }
}

/// What a project in another language than Rust has otherwise.
struct Other {
    language: &'static str,
    parts: Parts,
    /// Interfaces that its world has besides the handler's.
    imports: &'static [&'static str],
    /// Packages of WASI that it needs for those.
    wasi: &'static [(&'static str, &'static str)],
    /// What `annotate` is told that it needs.
    needs: &'static str,
    files: Vec<(&'static str, &'static str)>,
}

/// Interface definitions of WASI.
macro_rules! wasi {
    ($($package:literal),*) => {
        &[$((concat!("wit/deps/wasi-", $package, "/package.wit"), include_str!(concat!("../../../wasm-handlers/templates/wit/", $package, ".wit")))),*]
    };
}

const OF_SOCKETS: &[(&str, &str)] = wasi!["io", "clocks", "sockets"];
const OF_HTTP: &[(&str, &str)] = wasi!["io", "clocks", "sockets", "random", "cli", "filesystem", "http"];
const UDP: &[&str] = &[
    "wasi:clocks/monotonic-clock@0.2.12",
    "wasi:sockets/instance-network@0.2.12",
    "wasi:sockets/udp-create-socket@0.2.12",
];
const TCP: &[&str] = &[
    "wasi:clocks/monotonic-clock@0.2.12",
    "wasi:sockets/instance-network@0.2.12",
    "wasi:sockets/ip-name-lookup@0.2.12",
    "wasi:sockets/tcp-create-socket@0.2.12",
];
const NEEDS_UDP: &str = "--optional-network 'udp 239.255.0.1:4000'";
const NEEDS_TCP: &str = "--optional-network 'tcp plant.example:7000'";

/// What it does, its handler, its tests, and what of WASI it uses.
fn in_javascript(protocol: Option<Protocol>) -> anyhow::Result<Other> {
    let common = [
        ("package.json", template!("javascript/package.json.in")),
        ("Makefile", template!("javascript/Makefile.in")),
        (".gitignore", template!("javascript/gitignore")),
    ];
    let plain = [
        ("devices.js", template!("javascript/devices.js")),
        ("devices.test.js", template!("javascript/devices.test.js")),
    ];
    let bytes = ("bytes.js", template!("javascript/bytes.js"));
    let other = |parts, imports, wasi, needs, own: &[(&'static str, &'static str)]| Other {
        language: "JavaScript",
        parts,
        imports,
        wasi,
        needs,
        files: common.iter().chain(own).copied().collect(),
    };
    Ok(match protocol {
        None => {
            let parts = Parts {
                what: "each name in the details is a device",
                source: "",
                recording: "",
                annotations: "",
                has_network: false,
                mount: None,
                details: "names: [one, two]\n",
            };
            let [devices, test] = plain;
            other(parts, &[], &[], "", &[("handler.js", template!("javascript/details.js")), devices, test])
        }
        Some(protocol @ Protocol::Udp) => other(
            protocol.parts(),
            UDP,
            OF_SOCKETS,
            NEEDS_UDP,
            &[
                ("handler.js", template!("javascript/udp.js")),
                ("datagrams.js", template!("javascript/datagrams.js")),
                ("devices.js", template!("javascript/devices-udp.js")),
                ("devices.test.js", template!("javascript/devices-udp.test.js")),
                bytes,
            ],
        ),
        Some(protocol @ Protocol::Tcp) => {
            let [devices, test] = plain;
            let own = [
                ("handler.js", template!("javascript/tcp.js")),
                ("connection.js", template!("javascript/connection.js")),
                devices,
                test,
                bytes,
            ];
            other(protocol.parts(), TCP, OF_SOCKETS, NEEDS_TCP, &own)
        }
        Some(protocol @ Protocol::Uevents) => other(
            Parts { what: "what the kernel tells of a class is a device", mount: None, ..protocol.parts() },
            &["akri:host/uevents@0.1.0"],
            &[],
            "--uevents tty",
            &[
                ("handler.js", template!("javascript/uevents.js")),
                ("devices.js", template!("javascript/devices-uevents.js")),
                ("devices.test.js", template!("javascript/devices-uevents.test.js")),
            ],
        ),
        Some(Protocol::File | Protocol::Http) => bail!(
            "in JavaScript there are --protocol udp, tcp and uevents, and devices that the details name without it: what makes components of it \
             (componentize-qjs 0.4.5) takes no wasi:http, and has no files; in Python and Rust there are all"
        ),
    })
}

fn in_python(protocol: Protocol) -> Other {
    let common = [
        ("requirements.txt", template!("python/requirements.txt")),
        ("Makefile", template!("python/Makefile.in")),
        (".gitignore", template!("python/gitignore")),
    ];
    let lines =
        [("devices.py", template!("python/devices.py")), ("test_devices.py", template!("python/test_devices.py"))];
    let answers = [
        ("devices.py", template!("python/devices-udp.py")),
        ("test_devices.py", template!("python/test_devices-udp.py")),
    ];
    type Files = &'static [(&'static str, &'static str)];
    let (imports, wasi, needs, tested, own): (&'static [&'static str], _, _, _, Files) = match protocol {
        Protocol::File => (
            &["akri:host/watch@0.1.0"],
            &[][..],
            "--volume /etc/devices",
            lines,
            &[("handler.py", template!("python/file.py"))],
        ),
        Protocol::Http => (
            &["wasi:http/types@0.2.12", "wasi:http/outgoing-handler@0.2.12"],
            OF_HTTP,
            "--network 'http details'",
            lines,
            &[("handler.py", template!("python/http.py")), ("web.py", template!("python/web.py"))],
        ),
        Protocol::Udp => (
            UDP,
            OF_SOCKETS,
            NEEDS_UDP,
            answers,
            &[("handler.py", template!("python/udp.py")), ("datagrams.py", template!("python/datagrams.py"))],
        ),
        Protocol::Tcp => (
            TCP,
            OF_SOCKETS,
            NEEDS_TCP,
            lines,
            &[("handler.py", template!("python/tcp.py")), ("connection.py", template!("python/connection.py"))],
        ),
        Protocol::Uevents => (
            &["akri:host/uevents@0.1.0"],
            &[][..],
            "--uevents tty --volume /sys",
            lines,
            &[("handler.py", template!("python/uevents.py"))],
        ),
    };
    let files = common.into_iter().chain(tested).chain(own.iter().copied()).collect();
    Other { language: "Python", parts: protocol.parts(), imports, wasi, needs, files }
}

/// What is filled into templates.
struct Values<'a> {
    name: &'a str,
    file: String,
    /// Of the module, from the project.
    module: String,
    memory: &'static str,
    cpu: &'static str,
    language: &'static str,
    imports: String,
    needs: &'static str,
}

impl Values<'_> {
    /// A template with them, and what a pod and a Configuration have by the parts.
    fn filled(&self, template: &str, parts: &Parts) -> String {
        let words = self.name.split('-').map(|word| word[..1].to_uppercase() + &word[1..]);
        // With a word that none of the names has that the templates use.
        let type_name = words.collect::<String>() + "Handler";
        let variable = format!("{}_DEVICE", self.name.replace('-', "_").to_uppercase());
        let details = parts.details.lines().map(|line| format!("      {line}\n")).collect::<String>();
        let annotations = match parts.annotations {
            "" => String::new(),
            annotations => format!("  annotations:\n{annotations}"),
        };
        // Below the manifest's folder here, which a cluster does not have.
        let note = match parts.mount {
            Some((_, path)) if path.starts_with("..") => {
                "  # For a cluster: an absolute path of its nodes, or a configMap.\n"
            }
            _ => "",
        };
        let (mounts, volumes) = match parts.mount {
            Some((mount, path)) => (
                format!("    volumeMounts:\n    - {{name: devices, mountPath: {mount}, readOnly: true}}\n"),
                format!("  volumes:\n{note}  - {{name: devices, hostPath: {{path: {path}}}}}"),
            ),
            None => (String::new(), String::new()),
        };
        let values = [
            ("{{name}}", self.name),
            ("{{file}}", &self.file),
            ("{{module}}", &self.module),
            ("{{memory}}", self.memory),
            ("{{cpu}}", self.cpu),
            ("{{language}}", self.language),
            ("{{imports}}", &self.imports),
            ("{{needs}}", self.needs),
            ("{{what}}", parts.what),
            ("{{Type}}", &type_name),
            ("{{VARIABLE}}", &variable),
            ("{{annotations}}", &annotations),
            ("{{network}}", if parts.has_network { "  hostNetwork: true\n" } else { "" }),
            ("{{mounts}}", &mounts),
            ("{{volumes}}", &volumes),
            ("{{details}}", &details),
        ];
        let text = values.iter().fold(template.to_owned(), |text, (key, value)| text.replace(key, value));
        text.trim_end().to_owned() + "\n"
    }

    /// What projects of all languages have.
    fn common(&self, parts: &Parts) -> Vec<(String, String)> {
        let mut files = vec![
            ("manifests/pod.yaml".to_owned(), self.filled(template!("pod.yaml.in"), parts)),
            ("configuration.yaml".to_owned(), self.filled(template!("configuration.yaml.in"), parts)),
            ("details.yaml".to_owned(), parts.details.to_owned()),
        ];
        if parts.mount.is_some_and(|(_, path)| path == "../devices") {
            files.push(("devices/devices.txt".to_owned(), "one\ntwo\n".to_owned()));
        }
        files
    }
}

/// The files of a project: path, and content.
fn project(name: &str, language: Language, protocol: Option<Protocol>) -> anyhow::Result<Vec<(String, String)>> {
    Ok(match language {
        Language::Rust => rust_project(name, &protocol.unwrap_or(Protocol::File).parts()),
        Language::Js => other_project(name, &in_javascript(protocol)?),
        Language::Python => other_project(name, &in_python(protocol.unwrap_or(Protocol::File))),
    })
}

fn other_project(name: &str, other: &Other) -> Vec<(String, String)> {
    let file = format!("{}.wasm", name.replace('-', "_"));
    let module = format!("target/{file}");
    // An interpreter is in it, and starts with each instance.
    let (memory, cpu, Other { language, needs, .. }) = ("128Mi", "\"1\"", other);
    let imports = other.imports.iter().map(|import| format!("    import {import};\n")).collect();
    let values = Values { name, file, module, memory, cpu, language, imports, needs };
    let parts = &other.parts;
    let mut files = values.common(parts);
    files.extend(other.files.iter().map(|(path, text)| ((*path).to_owned(), values.filled(text, parts))));
    files.push(("README.md".to_owned(), values.filled(template!("README-other.md.in"), parts)));
    files.push(("wit/handler.wit".to_owned(), values.filled(template!("world.wit"), parts)));
    let [(_, world), (_, host)] = WIT;
    files.push(("wit/deps/akri-discovery/world.wit".to_owned(), world.to_owned()));
    files.push(("wit/deps/akri-host/host.wit".to_owned(), host.to_owned()));
    files.extend(other.wasi.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())));
    files
}

fn rust_project(name: &str, parts: &Parts) -> Vec<(String, String)> {
    let file = format!("{}.wasm", name.replace('-', "_"));
    let module = format!("target/wasm32-wasip2/release/{file}");
    let values =
        Values { name, file, module, memory: "64Mi", cpu: "200m", language: "Rust", imports: String::new(), needs: "" };
    let mut files = values.common(parts);
    files.extend([
        ("Cargo.toml".to_owned(), values.filled(template!("rust/Cargo.toml.in"), parts)),
        ("README.md".to_owned(), values.filled(template!("rust/README.md.in"), parts)),
        (".gitignore".to_owned(), values.filled(template!("rust/gitignore"), parts)),
        ("src/lib.rs".to_owned(), values.filled(parts.source, parts)),
        // The versions that this was tried with; cargo drops those of others.
        ("Cargo.lock".to_owned(), include_str!("../../../wasm-handlers/Cargo.lock").to_owned()),
        ("akri-handler/Cargo.toml".to_owned(), own_manifest(SDK_MANIFEST)),
        ("akri-handler/recording/Cargo.toml".to_owned(), own_manifest(RECORDING_MANIFEST)),
        ("tests/first.rec".to_owned(), values.filled(parts.recording, parts)),
    ]);
    // Beside it, not in the repository that it comes from.
    let sdk = SDK.iter().chain(&RECORDING).map(|(path, text)| (*path, text.replace("\"../../proto/wit\"", "\"wit\"")));
    files
        .extend(sdk.chain(WIT.map(|(path, text)| (path, text.to_owned()))).map(|(path, text)| (path.to_owned(), text)));
    files
}

/// A manifest of the SDK without the workspace that it is of.
fn own_manifest(of: &str) -> String {
    of
        .replace("rust-version.workspace = true", "rust-version = \"1.95\"")
        .replace("version.workspace = true", concat!("version = \"", env!("CARGO_PKG_VERSION"), "\""))
        .replace("edition.workspace = true", "edition = \"2024\"")
        .replace("license.workspace = true", "license = \"Apache-2.0\"")
        .replace("publish.workspace = true", "publish = false")
        .replace("akri-recording.workspace = true", "akri-recording = { path = \"recording\" }")
        .replace("log.workspace = true", "log = \"0.4\"")
        .replace(
            "schemars = { workspace = true, optional = true }",
            "schemars = { version = \"1.2\", default-features = false, features = [\"derive\", \"std\"], optional = true }",
        )
        .replace("serde.workspace = true", "serde = { version = \"1.0.228\", features = [\"derive\"] }")
        .replace("serde_json.workspace = true", "serde_json = { version = \"1.0.145\", features = [\"raw_value\"] }")
}

pub(crate) fn new_handler(arguments: &NewHandlerArguments) -> anyhow::Result<()> {
    let NewHandlerArguments { name, language, protocol, directory } = arguments;
    let files = project(name, *language, *protocol)?;
    let directory = directory.clone().unwrap_or_else(|| PathBuf::from(name));
    if directory.symlink_metadata().is_ok() {
        bail!("{} is there already and is not touched; name another directory", directory.display());
    }
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = || format!("{} cannot be made", directory.display());
    // In whole, or not at all.
    let staged = tempfile::Builder::new().prefix(".new-handler-").tempdir_in(parent).with_context(failed)?;
    for (path, content) in files {
        let path = staged.path().join(path);
        let written = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        written.and_then(|()| std::fs::write(&path, content)).with_context(failed)?;
    }
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(staged.path(), std::fs::Permissions::from_mode(0o755)).with_context(failed)?;
    std::fs::rename(staged.path(), &directory).with_context(failed)?;
    let _ = staged.keep();
    println!("{} is a handler that works; its README.md says how it is built, tested and run:", directory.display());
    let test = if matches!(language, Language::Rust) { "cargo test" } else { "make test" };
    println!("  cd {} && {test} && akri-krustlet dev", directory.display());
    for missing in missing_tools(*language) {
        println!("{missing}");
    }
    Ok(())
}

/// What cannot be built here yet, and the way out.
fn missing_tools(language: Language) -> Vec<&'static str> {
    let output = |program: &str, arguments: &[&str]| {
        std::process::Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())
    };
    let needed = match language {
        Language::Rust => None,
        Language::Js => Some([("npm", "npm is missing (Debian: apt-get install npm)"), ("make", "make is missing")]),
        Language::Python => Some([
            ("python3", "python3 is missing, or its venv (Debian: apt-get install python3-venv)"),
            ("make", "make is missing"),
        ]),
    };
    if let Some(needed) = needed {
        let is_missing = |(program, _): &(&str, &str)| output(program, &["--version"]).is_none();
        return needed.into_iter().filter(is_missing).map(|(_, words)| words).collect();
    }
    if output("cargo", &["--version"]).is_none() {
        return vec!["cargo is missing: https://rustup.rs installs it"];
    }
    let target = output("rustc", &["--print", "target-libdir", "--target", "wasm32-wasip2"]);
    let there = target.is_some_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).exists());
    if there { Vec::new() } else { vec!["the target is missing: rustup target add wasm32-wasip2"] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum as _;

    #[test]
    fn names_are_those_of_pods_and_crates() {
        for name in ["meter", "a", "my-meter2"] {
            assert_eq!(handler_name(name), Ok(name.to_owned()));
        }
        for name in ["", "Meter", "2meter", "me_ter", "meter-", "a--b", "../meter", "serde", "true", &"x".repeat(41)] {
            assert!(handler_name(name).unwrap_err().contains("lower-case"), "{name}");
        }
    }

    #[test]
    fn all_of_the_sdk_is_in_a_project_and_no_placeholder_is() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wasm-handlers/sdk/src");
        let mut here = 0;
        for directory in [sources.clone(), sources.join("fake")] {
            for entry in std::fs::read_dir(directory).unwrap() {
                here += usize::from(entry.unwrap().path().is_file());
            }
        }
        assert_eq!(SDK.len(), here);
        let recording = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wasm-handlers/recording/src");
        assert_eq!(RECORDING.len(), std::fs::read_dir(recording).unwrap().count());
        let protocols = || Protocol::value_variants().iter().map(|protocol| Some(*protocol));
        let in_rust = protocols().map(|protocol| (Language::Rust, protocol));
        let in_python = protocols().map(|protocol| (Language::Python, protocol));
        let in_javascript = [None, Some(Protocol::Udp), Some(Protocol::Tcp), Some(Protocol::Uevents)];
        let in_javascript = in_javascript.map(|protocol| (Language::Js, protocol));
        for (language, protocol) in in_rust.chain(in_python).chain(in_javascript) {
            for (path, content) in project("my-meter", language, protocol).unwrap() {
                let is_ours = !path.starts_with("akri-handler/");
                assert!(!is_ours || !content.contains("{{"), "{path}: {content}");
                assert!(!path.ends_with("Cargo.toml") || !content.contains("workspace = true"), "{path}: {content}");
            }
        }
    }
}
