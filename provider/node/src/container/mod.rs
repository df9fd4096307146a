//! Runs one container of a pod: starts it, watches it, starts it again as the pod's restart policy says.

mod command;
mod config;
mod handler;
pub mod image;
mod life;
pub mod local_module;
mod network;
pub mod probe;
mod progress;

use crate::back_off::{self, BackOff};
use crate::cluster::events::EventType;
use crate::context::{PodContext, find};
use crate::environment::Scope;
use crate::loaded_image::LoadedImage;
use crate::pod::{PodObject, RestartPolicy, is_sidecar};
use crate::resize;
use crate::status::{self, ContainerKind};
use crate::termination::Place;
use crate::volume::MountedVolumes;
use akri_krustlet_metrics::counted;
use akri_krustlet_runtime::Outcome;
use config::{CONFIG_RETRY, obtain_sources, renew_claim, tell_config_error};
use image::ImageFailure;
use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus};
use life::{Life, last_words, run_once};
use local_module::{Before, REPLACED};
use progress::{End, Replaced, log_end};
use std::ops::Deref;
use std::sync::{Arc, LazyLock};
use tokio::time::Instant;
use tracing::Instrument as _;

/// Runs a container until it has ended for good; true if it succeeded then.
///
/// A container that ran in an earlier life of the node goes on from there: its restarts are counted on, and one that had
/// ended for good is not run again. One whose image is changed is run again, whatever the policy says.
pub async fn supervise(
    context: &PodContext,
    volumes: &Arc<MountedVolumes>,
    kind: ContainerKind,
    container: &Container,
    policy: RestartPolicy,
) -> bool {
    let name = &container.name;
    let mut container = CurrentContainer::new(context, kind, name);
    let mut restart = 0;
    let was_started = |earlier: &ContainerStatus| {
        let ended = |state: &Option<ContainerState>| state.as_ref().is_some_and(|state| state.terminated.is_some());
        earlier.container_id.is_some() || ended(&earlier.state) || ended(&earlier.last_state)
    };
    if let Some(earlier) = context.reporter.container(kind, name).filter(was_started) {
        let ended = earlier.state.as_ref().and_then(|state| state.terminated.as_ref());
        if let Some(succeeded) = ended.map(|ended| ended.exit_code == 0)
            && !policy.restarts(succeeded)
        {
            return succeeded;
        }
        restart = u32::try_from(earlier.restart_count).unwrap_or(0) + 1;
    }
    // As early as its name is known, so that streams outlive a slow start. A name that it may not have is told below.
    let mut claim = None;
    let _ = renew_claim(context, kind, &container, None, Scope::OfPod, &mut claim);
    let (mut back_off, mut told) = (BackOff::default(), String::new());
    // The module of its file that was tried already.
    let mut tried: Option<Box<LoadedImage>> = None;
    loop {
        // Apart, so that what they need is not kept for as long as the container runs.
        let image = match tried.take() {
            Some(image) => *image,
            None => Box::pin(obtain_image(context, kind, &mut container).instrument(context.start_span())).await,
        };
        let mut sources = Box::pin(obtain_sources(context, kind, &container)).await;
        // That may have taken long, and a pod that has its image already was not looked at.
        container.renew(context);
        if container.image.as_ref() != Some(&image.name) {
            continue;
        }
        let settings = match renew_claim(context, kind, &container, Some(&image), Scope::All(&sources), &mut claim) {
            Ok(settings) => settings,
            Err(error) => {
                tell_config_error(context, kind, &container, error.to_string(), &mut told);
                tokio::select! {
                    () = sources.changed() => {}
                    () = context.image_changed(kind, &container) => {}
                    new = local_module::rebuilt(context, kind, &container, &image) => tried = Some(new),
                    () = tokio::time::sleep(CONFIG_RETRY) => {}
                }
                container.renew(context);
                continue;
            }
        };
        told.clear();
        let started = Instant::now();
        let running = context.termination.enter(place(context, kind, name));
        let life = Life { restart, sources: &sources, handler: claim.as_ref().zip(settings) };
        let run = run_once(context, volumes, kind, &container, &image, life);
        let (succeeded, replaced) = match run.await {
            Ok(End { outcome, replaced }) => {
                let message = last_words(context, &container, restart, &outcome).await;
                let is_rebuilt = matches!(replaced, Some(Replaced::By(_)));
                let message = message.or_else(|| is_rebuilt.then(|| REPLACED.to_owned()));
                context.reporter.update_container(kind, name, |status| status::terminated(status, &outcome, message));
                log_end(context, name, &outcome);
                (outcome == Outcome::Exited(0), replaced)
            }
            Err(message) => {
                tracing::error!(pod = context.pod.key(), container = name, "{message}");
                counted().containers_not_started.add([kind.name()]);
                context.event(kind, name, EventType::Warning, "Failed", format!("Error: {message}"));
                context.reporter.update_container(kind, name, |status| {
                    status.restart_count = i32::try_from(restart).unwrap_or(i32::MAX);
                    status::failed_start(status, &message);
                });
                (false, None)
            }
        };
        drop(running);
        let latest = CurrentContainer::new(context, kind, name);
        // Also when it ended by itself before it was asked to.
        let is_other = latest.image != container.image || resize::must_restart(&container, &latest);
        if (replaced.is_some() || is_other) && !context.termination.is_over() {
            if let Some(Replaced::By(image)) = replaced {
                context.keep_image(name, (*image).clone());
                tried = Some(image);
            }
            container = latest;
            restart += 1;
            back_off = BackOff::default();
            continue;
        }
        if !policy.restarts(succeeded) || context.termination.is_over() {
            return succeeded;
        }
        let pause = back_off.next(started);
        if !pause.is_zero() {
            let message = format!("Back-off restarting failed container {name} in pod {}", context.pod.key());
            context.event(kind, name, EventType::Warning, "BackOff", message);
            let message =
                format!("back-off {}s restarting failed container={name} pod={}", pause.as_secs(), context.pod.key());
            context
                .reporter
                .update_container(kind, name, |status| status::waiting(status, "CrashLoopBackOff", &message));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // Whoever corrects the image does not wait for the old one's pause.
                () = context.image_changed(kind, &container) => back_off = BackOff::default(),
                new = local_module::rebuilt(context, kind, &container, &image) => {
                    tried = Some(new);
                    back_off = BackOff::default();
                }
            }
            container.renew(context);
        }
        restart += 1;
    }
}

