//! Pods from manifest files: YAML or JSON, several documents a file.

pub mod static_pod;
mod unknown_field;

use crate::pod::{MANIFEST_ANNOTATION, PodObject};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use unknown_field::UnknownField;
pub use unknown_field::likely;

/// Largest manifest file, in bytes.
pub const MOST_FILE: u64 = 4 << 20;

/// What is wrong with a document of a manifest file. The other documents are used all the same.
#[derive(Debug, thiserror::Error)]
#[error("{file}:{line}: {message}", file = file.display())]
pub struct ManifestError {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong and what to do.
    pub message: String,
}

/// The pods of one file and what is wrong with the rest of it.
#[derive(Debug, Default)]
pub struct Manifest {
    /// Pods with name, namespace and UID set, and where each begins.
    pub pods: Vec<(PodObject, usize)>,
    /// Documents that are no usable pods.
    pub errors: Vec<ManifestError>,
}

/// True for names that are read as manifests: `*.yaml`, `*.yml`, `*.json`, not hidden.
pub fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

impl Manifest {
    /// Reads the documents of `text`, the content of `file`.
    pub fn parse(file: &Path, text: &str) -> Self {
        let mut manifest = Self::default();
        for (line, document) in documents(text) {
            match parse_document(document) {
                Ok(values) => {
                    for value in values {
                        manifest.add(file, (line, document), value);
                    }
                }
                Err((offset, message)) => manifest.error(file, line + offset, message),
            }
        }
        manifest
    }

    fn add(&mut self, file: &Path, (line, document): (usize, &str), value: Value) {
        if is_pod(&value)
            && let Some(unknown) = UnknownField::find::<Pod>(&value)
        {
            let offset = unknown.line(document).unwrap_or(0);
            return self.error(file, line + offset, format!("{unknown}; the pod is not run"));
        }
        match pod_of(value) {
            Ok(Some(mut pod)) => {
                let annotations = pod.metadata.annotations.get_or_insert_default();
                annotations.insert(MANIFEST_ANNOTATION.to_owned(), file.display().to_string());
                let folder = file.parent().map(Path::to_owned);
                self.pods.push((PodObject::new(&pod, folder), line));
            }
            Ok(None) => {}
            Err(message) => self.error(file, line, message),
        }
    }

    fn error(&mut self, file: &Path, line: usize, message: String) {
        self.errors.push(ManifestError { file: file.to_owned(), line, message });
    }
}

/// Splits at lines that begin with `---`, which end a document wherever they stand; with the line that each begins at.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\n', '\r', '#']));
        if marker {
            documents.push((start_line, &text[start..offset]));
            // The rest of the marker's line may hold content; it stays in, so that lines count on.
            (start, start_line) = (offset + 3, index + 1);
        }
        offset += line.len();
    }
    documents.push((start_line, &text[start..]));
    documents
}

/// The objects of a document, or the line in it (counted from 0) and what is wrong there.
fn parse_document(document: &str) -> Result<Vec<Value>, (usize, String)> {
    if document.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Vec::new());
    }
    if document.trim_start().starts_with('{') {
        return serde_json::Deserializer::from_str(document)
            .into_iter::<Value>()
            .collect::<Result<_, _>>()
            .map_err(|error| (error.line().saturating_sub(1), format!("malformed JSON: {error}")));
    }
    // As kubectl reads it: `defaultMode: 0440` is octal.
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    match serde_saphyr::from_str_with_options::<Value>(document, options) {
        Ok(value) => Ok(vec![value]),
        Err(error) => {
            let line = error.location().map_or(1, |location| usize::try_from(location.line()).unwrap_or(1));
            let text = error.without_snippet().to_string();
            Err((line.saturating_sub(1), format!("malformed YAML: {}", text.lines().next().unwrap_or_default())))
        }
    }
}

fn is_pod(value: &Value) -> bool {
    value.get("apiVersion").is_some_and(|version| version == "v1")
        && value.get("kind").is_some_and(|kind| kind == "Pod")
}

fn pod_of(value: Value) -> Result<Option<Pod>, String> {
    let field = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (field("apiVersion"), field("kind"));
    if kind.is_empty() {
        return Err("not a Kubernetes object: `kind` is missing".to_owned());
    }
    if !is_pod(&value) {
        return Err(format!(
            "{kind} ({api_version}) is not run from a folder of manifests, which takes v1 Pods only; other objects need a cluster's API server"
        ));
    }
    let uid = uid_of(&value);
    let mut pod: Pod = serde_json::from_value(value).map_err(|error| format!("malformed Pod: {error}"))?;
    let Some(name) = pod.metadata.name.clone().filter(|name| is_dns_subdomain(name)) else {
        return Err(format!(
            "metadata.name {:?} is not a pod's name: lower-case letters, digits, `-` and `.`, at most 253",
            pod.metadata.name.unwrap_or_default()
        ));
    };
    let namespace = pod.metadata.namespace.get_or_insert_with(|| "default".to_owned());
    if !is_dns_subdomain(namespace) {
        return Err(format!("pod {name}: metadata.namespace {namespace:?} is not a namespace's name"));
    }
    let containers = pod.spec.as_ref().map(|spec| spec.containers.len()).unwrap_or_default();
    if containers == 0 {
        return Err(format!("pod {namespace}/{name} has no container: spec.containers is empty"));
    }
    // Never the manifest's own, which may be copied from another pod: a changed manifest must be another pod.
    pod.metadata.uid = Some(uid);
    pod.metadata.creation_timestamp = None;
    pod.status = None;
    Ok(Some(pod))
}

