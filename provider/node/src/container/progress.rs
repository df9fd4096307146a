//! What a container's events and status tell of its life, and when it is to end.

use super::local_module;
use super::place;
use super::probe::Probes;
use crate::cluster::events::EventType;
use crate::context::PodContext;
use crate::grants;
use crate::loaded_image::LoadedImage;
use crate::pod::{bounded, is_sidecar};
use crate::resize;
use crate::status::{self, ContainerKind};
use akri_krustlet_metrics::counted;
use akri_krustlet_runtime::Outcome;
use akri_krustlet_runtime::network::NetworkRules;
use k8s_openapi::api::core::v1::Container;
use std::sync::Arc;
use tokio::time::Instant;

pub fn report_running(
    context: &PodContext,
    kind: ContainerKind,
    container: &Container,
    restart: u32,
    image: &LoadedImage,
) {
    let name = &container.name;
    if is_probed(kind, container) {
        probes(context, container).0.begin(&context.reporter, name);
    }
    counted().containers_started.add([kind.name()]);
    context.event(kind, name, EventType::Normal, "Created", format!("Container created: {name}"));
    context.reporter.update_container(kind, name, |status| {
        status::running(status, container, restart, context.pod.uid(), (&image.name, &image.id));
    });
    context.event(kind, name, EventType::Normal, "Started", format!("Container started: {name}"));
    if kind == ContainerKind::App {
        context.has_started();
    }
    resize::settle(context);
}

/// What admission has read, and what the container may listen on.
fn probes(context: &PodContext, container: &Container) -> (Probes, Arc<NetworkRules>) {
    let rules = grants::network_of(&context.latest(), container).unwrap_or_default();
    (Probes::of(container, &context.services.node, &rules).unwrap_or_default(), rules)
}

/// How a life of a container ended.
#[derive(Debug)]
pub struct End {
    pub outcome: Outcome,
    /// It was ended so that it begins anew, whatever the restart policy says.
    pub replaced: Option<Replaced>,
}

/// What a container begins anew with.
#[derive(Debug)]
pub enum Replaced {
    /// What its pod says now.
    AsItsPod,
    /// This module of its file.
    By(Box<LoadedImage>),
}

/// That a container is to end while it runs.
#[derive(Debug)]
pub struct EndWanted {
    /// The time that it has for that.
    pub deadline: Instant,
    /// See [`End::replaced`].
    pub replaced: Option<Replaced>,
}

/// Resolves when the container is to end, with its pod, for another image or because its probes say so, and tells so.
pub async fn end_wanted(
    context: &PodContext,
    kind: ContainerKind,
    container: &Container,
    image: &LoadedImage,
) -> EndWanted {
    let name = &container.name;
    let (probes, rules) = probes(context, container);
    let asked = async {
        // Apart: most containers have none, and need no room for what asks.
        match is_probed(kind, container) && !probes.is_empty() {
            true => Box::pin(probes.run(context, kind, name, &rules)).await,
            false => std::future::pending().await,
        }
    };
    let soon = || Instant::now() + context.latest().grace_period();
    let (message, deadline, replaced) = tokio::select! {
        deadline = context.termination.asked(place(context, kind, name)) => {
            (format!("Stopping container {name}"), deadline, None)
        }
        () = context.image_changed(kind, container) => {
            (format!("Container {name} definition changed, will be restarted"), soon(), Some(Replaced::AsItsPod))
        }
        new = local_module::rebuilt(context, kind, container, image) => {
            // Without an input a guest does not notice that it is to end, and its author waits for the new one.
            let deadline = if container.stdin == Some(true) { soon() } else { Instant::now() };
            let message = format!("Container {name} has a new module in {}, will be restarted", image.name);
            (message, deadline, Some(Replaced::By(new)))
        }
        () = resize::restart_wanted(context, kind, container) => {
            (format!("Container {name} resize requires restart"), soon(), Some(Replaced::AsItsPod))
        }
        unhealthy = asked => {
            let grace_period = unhealthy.grace_period.unwrap_or_else(|| context.latest().grace_period());
            let probe = unhealthy.probe.to_lowercase();
            tracing::warn!(pod = context.pod.key(), container = name, probe, "the container is ended, as its probe says");
            (format!("Container {name} failed {probe} probe, will be restarted"), Instant::now() + grace_period, None)
        }
    };
    context.event(kind, name, EventType::Normal, "Killing", message);
    EndWanted { deadline, replaced }
}

/// Init containers that run to their end are not.
fn is_probed(kind: ContainerKind, container: &Container) -> bool {
    kind == ContainerKind::App || is_sidecar(container)
}

/// Waits for as long as the container's hook says that it sleeps before its end, but not beyond the time that it has.
pub async fn pre_stop(context: &PodContext, container: &Container, deadline: Instant) {
    let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref()?.sleep.as_ref());
    let Some(pause) = hook.map(|sleep| bounded(sleep.seconds)) else { return };
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = tokio::time::sleep_until(deadline) => {}
        () = context.termination.expired() => {}
    }
}

pub fn log_end(context: &PodContext, container: &str, outcome: &Outcome) {
    let pod = context.pod.key();
    match outcome {
        Outcome::Exited(0) => tracing::info!(pod, container, "container completed"),
        Outcome::Exited(code) => tracing::warn!(pod, container, code, "container exited"),
        Outcome::Trapped(report) => tracing::warn!(pod, container, "container trapped: {report}"),
        Outcome::OutOfMemory { limit } => {
            tracing::warn!(pod, container, limit_bytes = limit, "container needs more memory than its limit");
        }
        Outcome::Interrupted => tracing::info!(pod, container, "container interrupted"),
    }
}