/// A container as its pod had it when it was looked at last. It keeps the pod, which others have, too, and no copy of the container.
struct CurrentContainer {
    pod: PodObject,
    kind: ContainerKind,
    name: String,
}

impl CurrentContainer {
    fn new(context: &PodContext, kind: ContainerKind, name: &str) -> Self {
        Self { pod: context.latest(), kind, name: name.to_owned() }
    }

    fn renew(&mut self, context: &PodContext) {
        self.pod = context.latest();
    }
}

impl Deref for CurrentContainer {
    type Target = Container;

    /// A pod's containers are the same for as long as it is there.
    fn deref(&self) -> &Container {
        static NONE: LazyLock<Container> = LazyLock::new(Container::default);
        find(&self.pod, self.kind, &self.name).unwrap_or(&NONE)
    }
}

/// A container's place in its pod's end.
pub fn place(context: &PodContext, kind: ContainerKind, name: &str) -> Place {
    let mut sidecars = context.pod.init_containers().iter().enumerate().filter(|(_, container)| is_sidecar(container));
    match sidecars.find(|(_, container)| kind == ContainerKind::Init && container.name == name) {
        Some((number, _)) => Place::Sidecar(number),
        None => Place::Container,
    }
}

/// The image for the container's next life. One that cannot be had is tried again until it can, or until the container names
/// another one.
async fn obtain_image(context: &PodContext, kind: ContainerKind, container: &mut CurrentContainer) -> LoadedImage {
    let mut back_off = BackOff::default();
    loop {
        // A file may have been replaced by a newer one; an image of a registry stays, unless it is always to be pulled.
        let always = container.image_pull_policy.as_deref() == Some("Always");
        if let Some(image) = context.image(container).filter(|image| image.reference.is_some() && !always) {
            let message = image::already_present(&image.name);
            context.event(kind, &container.name, EventType::Normal, "Pulled", message);
            return image;
        }
        container.renew(context);
        let started = Instant::now();
        let before = Before::of(context, container);
        match image::load(&context.services, &container.pod, kind, container).await {
            Ok(image) => {
                context.keep_image(&container.name, image.clone());
                return image;
            }
            Err(error) => {
                let pause = back_off.next(started).max(back_off::FIRST);
                let failure = ImageFailure::of(context, kind, container, &error);
                if failure.wait(context, pause, &before).await {
                    back_off = BackOff::default();
                }
            }
        }
    }
}