/// A UID made of the content, as a kubelet's for static pods: the same manifest is the same pod after a restart, a changed
/// one is another pod.
fn uid_of(value: &Value) -> String {
    let hash = Sha256::digest(value.to_string());
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let part = [&hash[0..4], &hash[4..6], &hash[6..8], &hash[8..10], &hash[10..16]];
    part.map(hex).join("-")
}

/// True for a name that an object of the API can have (RFC 1123).
pub fn is_dns_subdomain(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let label =
        |label: &str| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(inner);
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Manifest {
        Manifest::parse(Path::new("/m/pods.yaml"), text)
    }

    const POD: &str =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: 'fs://x'}]}\n";

    #[test]
    fn every_document_of_a_file_is_a_pod_and_a_bad_one_is_named_with_its_line() {
        let text = format!("# comment\n---\n{POD}---\nkind: Pod\n  bad: [\n---\n{}", POD.replace("name: a", "name: b"));
        let manifest = parse(&text);
        assert_eq!(manifest.pods.iter().map(|(pod, _)| pod.key()).collect::<Vec<_>>(), ["default/a", "default/b"]);
        assert_eq!(manifest.errors.len(), 1);
        let error = manifest.errors[0].to_string();
        assert!(
            error.starts_with("/m/pods.yaml:9: malformed YAML") || error.starts_with("/m/pods.yaml:10:"),
            "{error}"
        );
    }

    #[test]
    fn json_is_read_too_and_its_errors_have_lines() {
        let json = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"c"}]}}"#;
        assert_eq!(parse(&format!("{json}\n{}", json.replace("\"a\"", "\"b\""))).pods.len(), 2);
        let error = parse("{\"kind\":\n\"Pod\",\n}").errors.remove(0);
        assert_eq!(error.line, 3, "{error}");
    }

    #[test]
    fn what_is_no_usable_pod_is_refused_in_words() {
        for (text, message) in [
            ("a: 1", "`kind` is missing"),
            ("apiVersion: apps/v1\nkind: DaemonSet", "need a cluster's API server"),
            ("apiVersion: v1\nkind: Pod\nmetadata: {name: A_b}\nspec: {containers: [{name: c}]}", "A_b"),
            ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}", "has no container"),
            ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: 7}", "malformed Pod"),
        ] {
            let error = parse(text).errors.remove(0).to_string();
            assert!(error.contains(message), "{error}");
        }
        assert!(parse("\n# nothing\n").errors.is_empty());
    }

    #[test]
    fn a_field_that_a_pod_does_not_have_is_named_with_its_line_and_its_pod_is_not_run() {
        let text = format!(
            "{POD}---\n{}\n  restartpolicy: Never\n",
            POD.replace("name: a", "name: b").trim_end().replace(
                "spec: {containers: [{name: c, image: 'fs://x'}]}",
                "spec:\n  containers:\n  - {name: c, image: 'fs://x'}"
            )
        );
        let manifest = parse(&text);
        assert_eq!(manifest.pods.len(), 1);
        let error = manifest.errors[0].to_string();
        assert_eq!(
            error,
            "/m/pods.yaml:12: unknown field spec.restartpolicy (did you mean restartPolicy?); the pod is not run"
        );
    }

    #[test]
    fn modes_are_octal_as_kubectl_reads_them() {
        for (mode, value) in [("0440", 0o440), ("0o440", 0o440), ("288", 288)] {
            let volumes = format!("volumes: [{{name: v, configMap: {{name: m, defaultMode: {mode}}}}}], containers");
            let pod = parse(&POD.replace("containers", &volumes)).pods.remove(0).0;
            let volume = pod.spec().volumes.as_ref().unwrap()[0].config_map.clone().unwrap();
            assert_eq!(volume.default_mode, Some(value), "{mode}");
        }
    }

    #[test]
    fn a_uid_in_the_manifest_is_not_the_pods() {
        let pod = parse(&POD.replace("{name: a}", "{name: a, uid: '..'}")).pods.remove(0).0;
        assert_eq!(pod.uid().len(), 36);
    }

    #[test]
    fn the_uid_follows_the_content() {
        let uid = |text: &str| parse(text).pods[0].0.uid().to_owned();
        assert_eq!(uid(POD), uid(&format!("# a comment\n{POD}")));
        assert_ne!(uid(POD), uid(&POD.replace("fs://x", "fs://y")));
        assert_eq!(uid(POD).len(), 36);
    }
}
