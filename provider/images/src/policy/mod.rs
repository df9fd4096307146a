//! Which images a node runs: what its operator asks of them.
//!
//! The policy is a file, YAML. The first entry that names an image's repository says what is asked of the image; what no entry
//! names is refused. It is read again when it has changed; one that cannot be read then leaves what was known in force.
//!
//! ```yaml
//! images:
//! - names: registry.example/akri-krustlet/*   # what follows the start; without `*` one repository
//!   keys: [cosign.pub]                        # files with public keys (PEM), beside the policy
//! - names: registry.example/tools/reader
//!   digest: true                              # pods name it by its digest
//! - names: localhost:5000/*
//!   anything: true
//! ```

mod key;
mod signature;

use crate::digest;
use crate::pull_error::PullError;
use crate::registry::Registry;
use crate::store::Image;
use akri_krustlet_host::file::ReadFiles;
use key::PublicKey;
use oci_client::Reference;
use serde::Deserialize;
use signature::Signature;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;

/// Largest policy, and largest file of a key, in bytes.
const MOST_FILE: u64 = 1 << 20;
/// Signatures of one image that are looked at.
const MOST_SIGNATURES: usize = 32;
/// Images whose signatures are looked at, at a time.
static VERIFYING: Semaphore = Semaphore::const_new(2);

/// The policy of a node; without one every image is run.
#[derive(Clone, Debug, Default)]
pub struct ImagePolicy {
    file: Option<Arc<PolicyFile>>,
}

#[derive(Debug)]
struct PolicyFile {
    path: PathBuf,
    /// What counts.
    current: Mutex<Arc<Policy>>,
    /// What was read last, well or not. Its lock may be held for as long as the files' system takes.
    read: Mutex<ReadFiles>,
}

/// What a file says.
#[derive(Debug)]
struct Policy {
    path: PathBuf,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    names: String,
    /// None: no signature is asked for.
    keys: Option<Vec<PublicKey>>,
    digest: bool,
}

/// Why an image is not run. The policy is named, as its operator is the one to ask.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// No entry names it.
    #[error("the node's image policy {} names no such image, and refuses it; whoever runs the node decides that", policy.display())]
    NotNamed {
        /// The policy's file.
        policy: PathBuf,
    },
    /// It is to be named by its digest.
    #[error(
        "the node's image policy {} wants {names} by digest: name the image REPOSITORY@sha256:...", policy.display()
    )]
    NoDigest {
        /// The policy's file.
        policy: PathBuf,
        /// The entry.
        names: String,
    },
    /// It has no signature that counts.
    #[error(
        "the node's image policy {} wants {names} signed by {keys}, and {digest} {found}; sign it (cosign sign --key), or ask whoever runs the node",
        policy.display()
    )]
    Unsigned {
        /// The policy's file.
        policy: PathBuf,
        /// The entry.
        names: String,
        /// The files of the keys.
        keys: String,
        /// Of the image.
        digest: String,
        /// What there is instead.
        found: String,
    },
}

/// A policy that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", path.display())]
pub struct PolicyFileError {
    path: PathBuf,
    message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    images: Vec<EntryContent>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryContent {
    names: String,
    #[serde(default)]
    keys: Vec<PathBuf>,
    #[serde(default)]
    digest: bool,
    #[serde(default)]
    anything: bool,
}

impl ImagePolicy {
    /// That of a file. Blocks.
    pub fn of_file(path: PathBuf) -> Result<Self, PolicyFileError> {
        let (policy, read) = Policy::read(&path);
        let (current, read) = (Mutex::new(Arc::new(policy?)), Mutex::new(read));
        Ok(Self { file: Some(Arc::new(PolicyFile { path, current, read })) })
    }

