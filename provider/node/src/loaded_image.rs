//! Images that are ready to run, and the programs that they share.

use akri_krustlet_discovery::HandlerInfo;
use akri_krustlet_host::Turns;
use akri_krustlet_host::file::FileStamp;
use akri_krustlet_images::Launch;
use akri_krustlet_runtime::Program;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The programs of the files that have been loaded, as long as something runs them: a thousand pods of one image read it
/// once.
#[derive(Debug, Default)]
pub struct LoadedImages {
    by_path: Mutex<HashMap<PathBuf, (FileStamp, Weak<Program>)>>,
    /// Of the files that are being read.
    pub turns: Turns<PathBuf>,
}

impl LoadedImages {
    /// The program of a file that is unchanged.
    pub fn find(&self, path: &Path, stamp: Option<FileStamp>) -> Option<Arc<Program>> {
        let by_path = self.by_path.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, program) = by_path.get(path)?;
        if Some(*known) == stamp { program.upgrade() } else { None }
    }

    /// Keeps it for the next one.
    pub fn remember(&self, path: PathBuf, stamp: Option<FileStamp>, program: &Arc<Program>) {
        let Some(stamp) = stamp else { return };
        let mut by_path = self.by_path.lock().unwrap_or_else(PoisonError::into_inner);
        by_path.retain(|_, (_, program)| program.strong_count() > 0);
        by_path.insert(path, (stamp, Arc::downgrade(program)));
    }
}

/// An image, ready to run.
#[derive(Clone, Debug)]
pub struct LoadedImage {
    /// The image as the container names it.
    pub name: String,
    /// The program.
    pub program: Arc<Program>,
    /// What it says of the discovery handler in it, if it says that it is one.
    pub info: Option<Arc<HandlerInfo>>,
    /// For the container's status, `imageID`: which content it is.
    pub id: String,
    /// The image's full name, if it is from a registry.
    pub reference: Option<String>,
    /// What the image says of how it is started.
    pub launch: Launch,
}
