//! What the node knows of devices, in a file.

use crate::allocation::PodDevices;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The file's content.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    /// By resource. A plugin does not register again when the node is started again; the node goes to its socket.
    #[serde(default)]
    pub(crate) plugins: BTreeMap<String, Plugin>,
    /// By UID.
    #[serde(default)]
    pub(crate) pods: BTreeMap<String, PodDevices>,
}

/// A plugin that registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plugin {
    /// Its socket, a file in the plugins' directory.
    pub(crate) endpoint: String,
    #[serde(default)]
    pub(crate) pre_start: bool,
    #[serde(default)]
    pub(crate) has_preferences: bool,
}

impl Checkpoint {
    /// Reads the file; one that is missing is empty. One that cannot be understood is moved aside, so that it is not lost.
    pub(crate) fn read(path: &Path) -> std::io::Result<Self> {
        let content = match std::fs::read(path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        match serde_json::from_slice(&content) {
            Ok(checkpoint) => Ok(checkpoint),
            Err(error) => {
                let aside = path.with_extension("broken");
                tracing::error!(
                    path = %path.display(), aside = %aside.display(), %error,
                    "the record of allocated devices cannot be understood and is moved aside; pods that run keep what they have, but their devices may be given to others"
                );
                std::fs::rename(path, aside)?;
                Ok(Self::default())
            }
        }
    }

    /// Writes the file for the node's user only: variables of devices may be secret.
    pub(crate) fn write(&self, path: &Path) -> std::io::Result<()> {
        akri_krustlet_host::file::write_atomically(path, &serde_json::to_vec(self)?, 0o600)
    }
}
