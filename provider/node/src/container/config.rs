//! What a container is configured with that may not be there yet: the objects of its variables, its handler's name.

use crate::admission::{self, AdmissionError};
use crate::cluster::events::EventType;
use crate::context::PodContext;
use crate::environment::{self, EnvironmentError, Scope, Sources};
use crate::loaded_image::LoadedImage;
use crate::pod::is_sidecar;
use crate::status::{self, ContainerKind};
use akri_krustlet_discovery::handlers::ForeignName;
use akri_krustlet_discovery::{HandlerClaim, HandlerSettings};
use k8s_openapi::api::core::v1::Container;
use std::time::Duration;

/// After an error about a variable's source, it is read again.
pub const CONFIG_RETRY: Duration = Duration::from_secs(15);

/// Why a container cannot be the handler that it says it is.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// Its settings cannot be understood.
    #[error(transparent)]
    Settings(#[from] AdmissionError),
    /// Its variables cannot be made.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// The name is another namespace's.
    #[error(transparent)]
    Foreign(#[from] ForeignName),
}

/// The settings of the handler in a container, if it is one, and its claim on the name, which lasts as long as the pod, over all
/// restarts of the container. An image that is known may say another name than it did before.
pub fn renew_claim(
    context: &PodContext,
    kind: ContainerKind,
    container: &Container,
    image: Option<&LoadedImage>,
    scope: Scope<'_>,
    claim: &mut Option<HandlerClaim>,
) -> Result<Option<HandlerSettings>, HandlerError> {
    if kind == ContainerKind::Init && !is_sidecar(container) {
        return Ok(None);
    }
    let settings = handler_settings(context, container, image, scope)?;
    let name = settings.as_ref().map(|settings| settings.name.as_str());
    if name != claim.as_ref().map(HandlerClaim::name) {
        let handlers = &context.services.handlers;
        *claim = name.map(|name| handlers.claim(name, context.pod.namespace())).transpose()?;
    }
    Ok(settings)
}

/// The handler in a container, if there is one.
fn handler_settings(
    context: &PodContext,
    container: &Container,
    image: Option<&LoadedImage>,
    scope: Scope<'_>,
) -> Result<Option<HandlerSettings>, HandlerError> {
    let pod = context.latest();
    let variables = environment::variables(container, &pod, &context.services.node, scope)?;
    let info = image.and_then(|image| image.info.as_deref());
    Ok(admission::handler_settings(container, &pod, &variables, info)?)
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
pub fn tell_config_error(
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
