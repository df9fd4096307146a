//! What a program's author says of it, in custom sections of the module: what it needs of its pod (`akri:needs`), and what it is
//! (`description`, `version` and others that tools of WebAssembly know).
//!
//! Nothing follows from that but words: what a guest gets is what its pod grants.

use crate::network::NetworkRules;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use wasmparser::{Parser, Payload};

/// The section that has the needs, as JSON.
pub const SECTION: &str = "akri:needs";
/// The sections that say what it is, and the annotation of an image that says the same.
pub const ABOUT: [(&str, &str); 6] = [
    ("description", "org.opencontainers.image.description"),
    ("version", "org.opencontainers.image.version"),
    ("licenses", "org.opencontainers.image.licenses"),
    ("source", "org.opencontainers.image.source"),
    ("homepage", "org.opencontainers.image.url"),
    ("authors", "org.opencontainers.image.authors"),
];

/// Longest section that is read, in bytes.
const MOST_NEEDS: usize = 16 << 10;
/// The same, of a text that says what it is.
const MOST_ABOUT: usize = 4 << 10;
/// Modules within modules within components.
const MOST_DEPTH: usize = 8;
/// Longest name, and most entries of each kind.
const MOST_NAME: usize = 1024;
const MOST_ENTRIES: usize = 256;

/// What a program needs of its pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Needs {
    /// Rules of its network ([`crate::network::rules`]).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network: Vec<String>,
    /// Subsystems whose uevents it follows; `*` for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uevents: Vec<String>,
    /// Network links that it lists; `*` for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
    /// Directories.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeNeed>,
    /// Paths of the host that its devices name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub host_paths: Vec<String>,
}

/// A directory that a program needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VolumeNeed {
    /// Where it looks for it.
    pub path: String,
    /// Which directory of the host it is, most often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// It writes there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub writable: bool,
}

/// What is said in a module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// What it needs, if its author says it.
    pub needs: Option<Needs>,
    /// What it is, by the names of [`ABOUT`].
    pub about: BTreeMap<&'static str, String>,
}

/// What is said in a module makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its section {SECTION}: {0}; `akri-krustlet annotate` writes another one")]
pub struct NeedsError(String);

