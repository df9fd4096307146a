//! What a container's events and status tell of its life, and when it is to end.

use super::probe::Probes;
use crate::cluster::events::EventType;
use crate::context::PodContext;
use crate::grants;
use crate::loaded_image::LoadedImage;
use crate::status::{self, ContainerKind};
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
    if kind == ContainerKind::App {
        probes(context, container).0.begin(&context.reporter, name);
    }
    context.event(kind, name, EventType::Normal, "Created", format!("Container created: {name}"));
    context.reporter.update_container(kind, name, |status| {
        status::running(status, container, restart, context.pod.uid(), (&image.name, &image.id));
    });
    context.event(kind, name, EventType::Normal, "Started", format!("Container started: {name}"));
}

/// What admission has read, and what the container may listen on.
fn probes(context: &PodContext, container: &Container) -> (Probes, Arc<NetworkRules>) {
    let rules = grants::network_of(&context.latest(), container).unwrap_or_default();
    (Probes::of(container, &context.services.node, &rules).unwrap_or_default(), rules)
}

/// Resolves when the container is to end, with its pod, for another image or because its probes say so, and tells so; the time
/// that it has for that.
pub async fn end_wanted(context: &PodContext, kind: ContainerKind, container: &Container) -> Instant {
    let name = &container.name;
    let (probes, rules) = probes(context, container);
    let asked = async {
        match kind {
            ContainerKind::App => probes.run(context, kind, name, &rules).await,
            ContainerKind::Init => std::future::pending().await,
        }
    };
    let (message, deadline) = tokio::select! {
        stop = context.termination.requested() => (format!("Stopping container {name}"), stop.deadline),
        () = context.image_changed(kind, container) => {
            let deadline = Instant::now() + context.latest().grace_period();
            (format!("Container {name} definition changed, will be restarted"), deadline)
        }
        unhealthy = asked => {
            let grace_period = unhealthy.grace_period.unwrap_or_else(|| context.latest().grace_period());
            let probe = unhealthy.probe.to_lowercase();
            tracing::warn!(pod = context.pod.key(), container = name, probe, "the container is ended, as its probe says");
            (format!("Container {name} failed {probe} probe, will be restarted"), Instant::now() + grace_period)
        }
    };
    context.event(kind, name, EventType::Normal, "Killing", message);
    deadline
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