    /// As it is now.
    async fn current(&self) -> Option<Arc<Policy>> {
        let file = self.file.clone()?;
        let of_thread = file.clone();
        // It reads, or leaves everything as it is.
        let _ = tokio::task::spawn_blocking(move || of_thread.look()).await;
        Some(file.current.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// What can be said without asking a registry.
    pub(crate) async fn check_name(&self, reference: &Reference) -> Result<(), PolicyError> {
        match self.current().await {
            Some(policy) => policy.entry(reference).map(drop),
            None => Ok(()),
        }
    }

    /// Whether an image that is here may be run without its registry being asked.
    pub async fn permits(&self, reference: &Reference, image: &Image) -> Result<bool, PolicyError> {
        let Some(policy) = self.current().await else { return Ok(true) };
        let entry = policy.entry(reference)?;
        Ok(entry.keys.as_ref().is_none_or(|keys| keys.iter().any(|key| image.signers.contains(key.fingerprint()))))
    }

    /// Whose signatures an image has that its registry gives: the keys' fingerprints, of those that are asked for.
    pub(crate) async fn verify(
        &self,
        registry: &Registry,
        reference: &Reference,
        digest: &str,
    ) -> Result<BTreeSet<String>, PullError> {
        let Some(policy) = self.current().await else { return Ok(BTreeSet::new()) };
        let entry = policy.entry(reference)?;
        let Some(keys) = &entry.keys else { return Ok(BTreeSet::new()) };
        // What a registry answers takes memory: a few at a time.
        let _turn = VERIFYING.acquire().await.map_err(std::io::Error::other)?;
        let signatures = signature::of_image(registry, digest, MOST_SIGNATURES).await?;
        let mut signers = BTreeSet::new();
        let mut wrong = Vec::new();
        for signature in &signatures {
            match signature.signed_by(keys, digest) {
                Ok(key) => drop(signers.insert(key.fingerprint().to_owned())),
                Err(why) => wrong.push(why),
            }
        }
        if !signers.is_empty() {
            return Ok(signers);
        }
        wrong.dedup();
        let found = match wrong.is_empty() {
            true => "has no signature".to_owned(),
            false => format!("has none that counts, of {}: {}", signatures.len(), wrong.join("; ")),
        };
        let names = keys.iter().map(|key| key.name()).collect::<Vec<_>>().join(" or ");
        Err(PullError::from(PolicyError::Unsigned {
            policy: policy.path.clone(),
            names: entry.names.clone(),
            keys: names,
            digest: digest.to_owned(),
            found,
        }))
    }
}

impl PolicyFile {
    fn look(&self) {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if !read.are_changed() {
            return;
        }
        let (policy, files) = Policy::read(&self.path);
        *read = files;
        match policy {
            Ok(policy) => {
                tracing::info!(path = %self.path.display(), "the image policy was read again");
                *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
            }
            Err(error) => {
                tracing::error!("the image policy cannot be read again: {error}; what it said before counts on");
            }
        }
    }
}

impl Policy {
    /// What a file says, and the files that this depends on: also those that are missing, as they may come.
    fn read(path: &Path) -> (Result<Self, PolicyFileError>, ReadFiles) {
        let failed = |message: String| PolicyFileError { path: path.to_owned(), message };
        // Before it is read: one that changes meanwhile is another one.
        let itself = ReadFiles::new([path.to_owned()]);
        let content = match read(path) {
            Ok(text) => serde_saphyr::from_slice::<Content>(&text).map_err(|error| error.without_snippet().to_string()),
            Err(error) => Err(error.to_string()),
        };
        let content = match content {
            Ok(content) => content,
            Err(message) => return (Err(failed(message)), itself),
        };
        let directory = path.parent().unwrap_or(Path::new("."));
        let keys =
            content.images.iter().flat_map(|entry| &entry.keys).map(|key| directory.join(key)).collect::<Vec<_>>();
        let files = itself.and(keys);
        let entries = content.images.into_iter().zip(1..).map(|(entry, number)| {
            Entry::read(entry, directory).map_err(|message| failed(format!("entry {number}: {message}")))
        });
        let entries = entries.collect::<Result<_, _>>();
        (entries.map(|entries| Self { path: path.to_owned(), entries }), files)
    }

    fn entry(&self, reference: &Reference) -> Result<&Entry, PolicyError> {
        // Hosts are the same in any letters, and 443 is what they have without a port.
        let registry = reference.registry().to_ascii_lowercase();
        let registry = registry.strip_suffix(":443").unwrap_or(&registry);
        let name = format!("{registry}/{}", reference.repository());
        let policy = || self.path.clone();
        let entry = self.entries.iter().find(|entry| entry.is_about(&name));
        let entry = entry.ok_or_else(|| PolicyError::NotNamed { policy: policy() })?;
        if entry.digest && reference.digest().is_none() {
            return Err(PolicyError::NoDigest { policy: policy(), names: entry.names.clone() });
        }
        Ok(entry)
    }
}

impl Entry {
    fn read(content: EntryContent, directory: &Path) -> Result<Self, String> {
        let EntryContent { names, keys, digest, anything } = content;
        let start = names.strip_suffix('*').unwrap_or(&names);
        let is_pattern = start != names && (start.is_empty() || start.ends_with('/'));
        let is_name = start == names
            && crate::reference::parse(&names).is_ok_and(|reference| {
                reference.digest().is_none() && format!("{}/{}", reference.registry(), reference.repository()) == names
            });
        if !is_pattern && !is_name {
            return Err(format!(
                "names: {names:?} is no repository with its registry, as registry.example/name, nor all below one, as registry.example/*"
            ));
        }
        if anything && (digest || !keys.is_empty()) {
            return Err("anything: true leaves nothing to be asked; take `keys` and `digest` out, or it".to_owned());
        }
        if !anything && !digest && keys.is_empty() {
            return Err("it asks for nothing; say keys, digest: true, or anything: true".to_owned());
        }
        let keys = keys.iter().map(|key| {
            let path = directory.join(key);
            let text = read(&path).map_err(|error| format!("key {}: {error}", path.display()))?;
            PublicKey::read(&path, &text).map_err(|error| format!("key {}: {error}", path.display()))
        });
        let keys: Vec<_> = keys.collect::<Result<_, _>>()?;
        Ok(Self { names, keys: (!keys.is_empty()).then_some(keys), digest })
    }

    fn is_about(&self, name: &str) -> bool {
        match self.names.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == self.names,
        }
    }
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut text = Vec::new();
    std::fs::File::open(path)?.take(MOST_FILE + 1).read_to_end(&mut text)?;
    match text.len() as u64 > MOST_FILE {
        true => Err(std::io::Error::other(format!("larger than {} MiB", MOST_FILE >> 20))),
        false => Ok(text),
    }
}

impl Signature {
    /// The key that has made it of this image, or why none counts.
    fn signed_by<'a>(&self, keys: &'a [PublicKey], digest: &str) -> Result<&'a PublicKey, String> {
        // First whether anybody vouches for what it says.
        let key = keys.iter().find(|key| key.verifies(&self.message(), &self.signature));
        let key = key.ok_or("made by another key")?;
        match self.is_of(digest) {
            Ok(()) => Ok(key),
            Err(why) => Err(format!("made by {}, {why}", key.name())),
        }
    }
}

