//! Whose the handlers' names are: the namespace's whose pods served a name first, or the one that the operator says. What is
//! kept from others are the discovery properties that Configurations hold, so a name stays a namespace's long after its pods.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// How long a name stays that of the namespace that had it, when none of its pods claims it any more. Long enough for a slow
/// start and a long weekend: what is kept from others are the discovery properties that its Configurations still hold.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Names that are kept, most of them of pods that are gone; a pod's author could make up any number.
const MOST_OWNERS: usize = 1024;

/// A handler's name that a pod may not have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the discovery handler {name:?} belongs to pods of namespace {owner:?}, which served it last; choose another DISCOVERY_HANDLER_NAME, or start the node with --handler-namespaces {name}={namespace}"
)]
pub struct ForeignName {
    name: String,
    owner: String,
    namespace: String,
}

/// Whose a name is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    namespace: String,
    /// When a pod claimed it last, in seconds since 1970.
    claimed: u64,
}

type ByName = BTreeMap<String, Owner>;

/// The owners of all names, kept in a file over an end of the node.
#[derive(Debug)]
pub(crate) struct Owners {
    /// What the operator says.
    said: BTreeMap<String, String>,
    by_name: ByName,
    /// What is written.
    kept: watch::Sender<ByName>,
}

impl Owners {
    /// Those of a file, which is written from now on whenever they change. Must be called in a runtime.
    pub(crate) fn open(path: PathBuf, said: BTreeMap<String, String>) -> Self {
        let (by_name, kept) = (read(&path), watch::Sender::default());
        tokio::spawn(write(path, kept.subscribe()));
        Self { said, by_name, kept }
    }

    /// A pod of a namespace wants a name. Of names that `is_claimed` by others, none is forgotten for it.
    pub(crate) fn claim(
        &mut self,
        name: &str,
        namespace: &str,
        is_claimed: impl Fn(&str) -> bool,
    ) -> Result<(), ForeignName> {
        let kept = self.by_name.get(name).map(|owner| &owner.namespace);
        match self.said.get(name).or(kept) {
            Some(owner) if owner != namespace => {
                return Err(ForeignName {
                    name: name.to_owned(),
                    owner: owner.clone(),
                    namespace: namespace.to_owned(),
                });
            }
            _ => {}
        }
        self.by_name.insert(name.to_owned(), Owner { namespace: namespace.to_owned(), claimed: now() });
        self.keep(|claimed| claimed == name || is_claimed(claimed));
        Ok(())
    }

    /// Frees the names that nobody has claimed for long.
    pub(crate) fn forget_old(&mut self, is_claimed: impl Fn(&str) -> bool) {
        for (name, owner) in &mut self.by_name {
            if is_claimed(name) {
                owner.claimed = now();
            }
        }
        self.by_name.retain(|_, owner| now().saturating_sub(owner.claimed) < PATIENCE.as_secs());
        self.keep(is_claimed);
    }

    /// Has the owners written, and no more of them than are kept.
    fn keep(&mut self, is_claimed: impl Fn(&str) -> bool) {
        while self.by_name.len() > MOST_OWNERS {
            let unclaimed = self.by_name.iter().filter(|(name, _)| !is_claimed(name));
            let Some(oldest) = unclaimed.min_by_key(|(_, owner)| owner.claimed).map(|(name, _)| name.clone()) else {
                break;
            };
            self.by_name.remove(&oldest);
        }
        self.kept.send_replace(self.by_name.clone());
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn read(path: &std::path::Path) -> ByName {
    let json = match std::fs::read(path) {
        Ok(json) => json,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return ByName::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read whose the handlers' names are");
            return ByName::new();
        }
    };
    serde_json::from_slice(&json).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "cannot understand whose the handlers' names are");
        ByName::new()
    })
}

/// Writes the owners whenever they change.
async fn write(path: PathBuf, mut owners: watch::Receiver<ByName>) {
    while owners.changed().await.is_ok() {
        let (path, kept) = (path.clone(), owners.borrow_and_update().clone());
        let written = tokio::task::spawn_blocking(move || {
            let kept = serde_json::to_vec(&kept).map_err(std::io::Error::other);
            let written = kept.and_then(|json| akri_krustlet_host::file::write_atomically(&path, &json, 0o600));
            if let Err(error) = written {
                tracing::warn!(
                    path = %path.display(), %error,
                    "cannot keep whose the handlers' names are; after a restart of the node they belong to whoever comes first"
                );
            }
        });
        let _ = written.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_stays_in_its_namespace_when_its_pods_are_gone_and_over_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("owners.json");
        let mut owners = Owners::open(path.clone(), BTreeMap::new());
        let mut written = owners.kept.subscribe();
        owners.claim("camera", "a", |_| false).unwrap();
        written.wait_for(|owners| owners.contains_key("camera")).await.unwrap();
        let refused = owners.claim("camera", "b", |_| false).unwrap_err().to_string();
        assert!(refused.contains("namespace \"a\"") && refused.contains("--handler-namespaces camera=b"), "{refused}");
        owners.forget_old(|_| false);
        assert!(owners.claim("camera", "b", |_| false).is_err(), "a Configuration may still tell its secrets");
        while read(&path).is_empty() {
            tokio::task::yield_now().await;
        }
        let mut restarted = Owners::open(path, BTreeMap::new());
        assert!(restarted.claim("camera", "b", |_| false).is_err());
        // Nobody has claimed it for long.
        let old = Owner { namespace: "a".to_owned(), claimed: now() - PATIENCE.as_secs() - 1 };
        restarted.by_name.insert("camera".to_owned(), old.clone());
        restarted.forget_old(|name| name == "camera");
        assert!(restarted.claim("camera", "b", |_| false).is_err(), "somebody has it still");
        restarted.by_name.insert("camera".to_owned(), old);
        restarted.forget_old(|_| false);
        assert!(restarted.claim("camera", "b", |_| false).is_ok());
    }

    #[tokio::test]
    async fn no_more_owners_are_kept_than_a_pods_author_can_bear() {
        let directory = tempfile::tempdir().unwrap();
        let mut owners = Owners::open(directory.path().join("owners.json"), BTreeMap::new());
        let is_held = |name: &str| name == "held";
        owners.claim("held", "a", is_held).unwrap();
        for number in 0..2 * MOST_OWNERS {
            owners.claim(&format!("n{number}"), "b", is_held).unwrap();
        }
        assert!(owners.by_name.len() == MOST_OWNERS && owners.by_name.contains_key("held"));
    }

    #[tokio::test]
    async fn what_the_operator_says_counts() {
        let directory = tempfile::tempdir().unwrap();
        let said = BTreeMap::from([("camera".to_owned(), "trusted".to_owned())]);
        let mut owners = Owners::open(directory.path().join("owners.json"), said);
        assert!(owners.claim("camera", "a", |_| false).is_err());
        assert!(owners.claim("camera", "trusted", |_| false).is_ok());
        assert!(owners.claim("meter", "a", |_| false).is_ok());
    }
}
