//! Images: where a container's module comes from.

use crate::pod::PodObject;
use akri_krustlet_runtime::{LoadError, Program, Runtime};
use std::collections::HashMap;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

/// Why a container's image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The container names none.
    #[error("container {container} names no image")]
    Missing {
        /// The container.
        container: String,
    },
    /// The image is in a registry.
    #[error(
        "image {image}: this version of the node does not pull from registries yet; use a file: fs:///path/to/module.wasm"
    )]
    Registry {
        /// The image.
        image: String,
    },
    /// The path is relative and there is no manifest that it could be relative to.
    #[error("image {image}: a relative path is only possible in a manifest file; use fs:///path/to/module.wasm")]
    Relative {
        /// The image.
        image: String,
    },
    /// The file cannot be read.
    #[error("image {image}: {}: {source}", path.display())]
    Read {
        /// The image.
        image: String,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is no module that the node can run.
    #[error("image {image}: {source}")]
    Load {
        /// The image.
        image: String,
        /// Why not.
        #[source]
        source: LoadError,
    },
}

impl ImageError {
    /// The reason that a kubelet's container status would give.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } | Self::Registry { .. } | Self::Relative { .. } => "InvalidImageName",
            Self::Read { .. } => "ErrImagePull",
            Self::Load { .. } => "ImageInspectError",
        }
    }
}

/// The programs of the files that have been loaded, as long as something runs them: a thousand pods of one image read it
/// once.
#[derive(Debug, Default)]
pub struct LoadedImages {
    by_path: Mutex<HashMap<PathBuf, (Stamp, Weak<Program>)>>,
}

/// Device, inode, length and time of the last change: equal for a file that was not written since.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stamp(u64, u64, u64, SystemTime);

impl Stamp {
    /// `None` for a file that cannot be read, or was changed so lately that another change might look the same.
    fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        let modified = metadata.modified().ok()?;
        let settled = modified.elapsed().is_ok_and(|age| age > Duration::from_millis(100));
        settled.then(|| Self(metadata.dev(), metadata.ino(), metadata.len(), modified))
    }
}

impl LoadedImages {
    fn find(&self, path: &Path, stamp: Option<Stamp>) -> Option<Arc<Program>> {
        let by_path = self.by_path.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, program) = by_path.get(path)?;
        if Some(*known) == stamp { program.upgrade() } else { None }
    }

    fn remember(&self, path: PathBuf, stamp: Option<Stamp>, program: &Arc<Program>) {
        let Some(stamp) = stamp else { return };
        let mut by_path = self.by_path.lock().unwrap_or_else(PoisonError::into_inner);
        by_path.retain(|_, (_, program)| program.strong_count() > 0);
        by_path.insert(path, (stamp, Arc::downgrade(program)));
    }
}

/// Reads the module of a container's image and makes a program of it.
pub async fn load(
    runtime: &Runtime,
    loaded: &LoadedImages,
    pod: &PodObject,
    container: &k8s_openapi::api::core::v1::Container,
) -> Result<Arc<Program>, ImageError> {
    let image = container.image.clone().unwrap_or_default();
    let path = path_of(pod, &container.name, &image)?;
    // Before reading: a file that changes meanwhile is another one.
    let stamp = Stamp::of(&path);
    if let Some(program) = loaded.find(&path, stamp) {
        return Ok(program);
    }
    let limit = runtime.module_size_limit();
    let reading = path.clone();
    let module = tokio::task::spawn_blocking(move || read_at_most(&reading, limit)).await;
    let module = match module {
        Ok(Ok(module)) => module,
        Ok(Err(source)) => return Err(ImageError::Read { image, path, source }),
        Err(error) => return Err(ImageError::Read { image, path, source: std::io::Error::other(error) }),
    };
    if !runtime.is_compiled(&module) {
        tracing::info!(pod = pod.key(), image, bytes = module.len(), "compiling the module");
    }
    let program = runtime.load(&module).await.map_err(|source| ImageError::Load { image, source })?;
    loaded.remember(path, stamp, &program);
    Ok(program)
}

fn path_of(pod: &PodObject, container: &str, image: &str) -> Result<PathBuf, ImageError> {
    if image.is_empty() {
        return Err(ImageError::Missing { container: container.to_owned() });
    }
    let Some(path) = image.strip_prefix("fs://") else {
        return Err(ImageError::Registry { image: image.to_owned() });
    };
    if !path.starts_with('/') && pod.folder.is_none() {
        return Err(ImageError::Relative { image: image.to_owned() });
    }
    Ok(pod.resolve(path))
}

/// Reads a regular file; one byte more than `limit` if it has that, so that the compiler says that it is too large.
fn read_at_most(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let file = std::fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    let mut module = Vec::new();
    file.take(limit + 1).read_to_end(&mut module)?;
    Ok(module)
}