impl From<PolicyError> for PullError {
    fn from(error: PolicyError) -> Self {
        Self::Policy(Box::new(error))
    }
}

/// The digits of a SHA-256 digest; what is signed has no other.
fn sha256(digest: &str) -> Option<&str> {
    digest::parts(digest).filter(|(algorithm, _)| *algorithm == "sha256").map(|(_, digits)| digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEfs7pAkKyIvHXwUiE2nkYKvOkIp/G\nMLkdiCEB9Ksp2BkNy9yedDulSE3hE/g4bAAE0TU5PLSvfmIWnSgBHt41ng==\n-----END PUBLIC KEY-----\n";

    fn policy(text: &str) -> Result<Policy, String> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a.pub"), KEY).unwrap();
        std::fs::write(directory.path().join("bad.pub"), "no key").unwrap();
        let path = directory.path().join("policy.yaml");
        std::fs::write(&path, text).unwrap();
        Policy::read(&path).0.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_policy_that_waits_for_its_keys_counts_when_they_come() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy.yaml");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        let image = crate::reference::parse("r.example/a").unwrap();
        write("images:\n- names: r.example/*\n  anything: true\n");
        let policy = ImagePolicy::of_file(path.clone()).unwrap();
        let asks_for_a_key = async || policy.current().await.unwrap().entry(&image).unwrap().keys.is_some();
        assert!(!asks_for_a_key().await);
        write("images:\n- names: r.example/*\n  keys: [late.pub]\n");
        assert!(!asks_for_a_key().await, "what was known counts on");
        std::fs::write(directory.path().join("late.pub"), KEY).unwrap();
        assert!(asks_for_a_key().await);
    }

    #[test]
    fn the_first_entry_that_names_an_image_decides() {
        let policy = policy(
            "images:\n- names: r.example/a/b\n  anything: true\n- names: r.example/a/*\n  digest: true\n- names: localhost:5000/*\n  anything: true\n",
        )
        .unwrap();
        let of = |image: &str| {
            policy.entry(&crate::reference::parse(image).unwrap()).map(|entry| entry.names.clone()).map_err(|error| {
                let text = error.to_string();
                assert!(text.contains("policy.yaml"), "{text}");
                text
            })
        };
        assert_eq!(of("r.example/a/b:v1"), Ok("r.example/a/b".to_owned()));
        assert_eq!(of("localhost:5000/x"), Ok("localhost:5000/*".to_owned()));
        assert_eq!(of("R.Example:443/a/b:v1"), Ok("r.example/a/b".to_owned()));
        assert!(of("r.example/a/c:v1").unwrap_err().contains("wants r.example/a/* by digest"));
        assert!(of(&format!("r.example/a/c@sha256:{}", "0".repeat(64))).is_ok());
        assert!(of("r.example/abc").unwrap_err().contains("names no such image"));
        assert!(of("a/b").unwrap_err().contains("names no such image"), "docker.io is a registry like others");
    }

    #[test]
    fn a_policy_that_makes_no_sense_is_refused_by_entry() {
        for (text, what) in [
            ("images:\n- names: r.example/*\n", "entry 1: it asks for nothing"),
            ("images:\n- names: r.example/x*\n  digest: true\n", "is no repository"),
            ("images:\n- names: x\n  digest: true\n", "\"x\" is no repository with its registry"),
            ("images:\n- names: r.example/*\n  keys: [none.pub]\n", "none.pub: No such file"),
            ("images:\n- names: r.example/*\n  keys: [bad.pub]\n", "bad.pub: "),
            ("images:\n- names: r.example/*\n  keys: [a.pub]\n  anything: true\n", "leaves nothing to be asked"),
            ("images:\n- names: r.example/*\n  key: [a.pub]\n", "unknown field"),
            ("image: []\n", "unknown field"),
        ] {
            let error = policy(text).unwrap_err();
            assert!(error.contains(what) && error.contains("policy.yaml"), "{error}");
        }
        let keys = policy("images:\n- names: '*'\n  keys: [a.pub]\n").unwrap();
        assert_eq!(keys.entries[0].keys.as_ref().unwrap()[0].name(), "a.pub");
    }
}
