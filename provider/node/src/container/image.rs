//! Images: where a container's module comes from, a file (`fs://`) or a registry.

use super::local_module::Before;
use crate::cluster::events::EventType;
use crate::context::PodContext;
use crate::loaded_image::LoadedImage;
use crate::local_modules::TriedModule;
use crate::pod::PodObject;
use crate::services::Services;
use crate::status::{ContainerKind, waiting};
use akri_krustlet_discovery::HandlerInfo;
use akri_krustlet_host::file::FileStamp;
use akri_krustlet_host::patience::patiently;
use akri_krustlet_images::{Credentials, Launch, PolicyError, PullError, Reference};
use akri_krustlet_runtime::{Item, LoadError, ModuleKind, Program};
use k8s_openapi::api::core::v1::{Container, Secret};
use kube::api::Api;
use rustix::fs::{FileType, Mode, OFlags};
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Why a container's image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The container names none.
    #[error("container {container} names no image")]
    Missing {
        /// The container.
        container: String,
    },
    /// Neither `fs://` nor the name of an image in a registry.
    #[error("image {image}: {what}; expected REGISTRY/REPOSITORY:TAG, or fs:///path/to/module.wasm")]
    Name {
        /// The image.
        image: String,
        /// What is wrong.
        what: String,
    },
    /// A pod of a cluster would read a file of the node.
    #[error(
        "image {image}: this node runs no files of its own for the cluster's pods; push the module to a registry, or start the node with --allow-local-modules"
    )]
    Local {
        /// The image.
        image: String,
    },
    /// The registry does not give it.
    #[error("image {image}: {source}")]
    Pull {
        /// The image.
        image: String,
        /// Why not.
        #[source]
        source: PullError,
    },
    /// The pod wants it only if it is there.
    #[error("image {image} is not on this node, and imagePullPolicy Never forbids to pull it")]
    Never {
        /// The image.
        image: String,
    },
    /// It was pulled with the credentials of other pods.
    #[error(
        "image {image} is on this node, but was pulled with credentials that this pod does not have, and imagePullPolicy Never forbids to ask the registry; give the pod an imagePullSecret that may pull it"
    )]
    NotTheirs {
        /// The image.
        image: String,
    },
    /// Nobody has looked at its signature.
    #[error(
        "image {image} is on this node, but was pulled before the node's image policy asked for its signature, and imagePullPolicy Never forbids to ask the registry"
    )]
    NotVerified {
        /// The image.
        image: String,
    },
    /// The node's operator does not let it run.
    #[error("image {image}: {source}")]
    Policy {
        /// The image.
        image: String,
        /// Why not.
        #[source]
        source: Box<PolicyError>,
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
    /// It is a component, and either no discovery handler or one that cannot be asked which.
    #[error("image {image}: {what}")]
    Describe {
        /// The image.
        image: String,
        /// Why not.
        what: String,
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
    /// Whether the module itself is at fault, and will be tomorrow; if not, it may work later.
    pub fn is_of_module(&self) -> bool {
        use akri_krustlet_runtime::CompileError;
        match self {
            Self::Load { source: LoadError::Store(_) | LoadError::Unusable(_), .. } | Self::Read { .. } => false,
            Self::Load { source: LoadError::Compile(error), .. } => {
                !matches!(error, CompileError::Host(_) | CompileError::Spawn { .. } | CompileError::Limit(_))
            }
            _ => true,
        }
    }

    /// The reason that a kubelet's container status would give.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } | Self::Name { .. } | Self::Relative { .. } | Self::Local { .. } => "InvalidImageName",
            // As a kubelet says it of an image that its runtime does not trust.
            Self::Policy { .. } | Self::Pull { source: PullError::Policy(_), .. } => "SignatureValidationFailed",
            Self::Read { .. } | Self::Pull { .. } => "ErrImagePull",
            Self::Never { .. } | Self::NotTheirs { .. } | Self::NotVerified { .. } => "ErrImageNeverPull",
            Self::Load { .. } | Self::Describe { .. } => "ImageInspectError",
        }
    }
}

