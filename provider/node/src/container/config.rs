//! What a container is configured with that may not be there yet: the objects of its variables, its handler's name.

use crate::admission::{self, AdmissionError};
use crate::cluster::events::EventType;
use crate::context::PodContext;
use crate::environment::{self, EnvironmentError, Scope, Sources};
use crate::loaded_image::LoadedImage;
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

/// A container's claim on the name of its handler. It lasts as long as the pod, over all restarts of the container.
pub fn claim_handler(
    context: &PodContext,
    kind: ContainerKind,
    container: &Container,
    image: Option<&LoadedImage>,
    scope: Scope<'_>,
) -> Result<Option<HandlerClaim>, HandlerError> {
    if kind == ContainerKind::Init {
        return Ok(None);
    }
    let Some(settings) = handler_settings(context, container, image, scope)? else { return Ok(None) };
    Ok(Some(context.services.handlers.claim(&settings.name, context.pod.namespace())?))
}

/// Makes sure that a container has the claim on its handler's name, if it is one: by now its image is known, which may say another
/// name than it did before.
pub fn renew_claim(
    context: &PodContext,
    kind: ContainerKind,
    container: &Container,
    image: &LoadedImage,
    sources: &Sources,
    claim: &mut Option<HandlerClaim>,
) -> Result<(), HandlerError> {
    if kind == ContainerKind::Init {
        return Ok(());
    }
    let scope = Scope::All(sources);
    let name = handler_settings(context, container, Some(image), scope)?.map(|settings| settings.name);
    if name.as_deref() != claim.as_ref().map(HandlerClaim::name) {
        *claim = claim_handler(context, kind, container, Some(image), scope)?;
    }
    Ok(())
}

/// The handler in a container, if there is one.
pub fn handler_settings(
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
