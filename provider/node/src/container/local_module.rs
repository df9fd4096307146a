//! Modules that are files of a folder's pods (`fs://`): their authors build them anew while a container of theirs runs.
//!
//! A new module is tried before the container ends for it: one that cannot be run is told of, and the old one goes on.

use super::image;
use crate::cluster::events::EventType;
use crate::context::PodContext;
use crate::loaded_image::LoadedImage;
use crate::status::ContainerKind;
use akri_krustlet_host::DirectoryWatcher;
use akri_krustlet_host::file::{CLOCK_STEP, FileStamp};
use akri_krustlet_host::patience::patiently;
use akri_krustlet_runtime::Program;
use futures::future::{pending, select_all};
use k8s_openapi::api::core::v1::Container;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Pause before a directory that is not there is looked for again: whoever builds all anew removes it first.
const DIRECTORY_RETRY: Duration = Duration::from_secs(1);

/// Resolves when the file of the container's module holds another one than `image`, which can be run. Never for an image that is
/// no file, and for the pods of a cluster: what they run is what the cluster says.
pub async fn rebuilt(context: &PodContext, kind: ContainerKind, container: &Container, image: &LoadedImage) {
    let Some(path) = path(context, container) else { return pending().await };
    // Apart: most containers have no such file, and need no room for following it.
    Box::pin(follow(context, kind, container, image, &path)).await
}

/// Resolves when the file of the container's module is written anew.
pub async fn written(context: &PodContext, container: &Container) {
    let Some(path) = path(context, container) else { return pending().await };
    Box::pin(async move {
        let mut file = File::new(&context.services.watcher, &path);
        let before = file.settled(context).await;
        loop {
            file.changed().await;
            if file.settled(context).await != before {
                return;
            }
        }
    })
    .await
}

fn path(context: &PodContext, container: &Container) -> Option<PathBuf> {
    let image = container.image.as_deref().filter(|image| image::is_file(image))?;
    context.pod.folder.as_ref()?;
    image::file_of(&context.services, &context.pod, image).ok()
}

async fn follow(context: &PodContext, kind: ContainerKind, container: &Container, image: &LoadedImage, path: &Path) {
    let mut file = File::new(&context.services.watcher, path);
    let mut looked_at = None;
    let mut told = String::new();
    loop {
        let stamp = file.settled(context).await;
        let is_known = |program: Arc<Program>| program.digest() == image.program.digest();
        let known = context.services.images.find(path, stamp);
        if stamp.is_some() && stamp != looked_at && !known.is_some_and(is_known) {
            looked_at = stamp;
            // Apart, as what takes long only now and then.
            match Box::pin(image::load(&context.services, &context.latest(), kind, container)).await {
                Ok(new) if new.program.digest() == image.program.digest() => told.clear(),
                Ok(_) => return,
                Err(error) => {
                    let message = format!("{error}; container {} goes on with the module that it has", container.name);
                    if message != told {
                        tracing::warn!(pod = context.pod.key(), container = container.name, "{message}");
                        context.event(kind, &container.name, EventType::Warning, "Failed", message.clone());
                        told = message;
                    }
                }
            }
        }
        file.changed().await;
    }
}

/// A file that is followed, by the directories that it is reached through.
struct File<'a> {
    watcher: &'a DirectoryWatcher,
    path: &'a Path,
    changes: Vec<watch::Receiver<()>>,
}

impl<'a> File<'a> {
    fn new(watcher: &'a DirectoryWatcher, path: &'a Path) -> Self {
        let mut file = Self { watcher, path, changes: Vec::new() };
        file.watch();
        file
    }

    /// The directory of its name, and that of what the name leads to.
    fn watch(&mut self) {
        let target = self.path.canonicalize().ok();
        let files = [Some(self.path), target.as_deref()];
        let directories: BTreeSet<_> = files.iter().flatten().filter_map(|file| file.parent()).collect();
        let watched: Result<Vec<_>, _> = directories.iter().map(|directory| self.watcher.watch(directory)).collect();
        self.changes = watched.unwrap_or_default();
    }

    /// Resolves when something has changed around it.
    async fn changed(&mut self) {
        if self.changes.is_empty() {
            tokio::time::sleep(DIRECTORY_RETRY).await;
            return self.watch();
        }
        let is_there = {
            let changed = self.changes.iter_mut().map(|changes| Box::pin(changes.changed()));
            select_all(changed).await.0.is_ok()
        };
        // A link may lead elsewhere now.
        if !is_there || self.path.is_symlink() {
            self.watch();
        }
    }

    /// What the file is when nobody writes to it; none if it is not there.
    async fn settled(&self, context: &PodContext) -> Option<FileStamp> {
        loop {
            let path = self.path.to_owned();
            let metadata = patiently(context.pod.uid(), move || std::fs::metadata(path)).await;
            let metadata = metadata.ok()?.ok()?;
            match FileStamp::settled(&metadata) {
                Some(stamp) => return Some(stamp),
                None => tokio::time::sleep(CLOCK_STEP).await,
            }
        }
    }
}
