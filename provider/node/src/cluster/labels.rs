//! Labels that a node may give itself.

use std::collections::BTreeMap;

/// Why a label is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LabelError {
    /// Not `key=value`.
    #[error("node label {0:?}: expected KEY=VALUE")]
    Form(String),
    /// Not a key or value that the API takes.
    #[error("node label {key}={value}: {what}")]
    Malformed {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// What is wrong.
        what: &'static str,
    },
    /// NodeRestriction forbids it.
    #[error(
        "node label {0}: the API server's NodeRestriction lets no node set it; use a key without kubernetes.io/ and k8s.io/, one below node.kubernetes.io/ or kubelet.kubernetes.io/, or set it with kubectl label"
    )]
    Restricted(String),
    /// It says what the node is, which is not to be chosen.
    #[error("node label {0}: the node sets it itself")]
    Own(String),
}

/// Keys in the reserved domains that a node may set all the same.
const ALLOWED: [&str; 9] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
];

/// Keys that the node sets itself.
const OWN: [&str; 4] = ["kubernetes.io/hostname", "kubernetes.io/os", "kubernetes.io/arch", "type"];

/// Reads `a=b,c=d` and checks each label as NodeRestriction would.
pub fn parse(text: &str) -> Result<BTreeMap<String, String>, LabelError> {
    let mut labels = BTreeMap::new();
    for label in text.split(',').map(str::trim).filter(|label| !label.is_empty()) {
        let (key, value) = label.split_once('=').ok_or_else(|| LabelError::Form(label.to_owned()))?;
        let malformed = |what| LabelError::Malformed { key: key.to_owned(), value: value.to_owned(), what };
        let (prefix, name) = key.split_once('/').map_or(("", key), |(prefix, name)| (prefix, name));
        if !is_word(name) || name.is_empty() {
            return Err(malformed(
                "the key must begin and end with a letter or digit and have at most 63 letters, digits, `-`, `_`, `.`",
            ));
        }
        if key.contains('/') && !crate::manifest::is_dns_subdomain(prefix) {
            return Err(malformed("the key's part before the slash must be a DNS name in lower case"));
        }
        if !is_word(value) {
            return Err(malformed(
                "the value may have at most 63 letters, digits, `-`, `_`, `.` and begins and ends with a letter or digit",
            ));
        }
        if OWN.contains(&key) {
            return Err(LabelError::Own(key.to_owned()));
        }
        if is_restricted(key, prefix) {
            return Err(LabelError::Restricted(key.to_owned()));
        }
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(labels)
}

fn is_restricted(key: &str, prefix: &str) -> bool {
    let below = |domain: &str| prefix == domain || prefix.ends_with(&format!(".{domain}"));
    if !below("kubernetes.io") && !below("k8s.io") {
        return false;
    }
    let free = below("node.kubernetes.io") || below("kubelet.kubernetes.io");
    !free && !ALLOWED.contains(&key)
}

/// True for what a label's value may be.
pub fn is_value(text: &str) -> bool {
    !text.is_empty() && is_word(text)
}

fn is_word(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_checked_as_node_restriction_checks_them() {
        let labels = parse("site=lab-1, example.com/a=,topology.kubernetes.io/zone=z,node.kubernetes.io/x=y").unwrap();
        assert_eq!(labels.len(), 4);
        for (text, message) in [
            ("site", "expected KEY=VALUE"),
            ("a b=c", "the key must"),
            ("UP/x=c", "before the slash"),
            ("a=-", "the value may"),
            ("kubernetes.io/os=linux", "sets it itself"),
            ("node-role.kubernetes.io/worker=", "NodeRestriction"),
            ("node-restriction.kubernetes.io/x=y", "NodeRestriction"),
            ("akri.k8s.io/x=y", "NodeRestriction"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