/// An image that could not be had, as the container's status and the pod's events tell it.
#[derive(Debug)]
pub struct ImageFailure {
    kind: ContainerKind,
    container: Container,
    reason: &'static str,
    message: String,
}

impl ImageFailure {
    /// Tells of it.
    pub fn of(context: &PodContext, kind: ContainerKind, container: &Container, error: &ImageError) -> Self {
        let (reason, message) = (error.reason(), error.to_string());
        tracing::error!(pod = context.pod.key(), container = container.name, "{message}");
        let (event, told) = match reason {
            "InvalidImageName" => ("InspectFailed", message.clone()),
            "ErrImageNeverPull" => ("ErrImageNeverPull", message.clone()),
            _ => ("Failed", format!("Failed to pull image: {message}")),
        };
        for (event, told) in [(event, told), ("Failed", format!("Error: {reason}"))] {
            context.event(kind, &container.name, EventType::Warning, event, told);
        }
        Self { kind, container: container.clone(), reason, message }
    }

    /// Waits until the image should be tried again, or is another one; true if it is.
    pub async fn wait(&self, context: &PodContext, pause: Duration, before: &Before) -> bool {
        tokio::select! {
            () = self.back_off(context, pause) => false,
            () = context.image_changed(self.kind, &self.container) => true,
            () = before.another_runs() => true,
        }
    }

    async fn back_off(&self, context: &PodContext, pause: Duration) {
        let Self { kind, container, reason, message } = self;
        let tell = |reason: &str, message: &str| {
            context.reporter.update_container(*kind, &container.name, |status| waiting(status, reason, message));
        };
        tell(reason, message);
        // Long enough to be seen; then what the node is doing about it, as a kubelet tells it.
        let seen = pause.min(Duration::from_secs(1));
        tokio::time::sleep(seen).await;
        if ["ErrImagePull", "ImageInspectError", "SignatureValidationFailed"].contains(reason) {
            let image = container.image.as_deref().unwrap_or_default();
            let message = format!("Back-off pulling image \"{image}\"");
            let waiting = format!("{message}: {reason}: {}", self.message);
            // Whoever sees the status finds the event.
            context.event(*kind, &container.name, EventType::Normal, "BackOff", message);
            tell("ImagePullBackOff", &waiting);
        }
        tokio::time::sleep(pause - seen).await;
    }
}

/// Has the image of a container pulled, if its policy says so, and makes a program of its module.
pub async fn load(
    services: &Services,
    pod: &PodObject,
    kind: ContainerKind,
    container: &Container,
) -> Result<LoadedImage, ImageError> {
    let image = container.image.clone().unwrap_or_default();
    if image.is_empty() {
        return Err(ImageError::Missing { container: container.name.clone() });
    }
    if is_file(&image) {
        let path = file_of(services, pod, &image)?;
        let program = load_file(services, &pod.key(), &image, path).await?;
        return Ok(LoadedImage {
            info: describe(services, &image, &program).await?,
            id: program.digest().to_string(),
            name: image,
            program,
            reference: None,
            launch: Launch::default(),
        });
    }
    let reference = akri_krustlet_images::reference::parse(&image)
        .map_err(|error| ImageError::Name { image: image.clone(), what: error.to_string() })?;
    let (found, path) = available(services, pod, (kind, container), &image, &reference).await?;
    let program = load_file(services, &pod.key(), &image, path).await?;
    let info = describe(services, &image, &program).await?;
    Ok(LoadedImage { name: image, program, info, id: found.id, reference: Some(found.reference), launch: found.launch })
}

/// Makes a program of a file, and asks it what it is.
pub async fn load_local(services: &Services, path: &Path) -> Result<TriedModule, ImageError> {
    let image = format!("fs://{}", path.display());
    let program = load_file(services, "", &image, path.to_owned()).await?;
    let info = describe(services, &image, &program).await?;
    Ok(TriedModule { program, info })
}

/// What an image says of the discovery handler in it.
async fn describe(
    services: &Services,
    image: &str,
    program: &Arc<Program>,
) -> Result<Option<Arc<HandlerInfo>>, ImageError> {
    let of_image = |what| ImageError::Describe { image: image.to_owned(), what };
    let described = services.descriptions.of(&services.runtime, program).await.map_err(of_image)?;
    if described.is_none() && program.kind() == ModuleKind::Component && !services.runtime.is_command(program) {
        let exports = services.runtime.exports(program);
        return Err(of_image(no_use(&exports)));
    }
    Ok(described)
}

