//! The files of a project: templates with what is filled into them, and the SDK beside.

use super::templates::{Other, Parts, RECORDING, RECORDING_MANIFEST, SDK, SDK_MANIFEST, WIT, in_javascript, in_python};
use super::{Language, Protocol};

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
pub(super) fn project(
    name: &str,
    language: Language,
    protocol: Option<Protocol>,
) -> anyhow::Result<Vec<(String, String)>> {
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
        ("Cargo.lock".to_owned(), include_str!("../../../../wasm-handlers/Cargo.lock").to_owned()),
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