impl Said {
    /// Reads a module or component. Of several sections of one name the outermost counts, of those within one module the last. What
    /// cannot be read as a module says nothing.
    pub fn read(module: &[u8]) -> Result<Self, NeedsError> {
        let mut found: BTreeMap<&str, (usize, &[u8])> = BTreeMap::new();
        let mut depth = 0_usize;
        for payload in Parser::new(0).parse_all(module) {
            match payload {
                Ok(Payload::ModuleSection { .. } | Payload::ComponentSection { .. }) => depth += 1,
                Ok(Payload::End(_)) => depth = depth.saturating_sub(1),
                Ok(Payload::CustomSection(section)) if depth <= MOST_DEPTH => {
                    let is_known = ABOUT.iter().any(|(name, _)| *name == section.name());
                    let is_outer = found.get(section.name()).is_none_or(|(other, _)| depth <= *other);
                    if (is_known || section.name() == SECTION) && is_outer {
                        found.insert(section.name(), (depth, section.data()));
                    }
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        let needs = found.get(SECTION).map(|(_, text)| Needs::read(text)).transpose()?;
        let about = ABOUT.iter().filter_map(|(name, _)| {
            let text = found.get(name)?.1;
            let text = String::from_utf8_lossy(&text[..text.len().min(MOST_ABOUT)]).trim().to_owned();
            (!text.is_empty()).then_some((*name, text))
        });
        Ok(Self { needs, about: about.collect() })
    }
}

impl Needs {
    /// Reads and checks the content of a section.
    pub fn read(text: &[u8]) -> Result<Self, NeedsError> {
        if text.len() > MOST_NEEDS {
            return Err(NeedsError(format!("it has {} bytes, {MOST_NEEDS} at most are read", text.len())));
        }
        let needs: Self = serde_json::from_slice(text).map_err(|error| NeedsError(error.to_string()))?;
        needs.check()?;
        Ok(needs)
    }

    /// Whether they make sense: what is written into a module is what a node reads.
    pub fn check(&self) -> Result<(), NeedsError> {
        self.rules()?;
        let Self { uevents, links, volumes, host_paths, .. } = self;
        let paths = volumes.iter().flat_map(|volume| [Some(&volume.path), volume.source.as_ref()]).flatten();
        let sizes = [uevents.len(), links.len(), volumes.len(), host_paths.len()];
        if let Some(size) = sizes.iter().find(|size| **size > MOST_ENTRIES) {
            return Err(NeedsError(format!("it has {size} entries of one kind, {MOST_ENTRIES} at most are taken")));
        }
        for path in paths.chain(host_paths) {
            let is_path = path.starts_with('/') && !path.split('/').any(|part| part == "..");
            if !is_path || path.len() > MOST_NAME || path.contains(char::is_control) {
                return Err(NeedsError(format!("{path:?} is no absolute path")));
            }
        }
        for name in uevents.iter().chain(links) {
            let is_name =
                !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && !b",/\"'".contains(&byte));
            if !is_name || name.len() > MOST_NAME {
                return Err(NeedsError(format!("{name:?} is no name of a subsystem or of a network link")));
            }
        }
        Ok(())
    }

    /// The rules of its network.
    pub fn rules(&self) -> Result<NetworkRules, NeedsError> {
        // Each is one line, whatever is in it.
        if let Some(rule) = self.network.iter().find(|rule| rule.contains(char::is_control) || rule.contains('#')) {
            return Err(NeedsError(format!("network: {rule:?} is no rule")));
        }
        let rules: NetworkRules =
            self.network.join("\n").parse().map_err(|error| NeedsError(format!("network, {error}")))?;
        match rules.0.len() == self.network.len() {
            true => Ok(rules),
            false => Err(NeedsError("network: an empty rule".to_owned())),
        }
    }

    /// Whether it needs nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(sections: &[(&str, &str)]) -> Vec<u8> {
        let mut module = b"\0asm\x01\0\0\0".to_vec();
        module.extend(sections.iter().flat_map(|(name, text)| section(name, text)));
        module
    }

    /// Shorter than 128 bytes.
    fn section(name: &str, text: &str) -> Vec<u8> {
        let size = u8::try_from(1 + name.len() + text.len()).unwrap();
        assert!(size < 128);
        [&[0, size, name.len() as u8], name.as_bytes(), text.as_bytes()].concat()
    }

    /// A component with one module in it.
    fn component(module: &[u8], sections: &[(&str, &str)]) -> Vec<u8> {
        let size = u8::try_from(module.len()).unwrap();
        let length = if size < 128 { vec![size] } else { vec![size | 0x80, 1] };
        let mut component = [b"\0asm\x0d\0\x01\0".as_slice(), &[1], &length, module].concat();
        component.extend(sections.iter().flat_map(|(name, text)| section(name, text)));
        component
    }

    #[test]
    fn what_is_said_outside_counts_before_what_is_said_inside() {
        let inner = module(&[(SECTION, r#"{"uevents":["usb"]}"#), ("version", "1.0"), ("other", "x")]);
        let said = Said::read(&inner).unwrap();
        assert_eq!(said.needs.unwrap().uevents, ["usb"]);
        assert_eq!(said.about, BTreeMap::from([("version", "1.0".to_owned())]));
        let wrapped = Said::read(&component(&inner, &[])).unwrap();
        assert_eq!(wrapped.needs.unwrap().uevents, ["usb"]);
        let annotated = component(&inner, &[(SECTION, r#"{"links":["*"]}"#), ("version", " 2.0 ")]);
        let said = Said::read(&annotated).unwrap();
        assert_eq!((said.needs.clone().unwrap().links, said.needs.unwrap().uevents.len()), (vec!["*".to_owned()], 0));
        assert_eq!(said.about["version"], "2.0");
        assert_eq!(Said::read(&module(&[])).unwrap(), Said::default());
        assert_eq!(Said::read(b"no module").unwrap(), Said::default());
    }

    #[test]
    fn needs_that_make_no_sense_are_refused_by_what_is_wrong() {
        for (text, what) in [
            ("{", "EOF"),
            (r#"{"netwerk":[]}"#, "unknown field `netwerk`"),
            (r#"{"network":["tcp 10.0.0.1"]}"#, "network, line 1"),
            (r#"{"network":["tcp 10.0.0.1:80\ntcp details"]}"#, "is no rule"),
            (r#"{"network":[" "]}"#, "an empty rule"),
            (r#"{"volumes":[{"path":"sys"}]}"#, "\"sys\" is no absolute path"),
            (r#"{"host-paths":["/dev/../etc"]}"#, "is no absolute path"),
            (r#"{"uevents":["us b"]}"#, "is no name"),
        ] {
            let error = Needs::read(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("akri:needs") && error.contains("annotate"), "{error}");
        }
        let long = format!(r#"{{"uevents":["{}"]}}"#, "x".repeat(20_000));
        assert!(Needs::read(long.as_bytes()).unwrap_err().to_string().contains("16384 at most"));
        let many = serde_json::json!({"links": vec!["a"; 300]}).to_string();
        assert!(Needs::read(many.as_bytes()).unwrap_err().to_string().contains("300 entries"));
    }
}
