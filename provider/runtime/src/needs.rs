//! What a program's author says of it, in custom sections of the module: what it needs of its pod (`akri:needs`), and what it is
//! (`description`, `version` and others that tools of WebAssembly know).
//!
//! Nothing follows from that but words: what a guest gets is what its pod grants.

use crate::network::NetworkRules;
use crate::network::rules::Rule;
use akri_krustlet_host::one_line;
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
/// Letters of what is said to be wrong.
const MOST_WORDS: usize = 300;

/// What a program needs of its pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Needs {
    /// Rules of its network ([`crate::network::rules`]).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network: Vec<String>,
    /// Rules that it can do without, as others of its users do: told by nobody who runs it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub optional_network: Vec<String>,
    /// Subsystems whose uevents it follows; `*` for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uevents: Vec<String>,
    /// Network links that it lists; `*` for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
    /// Directories.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeNeed>,
    /// Paths of directories that it can do without.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub optional_volumes: Vec<String>,
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

/// What is written in a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// What it needs, if its author says it.
    pub needs: Result<Option<Needs>, NeedsError>,
    /// What it is, by the names of [`ABOUT`].
    pub about: BTreeMap<&'static str, String>,
}

/// Needs that make no sense. The words may be a module's: they are one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NeedsError(String);

impl NeedsError {
    fn new(what: &str) -> Self {
        Self(one_line(what, MOST_WORDS))
    }
}

impl Metadata {
    /// Reads a module or component. Of several sections of one name the outermost counts, of those within one module the last. What
    /// cannot be read as a module says nothing.
    pub fn read(module: &[u8]) -> Self {
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
        let of_section = |error: NeedsError| {
            NeedsError(format!("its section {SECTION}: {error}; `akri-krustlet annotate` writes another one"))
        };
        let needs = found.get(SECTION).map(|(_, text)| Needs::read(text)).transpose().map_err(of_section);
        let about = ABOUT.iter().filter_map(|(name, _)| {
            let text = found.get(name)?.1;
            let text = String::from_utf8_lossy(&text[..text.len().min(MOST_ABOUT)]).trim().to_owned();
            (!text.is_empty()).then_some((*name, text))
        });
        Self { needs, about: about.collect() }
    }
}

impl Needs {
    /// Reads and checks the content of a section.
    pub fn read(text: &[u8]) -> Result<Self, NeedsError> {
        if text.len() > MOST_NEEDS {
            return Err(NeedsError::new(&format!("it has {} bytes, {MOST_NEEDS} at most are read", text.len())));
        }
        let needs: Self = serde_json::from_slice(text).map_err(|error| NeedsError::new(&error.to_string()))?;
        needs.check()?;
        Ok(needs)
    }

    /// Whether they make sense: what is written into a module is what a node reads.
    pub fn check(&self) -> Result<(), NeedsError> {
        self.rules()?;
        rules(&self.optional_network)?;
        let Self { uevents, links, volumes, optional_volumes, host_paths, .. } = self;
        let paths = volumes.iter().flat_map(|volume| [Some(&volume.path), volume.source.as_ref()]).flatten();
        let sizes = [uevents.len(), links.len(), volumes.len(), optional_volumes.len(), host_paths.len()];
        if let Some(size) = sizes.iter().find(|size| **size > MOST_ENTRIES) {
            return Err(NeedsError::new(&format!(
                "it has {size} entries of one kind, {MOST_ENTRIES} at most are taken"
            )));
        }
        for path in paths.chain(host_paths).chain(optional_volumes) {
            let is_path = path.starts_with('/') && !path.split('/').any(|part| part == "..");
            // One path, whoever reads it: lists of them have commas between.
            let is_plain = |letter: char| letter.is_alphanumeric() || "/._-+:@~*=%".contains(letter);
            if !is_path || path.len() > MOST_NAME || !path.chars().all(is_plain) {
                return Err(NeedsError::new(&format!("{path:?} is no absolute path")));
            }
        }
        for name in uevents.iter().chain(links) {
            let is_name =
                !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && !b",/\"'".contains(&byte));
            if !is_name || name.len() > MOST_NAME {
                return Err(NeedsError::new(&format!("{name:?} is no name of a subsystem or of a network link")));
            }
        }
        Ok(())
    }

    /// The rules of the network that it needs, one for each text.
    pub fn rules(&self) -> Result<Vec<Rule>, NeedsError> {
        rules(&self.network)
    }

    /// Whether it needs nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Each is one line, whatever is in it.
