//! One life of a container, from what it is made of to its end.

use super::command::{arguments, run_command, with_images};
use super::handler::run_handler;
use super::network::network_access;
use super::progress::End;
use crate::admission;
use crate::context::PodContext;
use crate::device;
use crate::environment::{self, Scope, Sources};
use crate::grants;
use crate::loaded_image::LoadedImage;
use crate::needs;
use crate::status::ContainerKind;
use crate::termination_message::TerminationMessage;
use crate::volume::files::Private;
use crate::volume::{self, MountedVolumes};
use akri_krustlet_discovery::{HandlerClaim, HandlerSettings};
use akri_krustlet_host::patience::patiently;
use akri_krustlet_host::{span, spans};
use akri_krustlet_runtime::log::{ContainerLog, LogLimits};
use akri_krustlet_runtime::stdin::Stdin;
use akri_krustlet_runtime::{GuestSpec, ModuleKind, Outcome};
use k8s_openapi::api::core::v1::Container;
use std::path::PathBuf;
use std::sync::Arc;

/// What one life of a container has that the next one may have otherwise.
pub struct Life<'a> {
    /// How many there were before.
    pub restart: u32,
    /// Of its variables.
    pub sources: &'a Sources,
    /// The claim on its handler's name and its settings, if it is one.
    pub handler: Option<(&'a HandlerClaim, HandlerSettings)>,
}

/// What a life is begun with.
pub struct Prepared {
    pub guest: GuestSpec,
    /// The exchange volume of a handler, if it is mounted.
    pub exchange: Option<PathBuf>,
    /// Directories that its guests may write.
    pub writable: Vec<PathBuf>,
}

/// One life of the container. An error means that it was not started.
pub async fn run_once(
    context: &PodContext,
    volumes: &Arc<MountedVolumes>,
    kind: ContainerKind,
    container: &Container,
    image: &LoadedImage,
    life: Life<'_>,
) -> Result<End, String> {
    let restart = life.restart;
    // Apart: what only the preparations need is not kept for as long as the container runs.
    let span = span!(parent: &context.start_span(), "container prepare", k8s.container.name = container.name);
    let prepared = Box::pin(spans::told(span, prepare(context, volumes, kind, container, image, &life))).await?;
    match life.handler {
        Some((claim, settings)) => {
            run_handler(context, kind, container, restart, image, prepared, claim, settings).await
        }
        None => run_command(context, kind, container, restart, image, prepared.guest).await,
    }
}

async fn prepare(
    context: &PodContext,
    mounted: &Arc<MountedVolumes>,
    kind: ContainerKind,
    container: &Container,
    image: &LoadedImage,
    Life { restart, sources, handler }: &Life<'_>,
) -> Result<Prepared, String> {
    let restart = *restart;
    let services = &context.services;
    let scope = Scope::All(sources);
    let devices = device::access(context, kind, &container.name).await?;
    let limits = {
        let limits = admission::limits(&context.latest(), container).map_err(|error| error.to_string())?;
        limits.share_in(Some(context.pod_share.clone()))
    };
    context.shares.begin(&container.name, limits.clone());
    let mut variables = environment::variables(container, &context.latest(), &services.node, scope)
        .map_err(|error| error.to_string())?;
    // What the pod's author says counts.
    let own: Vec<_> = variables.iter().map(|(name, _)| name.clone()).collect();
    let of_devices: Vec<_> = devices.variables.iter().map(|(_, value)| value.clone()).collect();
    variables.extend(devices.variables.into_iter().filter(|(name, _)| !own.contains(name)));
    let log_directory = services.data.container_logs(&context.pod, &container.name);
    let log_limits = LogLimits { many_guests: handler.is_some(), ..LogLimits::default() };
    let log = {
        let directory = log_directory.clone();
        let created = patiently(context.pod.uid(), move || ContainerLog::create(&directory, restart, log_limits)).await;
        let failed = |error: &dyn std::fmt::Display| {
            format!("cannot make the container's log in {}: {error}", log_directory.display())
        };
        created.map_err(|hangs| failed(&hangs))?.map_err(|error| failed(&error))?
    };
    needs::warn_of_missing(context, kind, container, image, &log);
    let exchange_directory = handler.as_ref().map(|(_, settings)| settings.exchange_directory.as_str());
    let of_container = |of_pod: PathBuf| of_pod.join("files").join(&container.name);
    let has_memory = mounted.values().any(|volume| volume.in_memory);
    let files = Private {
        disk: of_container(services.data.pod(context.pod.uid())),
        memory: has_memory.then(|| services.memory.pod(context.pod.uid())).flatten().map(of_container),
    };
    let volume::ContainerVolumes { mut preopens, exchange } = {
        let (container, mounted, variables) = (container.clone(), mounted.clone(), variables.clone());
        let exchange_directory = exchange_directory.map(str::to_owned);
        let prepared = patiently(context.pod.uid(), move || {
            let exchange = exchange_directory.as_deref();
            volume::preopens(&container, &mounted, &variables, exchange, devices.files, &files)
        });
        prepared.await.map_err(|hangs| format!("the container's volumes: {hangs}"))??
    };
    preopens.extend(devices.preopens);
    // A handler's guests come and go while it runs.
    if let Some(message) = termination_message(context, container).filter(|_| handler.is_none()) {
        let mounted = preopens.clone();
        let failed =
            |error: &dyn std::fmt::Display| format!("cannot make the file of the termination message: {error}");
        let prepared = tokio::task::spawn_blocking(move || message.prepare(&mounted)).await;
        let prepared = prepared.map_err(|error| failed(&error))?;
        preopens.extend(prepared.map_err(|error| failed(&error))?);
    }
    // A handler has those of each stream's request, and a module has no sockets at all.
    let is_command = handler.is_none() && image.program.kind() == ModuleKind::Component;
    let network = is_command.then(|| network_access(context, container, &log, &of_devices)).transpose()?;
    let events = grants::events(&context.latest()).map_err(|error| error.to_string())?;
    let guest = GuestSpec {
        network,
        events,
        args: arguments(container, &image.launch, &variables),
        env: with_images(&image.launch, variables),
        preopens,
        log: Some(log),
        stdin: container.stdin.unwrap_or(false).then(Stdin::default),
        ..GuestSpec::new(container.name.clone(), limits)
    };
    Ok(Prepared { guest, exchange, writable: mounted.values().map(|volume| volume.path.clone()).collect() })
}

/// Where the file with a container's termination message is.
fn termination_message(context: &PodContext, container: &Container) -> Option<TerminationMessage> {
    let directory = context.services.data.pod(context.pod.uid()).join("termination").join(&container.name);
    let containers = context.pod.init_containers().len() + context.pod.spec().containers.len();
    TerminationMessage::of(container, containers, directory)
}

/// What a container that ended has to say about it.
pub async fn last_words(
    context: &PodContext,
    container: &Container,
    restart: u32,
    outcome: &Outcome,
) -> Option<String> {
    let message = termination_message(context, container)?;
    let log = context.services.data.container_logs(&context.pod, &container.name);
    let failed = *outcome != Outcome::Exited(0);
    tokio::task::spawn_blocking(move || message.read(&log, restart, failed)).await.ok()?
}