/// Why a component is of no use to a node: it is neither a discovery handler nor a command.
pub fn no_use(exports: &[Item]) -> String {
    let is_proxy = exports.iter().any(|export| export.interface() == "wasi:http/incoming-handler");
    let names = exports.iter().map(|export| export.name.as_str()).collect::<Vec<_>>();
    let what = match (is_proxy, &names[..]) {
        (true, _) => {
            "it is an HTTP server (wasi:http/proxy), which would need a listener that the node does not have".to_owned()
        }
        (false, []) => "it exports nothing".to_owned(),
        (false, names) => format!("it exports {}", names.join(", ")),
    };
    format!(
        "{what}; a component is a discovery handler by exporting akri:discovery/handler@0.1.0, and a program by exporting wasi:cli/run (wasi:cli/command)"
    )
}

/// What the event of an image says that need not be pulled.
pub fn already_present(image: &str) -> String {
    format!("Container image \"{image}\" already present on machine")
}

/// True for images that are files, which are read again whenever their container starts.
pub fn is_file(image: &str) -> bool {
    image.starts_with("fs://")
}

/// The image's record and the file of its module, after a pull if the policy asks for one.
async fn available(
    services: &Services,
    pod: &PodObject,
    (kind, container): (ContainerKind, &Container),
    image: &str,
    reference: &Reference,
) -> Result<(akri_krustlet_images::Image, PathBuf), ImageError> {
    let event = |reason, message: String| {
        services.events.container(pod, (kind, &container.name), EventType::Normal, reason, message);
    };
    let pull_policy = match container.image_pull_policy.as_deref() {
        Some(policy) => policy,
        // The API server fills it in; a manifest may leave it out.
        None if reference.digest().is_none() && reference.tag().is_none_or(|tag| tag == "latest") => "Always",
        None => "IfNotPresent",
    };
    let found = services.registry.find(reference);
    let mut credentials = None;
    match (pull_policy, found) {
        ("Never", None) => return Err(ImageError::Never { image: image.to_owned() }),
        ("Never" | "IfNotPresent", Some(found)) => {
            let for_everyone = found.0.access == akri_krustlet_images::Access::Everyone;
            let shown = if for_everyone { Credentials::default() } else { pull_credentials(services, pod).await };
            let policy = |source| ImageError::Policy { image: image.to_owned(), source: Box::new(source) };
            let is_permitted = services.registry.is_permitted(&found.0, reference).await.map_err(policy)?;
            let may_run = services.registry.may_run(&found.0, reference, &shown);
            if may_run && is_permitted {
                event("Pulled", already_present(image));
                return Ok(found);
            }
            if pull_policy == "Never" {
                let image = image.to_owned();
                return Err(if may_run { ImageError::NotVerified { image } } else { ImageError::NotTheirs { image } });
            }
            credentials = Some(shown);
        }
        _ => {}
    }
    event("Pulling", format!("Pulling image \"{image}\""));
    let credentials = match credentials {
        Some(credentials) => credentials,
        None => pull_credentials(services, pod).await,
    };
    let started = std::time::Instant::now();
    let (found, path) = services
        .registry
        .pull(reference, &credentials)
        .await
        .map_err(|source| ImageError::Pull { image: image.to_owned(), source })?;
    let size = std::fs::metadata(&path).map_or(0, |file| file.len());
    let took = started.elapsed().as_millis();
    event("Pulled", format!("Successfully pulled image \"{image}\" in {took}ms. Image size: {size} bytes."));
    Ok((found, path))
}

