//! What projects are made of: the SDK, templates of handlers and their tests, by language and protocol.

use super::Protocol;
use anyhow::bail;

/// Files of the SDK, which is a part of the project: path there, and content.
macro_rules! sdk {
    ($($file:literal),* $(,)?) => {
        [$((concat!("akri-handler/src/", $file), include_str!(concat!("../../../../wasm-handlers/sdk/src/", $file)))),*]
    };
}

pub(super) const SDK: [(&str, &str); 19] = sdk![
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

pub(super) const WIT: [(&str, &str); 2] = [
    ("akri-handler/wit/world.wit", include_str!("../../../../proto/wit/world.wit")),
    ("akri-handler/wit/deps/akri-host/host.wit", include_str!("../../../../proto/wit/deps/akri-host/host.wit")),
];

/// Files of the library that it replays with.
macro_rules! recording {
    ($($file:literal),* $(,)?) => {
        [$((concat!("akri-handler/recording/src/", $file), include_str!(concat!("../../../../wasm-handlers/recording/src/", $file)))),*]
    };
}

pub(super) const RECORDING: [(&str, &str); 6] =
    recording!["lib.rs", "read.rs", "script.rs", "secrets.rs", "tests.rs", "write.rs"];

pub(super) const RECORDING_MANIFEST: &str = include_str!("../../../../wasm-handlers/recording/Cargo.toml");
pub(super) const SDK_MANIFEST: &str = include_str!("../../../../wasm-handlers/sdk/Cargo.toml");

/// What the protocols' projects have otherwise: what the handler does, the pod's annotations and parts of its specification, and
/// details that work.
pub(super) struct Parts {
    pub(super) what: &'static str,
    pub(super) source: &'static str,
    /// What it saw and said once; in Rust.
    pub(super) recording: &'static str,
    pub(super) annotations: &'static str,
    pub(super) has_network: bool,
    /// Where a volume is mounted, and of which directory.
    pub(super) mount: Option<(&'static str, &'static str)>,
    pub(super) details: &'static str,
}

impl Protocol {
    pub(super) fn parts(self) -> Parts {
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
pub(super) struct Other {
    pub(super) language: &'static str,
    pub(super) parts: Parts,
    /// Interfaces that its world has besides the handler's.
    pub(super) imports: &'static [&'static str],
    /// Packages of WASI that it needs for those.
    pub(super) wasi: &'static [(&'static str, &'static str)],
    /// What `annotate` is told that it needs.
    pub(super) needs: &'static str,
    pub(super) files: Vec<(&'static str, &'static str)>,
}

/// Interface definitions of WASI.
macro_rules! wasi {
    ($($package:literal),*) => {
        &[$((concat!("wit/deps/wasi-", $package, "/package.wit"), include_str!(concat!("../../../../wasm-handlers/templates/wit/", $package, ".wit")))),*]
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
pub(super) fn in_javascript(protocol: Option<Protocol>) -> anyhow::Result<Other> {
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

pub(super) fn in_python(protocol: Protocol) -> Other {
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
