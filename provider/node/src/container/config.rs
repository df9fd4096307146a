//! What a container is configured with that may not be there yet: the objects of its variables, its handler's name.

use crate::admission;
use crate::cluster::events::EventType;
use crate::context::PodContext;
use crate::environment::{self, Scope, Sources};
use crate::status::{self, ContainerKind};
use akri_krustlet_discovery::handlers::ForeignName;
use akri_krustlet_discovery::{HandlerClaim, HandlerSettings};
use k8s_openapi::api::core::v1::Container;
use std::time::Duration;

/// After an error about a variable's source, it is read again.
const CONFIG_RETRY: Duration = Duration::from_secs(15);

/// The claim lasts as long as the pod, over all restarts of the container.
pub fn claim_handler(
    context: &PodContext,
    kind: ContainerKind,
    container: &Container,
    scope: Scope<'_>,
) -> Result<Option<HandlerClaim>, ForeignName> {
    if kind == ContainerKind::Init {
        return Ok(None);
    }
    let Some(settings) = handler_settings(context, container, scope) else { return Ok(None) };
    context.services.handlers.claim(&settings.name, context.pod.namespace()).map(Some)
}

/// The claim of a container on its handler's name, if it is one. While the name is another namespace's, the container waits.
pub async fn obtain_claim(
    context: &PodContext,
    kind: ContainerKind,
    container: &Container,
    sources: &Sources,
) -> Option<HandlerClaim> {
    let mut told = String::new();
    loop {
        match claim_handler(context, kind, container, Scope::All(sources)) {
            Ok(claim) => return claim,
            Err(foreign) => tell_config_error(context, kind, container, foreign.to_string(), &mut told),
        }
        tokio::time::sleep(CONFIG_RETRY).await;
    }
}

pub fn handler_settings(context: &PodContext, container: &Container, scope: Scope<'_>) -> Option<HandlerSettings> {
    let pod = context.latest();
    let variables = environment::variables(container, &pod, &context.services.node, scope).ok()?;
    admission::handler_settings(container, &pod, &variables).ok()?
}

/// The ConfigMaps and Secrets that the container's variables are taken from. As long as one that it needs is missing, the
/// container waits and says so.
pub async fn obtain_sources(context: &PodContext, kind: ContainerKind, container: &Container) -> Sources {
    let mut told = String::new();
    // Kept until the next ones are read, so that what they watch is not asked for anew.
    let mut previous = Sources::default();
    loop {
        let pod = context.latest();
        let mut sources = Sources::read(container, &pod, &context.services.objects).await;
        let Err(error) = environment::variables(container, &pod, &context.services.node, Scope::All(&sources)) else {
            return sources;
        };
        tell_config_error(context, kind, container, error.to_string(), &mut told);
        tokio::select! {
            () = sources.changed() => {}
            () = tokio::time::sleep(CONFIG_RETRY) => {}
        }
        drop(std::mem::replace(&mut previous, sources));
    }
}

/// Tells once why a container cannot be started as it is configured.
fn tell_config_error(
    context: &PodContext,
    kind: ContainerKind,
    container: &Container,
    message: String,
    told: &mut String,
) {
    if message == *told {
        return;
    }
    tracing::error!(pod = context.pod.key(), container = container.name, "{message}");
    context.event(kind, &container.name, EventType::Warning, "Failed", format!("Error: {message}"));
    context.reporter.update_container(kind, &container.name, |status| {
        status::waiting(status, "CreateContainerConfigError", &message);
    });
    *told = message;
}