/// What the pod's imagePullSecrets hold. One that is missing or malformed is told and left out, as a kubelet does: the image
/// may be public.
async fn pull_credentials(services: &Services, pod: &PodObject) -> Credentials {
    let mut credentials = Credentials::default();
    let warn = |message: String| {
        tracing::warn!(pod = pod.key(), "{message}");
        services.events.pod(pod, EventType::Warning, "FailedToRetrieveImagePullSecret", message);
    };
    for secret in pod.spec().image_pull_secrets.iter().flatten() {
        let name = secret.name.as_str();
        let Some(cluster) = &services.cluster else {
            warn(format!(
                "imagePullSecret {name}: a node without a cluster has no Secrets; give it --registry-credentials"
            ));
            continue;
        };
        let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), pod.namespace());
        let secret = match secrets.get(name).await {
            Ok(secret) => secret,
            Err(error) => {
                warn(format!("imagePullSecret {name}: {}", crate::cluster::connection::describe(&error)));
                continue;
            }
        };
        let data = secret.data.unwrap_or_default();
        let read = if let Some(json) = data.get(".dockerconfigjson") {
            Credentials::from_docker_config(&json.0)
        } else if let Some(json) = data.get(".dockercfg") {
            Credentials::from_dockercfg(&json.0)
        } else {
            warn(format!("imagePullSecret {name} has neither .dockerconfigjson nor .dockercfg"));
            continue;
        };
        match read {
            Ok(more) => credentials.extend(more),
            Err(error) => warn(format!("imagePullSecret {name}: {error}")),
        }
    }
    credentials
}

async fn load_file(services: &Services, pod: &str, image: &str, path: PathBuf) -> Result<Arc<Program>, ImageError> {
    let runtime = &services.runtime;
    let image = image.to_owned();
    // A thousand pods that start at once do not hold their image a thousand times.
    let _turn = services.images.turns.take(path.clone()).await;
    // Before reading: a file that changes meanwhile is another one.
    let (looking, owner) = (path.clone(), path.display().to_string());
    let stamp =
        patiently(&owner, move || std::fs::metadata(looking).ok().and_then(|metadata| FileStamp::settled(&metadata)));
    let stamp = stamp.await.ok().flatten();
    if let Some(program) = services.images.find(&path, stamp) {
        return Ok(program);
    }
    let limit = runtime.module_size_limit();
    let reading = path.clone();
    let module = patiently(&owner, move || read_at_most(&reading, limit)).await;
    let module = match module {
        Ok(Ok(module)) => module,
        Ok(Err(source)) => return Err(ImageError::Read { image, path, source }),
        Err(error) => return Err(ImageError::Read { image, path, source: std::io::Error::other(error) }),
    };
    if !runtime.is_compiled(&module) {
        tracing::info!(pod, image, bytes = module.len(), "compiling the module");
    }
    let program = runtime.load(&module).await.map_err(|source| ImageError::Load { image, source })?;
    services.images.remember(path, stamp, &program);
    Ok(program)
}

/// The file that an image of a pod is.
pub fn file_of(services: &Services, pod: &PodObject, image: &str) -> Result<PathBuf, ImageError> {
    let path = image.strip_prefix("fs://").unwrap_or(image);
    if pod.folder.is_none() && !services.allow_local_modules {
        return Err(ImageError::Local { image: image.to_owned() });
    }
    if !path.starts_with('/') && pod.folder.is_none() {
        return Err(ImageError::Relative { image: image.to_owned() });
    }
    Ok(pod.resolve(path))
}

/// Systems of files that the kernel makes up: opening and reading some of those does things, or waits for ever.
const OF_KERNEL: [i64; 6] = [0x9fa0, 0x6265_6572, 0x7472_6163, 0x6462_6720, 0x0027_e0eb, 0x6367_7270];

/// Reads a regular file; one byte more than `limit` if it has that, so that the compiler says that it is too large. What the path leads
/// to is looked at before it is opened.
fn read_at_most(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let found = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let is_file = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) == FileType::RegularFile;
    #[allow(clippy::unnecessary_cast, reason = "of another type on other machines")]
    let system = rustix::fs::fstatfs(&found)?.f_type as i64;
    if !is_file || OF_KERNEL.contains(&system) {
        return Err(std::io::Error::other("not a regular file"));
    }
    let file = std::fs::File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
    let mut module = Vec::new();
    file.take(limit + 1).read_to_end(&mut module)?;
    Ok(module)
}
