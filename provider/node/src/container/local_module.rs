//! Containers whose module is a file of a folder's pods ([`crate::local_modules`]).

use super::image;
use crate::cluster::events::EventType;
use crate::context::PodContext;
use crate::loaded_image::LoadedImage;
use crate::local_modules::LocalModule;
use crate::status::ContainerKind;
use futures::future::pending;
use k8s_openapi::api::core::v1::Container;
use std::path::Path;
use std::sync::Arc;

/// What the status of a container says that was ended for another module of its file.
pub const REPLACED: &str = "ended for the module that was built anew";

/// Resolves when the file of the container's module holds another one than `image`, with that. Never for an image that is no file, and
/// for the pods of a cluster: what they run is what the cluster says.
pub async fn rebuilt(
    context: &PodContext,
    kind: ContainerKind,
    container: &Container,
    image: &LoadedImage,
) -> Box<LoadedImage> {
    let Some(module) = follow(context, container) else { return pending().await };
    // Apart: most containers have no such file, and need no room for following it.
    Box::pin(newer(context, kind, container, image, module)).await
}

async fn newer(
    context: &PodContext,
    kind: ContainerKind,
    container: &Container,
    image: &LoadedImage,
    module: Arc<LocalModule>,
) -> Box<LoadedImage> {
    let mut tried = module.tried();
    let mut told: Option<Arc<str>> = None;
    loop {
        let newest = tried.borrow_and_update().result.clone();
        match newest {
            Some(Ok(new)) if new.program.digest() != image.program.digest() => {
                let id = new.program.digest().to_string();
                return Box::new(LoadedImage { program: new.program, info: new.info, id, ..image.clone() });
            }
            Some(Ok(_)) | None => told = None,
            Some(Err(message)) if told.as_ref() != Some(&message) => {
                context.event(kind, &container.name, EventType::Warning, "Failed", message.to_string());
                told = Some(message);
            }
            Some(Err(_)) => {}
        }
        if tried.changed().await.is_err() {
            return pending().await;
        }
    }
}

/// What was tried of a container's file before it is loaded.
pub struct Before(Option<(Arc<LocalModule>, u64)>);

impl Before {
    /// Now.
    pub fn of(context: &PodContext, container: &Container) -> Self {
        Self(follow(context, container).map(|module| {
            let number = module.tried().borrow().number;
            (module, number)
        }))
    }

    /// Resolves when another module was tried since, and can be run.
    pub async fn another_runs(&self) {
        match &self.0 {
            Some((module, number)) => module.runs_after(*number).await,
            None => pending().await,
        }
    }
}

/// The container's file, unless a guest of its pod could write it: guests do not say what the node runs.
fn follow(context: &PodContext, container: &Container) -> Option<Arc<LocalModule>> {
    let image = container.image.as_deref().filter(|image| image::is_file(image))?;
    context.pod.folder.as_ref()?;
    let path = image::file_of(&context.services, &context.pod, image).ok()?;
    if is_writable(context, &path) {
        return None;
    }
    Some(context.services.local_modules.follow(&context.services, &path))
}

fn is_writable(context: &PodContext, path: &Path) -> bool {
    let pod = &context.pod;
    let containers = || pod.init_containers().iter().chain(&pod.spec().containers);
    let is_written = |volume: &str| {
        let mut mounts = containers().flat_map(|container| container.volume_mounts.iter().flatten());
        mounts.any(|mount| mount.name == volume && mount.read_only != Some(true))
    };
    let mut volumes = pod.spec().volumes.iter().flatten();
    volumes.any(|volume| {
        let directory = volume.host_path.as_ref().map(|host_path| pod.resolve(&host_path.path));
        directory.is_some_and(|directory| path.starts_with(directory)) && is_written(&volume.name)
    })
}