fn rules(texts: &[String]) -> Result<Vec<Rule>, NeedsError> {
    let one = |text: &String| {
        let rules = text.parse::<NetworkRules>().map_err(|error| NeedsError::new(&format!("network, {error}")))?;
        match <[Rule; 1]>::try_from(rules.0) {
            Ok([rule]) if !text.contains(char::is_control) && !text.contains('#') => Ok(rule),
            _ => Err(NeedsError::new(&format!("network: {text:?} is no rule"))),
        }
    };
    if texts.len() > MOST_ENTRIES {
        return Err(NeedsError::new(&format!("network: {} rules, {MOST_ENTRIES} at most are taken", texts.len())));
    }
    texts.iter().map(one).collect()
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
        let said = Metadata::read(&inner);
        assert_eq!(said.needs.unwrap().unwrap().uevents, ["usb"]);
        assert_eq!(said.about, BTreeMap::from([("version", "1.0".to_owned())]));
        let wrapped = Metadata::read(&component(&inner, &[]));
        assert_eq!(wrapped.needs.unwrap().unwrap().uevents, ["usb"]);
        let annotated = component(&inner, &[(SECTION, r#"{"links":["*"]}"#), ("version", " 2.0 ")]);
        let Metadata { needs, about } = Metadata::read(&annotated);
        let needs = needs.unwrap().unwrap();
        assert_eq!((needs.links, needs.uevents.len(), about["version"].as_str()), (vec!["*".to_owned()], 0, "2.0"));
        let nothing = Metadata { needs: Ok(None), about: BTreeMap::new() };
        assert_eq!((Metadata::read(&module(&[])), Metadata::read(b"no module")), (nothing.clone(), nothing));
        // What is wrong with the needs takes nothing from the rest.
        let wrong = Metadata::read(&module(&[(SECTION, "{"), ("version", "1.0")]));
        let error = wrong.needs.unwrap_err().to_string();
        assert!(error.contains("akri:needs") && error.contains("annotate"), "{error}");
        assert_eq!(wrong.about["version"], "1.0");
    }

    #[test]
    fn needs_that_make_no_sense_are_refused_by_what_is_wrong() {
        for (text, what) in [
            ("{", "EOF"),
            (r#"{"netwerk":[]}"#, "unknown field `netwerk`"),
            (r#"{"network":["tcp 10.0.0.1"]}"#, "network, line 1"),
            (r#"{"network":["tcp 10.0.0.1:80\ntcp details"]}"#, "is no rule"),
            (r#"{"network":[" "]}"#, "is no rule"),
            (r#"{"optional-network":["tcp x"]}"#, "network, line 1"),
            (r#"{"host-paths":["/dev/null,/"]}"#, "is no absolute path"),
            (r#"{"\u001b]52;c;x\u0007\n":[]}"#, r"unknown field `\u{1b}]52;c;x\u{7}\n`"),
            (r#"{"volumes":[{"path":"sys"}]}"#, "\"sys\" is no absolute path"),
            (r#"{"host-paths":["/dev/../etc"]}"#, "is no absolute path"),
            (r#"{"uevents":["us b"]}"#, "is no name"),
        ] {
            let error = Needs::read(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        let long = format!(r#"{{"uevents":["{}"]}}"#, "x".repeat(20_000));
        assert!(Needs::read(long.as_bytes()).unwrap_err().to_string().contains("16384 at most"));
        let many = serde_json::json!({"links": vec!["a"; 300]}).to_string();
        assert!(Needs::read(many.as_bytes()).unwrap_err().to_string().contains("300 entries"));
    }
}
