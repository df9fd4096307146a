//! A container that is a discovery handler: it serves streams until it is to end.

use super::life::Prepared;
use super::network::network_grant;
use super::progress::{End, end_wanted, pre_stop, report_running};
use crate::context::PodContext;
use crate::grants;
use crate::loaded_image::LoadedImage;
use crate::status::{ContainerKind, DISCOVERY_HEALTHY};
use akri_krustlet_discovery::{ContainerSpec, HandlerClaim, HandlerContainer, HandlerSettings};
use akri_krustlet_host::TokenBucket;
use akri_krustlet_host::patience::patiently;
use akri_krustlet_runtime::GuestSpec;
use k8s_openapi::api::core::v1::Container;
use std::sync::Arc;

/// Changes of a handler's condition that are told at once, and how many are told each second after that.
const CONDITIONS: (f64, f64) = (10.0, 0.2);

#[allow(clippy::too_many_arguments, reason = "one life of a container: each is another thing")]
pub async fn run_handler(
    context: &PodContext,
    kind: ContainerKind,
    container: &Container,
    restart: u32,
    image: &LoadedImage,
    prepared: Prepared,
    claim: &HandlerClaim,
    settings: HandlerSettings,
) -> Result<End, String> {
    // Apart, as all that comes before the long part.
    let handler = Box::pin(start(context, container, image, prepared, settings)).await?;
    let _stop = StopWhenDropped(handler.clone());
    // Before the first stream can come: its complaint must not be missed.
    let mut complaints = handler.complaints();
    let _serving = claim.serve(handler.clone()).map_err(|error| error.to_string())?;
    report_running(context, kind, container, restart, image);
    context.reporter.set_condition(DISCOVERY_HEALTHY, true, "", "");

    let mut conditions = TokenBucket::new(CONDITIONS.0, CONDITIONS.1);
    let run = handler.run();
    let end_wanted = async {
        let wanted = end_wanted(context, kind, container, image).await;
        pre_stop(context, container, wanted.deadline).await;
        wanted.replaced
    };
    tokio::pin!(run, end_wanted);
    loop {
        let changed = async {
            tokio::time::sleep_until(conditions.when(1.0)).await;
            complaints.changed().await
        };
        tokio::select! {
            outcome = &mut run => return Ok(End { outcome, replaced: None }),
            // There is nothing that its guests could bring to an end: a stream's last good list outlives them.
            replaced = &mut end_wanted => {
                handler.stop();
                return Ok(End { outcome: run.await, replaced });
            }
            Ok(()) = changed => {
                conditions.spend(1.0);
                let text = complaints.borrow_and_update().values().cloned().collect::<std::collections::BTreeSet<_>>();
                let text = text.into_iter().collect::<Vec<_>>().join("; ");
                let reason = if text.is_empty() { "" } else { "BadAnswer" };
                context.reporter.set_condition(DISCOVERY_HEALTHY, text.is_empty(), reason, &text);
            }
        }
    }
}

async fn start(
    context: &PodContext,
    container: &Container,
    image: &LoadedImage,
    Prepared { guest, exchange, writable }: Prepared,
    settings: HandlerSettings,
) -> Result<Arc<HandlerContainer>, String> {
    let services = &context.services;
    let pod_directory = services.data.pod(context.pod.uid());
    let exchange_is_mounted = exchange.is_some();
    let exchange_volume = match exchange {
        Some(directory) => directory,
        None => {
            let directory = pod_directory.join("exchange").join(&container.name);
            crate::data_directory::make_directory(&directory)
                .map_err(|error| format!("{}: {error}", directory.display()))?;
            directory
        }
    };
    let GuestSpec { args, env, preopens, log, limits, events, .. } = guest;
    let Some(log) = log else { return Err("the container has no log".to_owned()) };
    let name = format!("{}/{}", context.pod.key(), container.name);
    let network =
        network_grant(context, &container.name, &log, grants::network_of_handler(&context.latest(), container))?;
    let spec = ContainerSpec {
        name,
        network,
        events,
        settings,
        program: image.program.clone(),
        info: image.info.clone(),
        args,
        env,
        preopens,
        limits,
        log,
        operator_host_paths: services.handlers.host_paths().clone(),
        writable,
        exchange_root: pod_directory.join("streams").join(&container.name),
        exchange_volume,
        exchange_is_mounted,
    };
    let (runtime, watcher) = (services.runtime.clone(), services.watcher.clone());
    // It reads the exchange volume, which may be a user's.
    let started = patiently(context.pod.uid(), move || HandlerContainer::start(runtime, &watcher, spec)).await;
    started.map_err(|hangs| format!("the exchange volume: {hangs}"))?.map_err(|error| error.to_string())
}

/// Ends the guests of a handler container with the pod that is being deleted.
struct StopWhenDropped(Arc<HandlerContainer>);

impl Drop for StopWhenDropped {
    fn drop(&mut self) {
        self.0.stop();
    }
}
