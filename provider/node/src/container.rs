//! Runs one container of a pod: starts it, watches it, starts it again as the pod's restart policy says.

use crate::admission;
use crate::back_off::BackOff;
use crate::cluster::events::EventType;
use crate::environment;
use crate::image::{self, LoadedImage};
use crate::pod::{PodObject, RestartPolicy};
use crate::provider::Services;
use crate::status::{self, ContainerKind, DISCOVERY_HEALTHY, StatusReporter};
use crate::termination::Termination;
use crate::volume;
use akri_krustlet_discovery::{ContainerSpec, HandlerClaim, HandlerContainer, HandlerSettings};
use akri_krustlet_runtime::log::{ContainerLog, LogLimits};
use akri_krustlet_runtime::stdin::Stdin;
use akri_krustlet_runtime::{GuestSpec, Outcome};
use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::Instant;

/// What the containers of one pod have in common.
#[derive(Debug)]
pub struct PodContext {
    /// The node's services.
    pub services: Arc<Services>,
    /// The pod.
    pub pod: PodObject,
    /// Its status.
    pub reporter: StatusReporter,
    /// Its end, when it is asked for.
    pub termination: Termination,
    /// The images of its containers by the containers' names; they stay loaded as long as the pod is there.
    pub images: Mutex<HashMap<String, LoadedImage>>,
    /// An earlier run of the node had it.
    pub ran_before: bool,
}

impl PodContext {
    /// The image that was loaded for a container.
    fn image(&self, container: &str) -> Option<LoadedImage> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner).get(container).cloned()
    }

    /// Keeps an image for a container.
    pub fn keep_image(&self, container: &str, image: LoadedImage) {
        self.images.lock().unwrap_or_else(PoisonError::into_inner).insert(container.to_owned(), image);
    }

    fn event(&self, kind: ContainerKind, container: &str, of: EventType, reason: &'static str, message: String) {
        self.services.events.container(&self.pod, (kind, container), of, reason, message);
    }
}

/// The volumes of a pod on the host, by name.
pub type Directories = BTreeMap<String, PathBuf>;

/// Runs a container until it has ended for good; true if it succeeded then.
///
/// A container that ran in an earlier life of the node goes on from there: its restarts are counted on, and one that had
/// ended for good is not run again.
pub async fn supervise(
    context: &PodContext,
    directories: &Directories,
    kind: ContainerKind,
    container: &Container,
    policy: RestartPolicy,
) -> bool {
    let name = &container.name;
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
    let claim = claim_handler(context, kind, container);
    let mut back_off = BackOff::default();
    loop {
        let started = Instant::now();
        let running = context.termination.enter();
        let succeeded = match run_once(context, directories, kind, container, restart, claim.as_ref()).await {
            Ok(outcome) => {
                context.reporter.update_container(kind, name, |status| status::terminated(status, &outcome));
                log_end(context, name, &outcome);
                outcome == Outcome::Exited(0)
            }
            Err(message) => {
                tracing::error!(pod = context.pod.key(), container = name, "{message}");
                context.event(kind, name, EventType::Warning, "Failed", format!("Error: {message}"));
                context.reporter.update_container(kind, name, |status| {
                    status.restart_count = i32::try_from(restart).unwrap_or(i32::MAX);
                    status::failed_start(status, &message);
                });
                false
            }
        };
        drop(running);
        if !policy.restarts(succeeded) || context.termination.current().is_some() {
            return succeeded;
        }
        let pause = back_off.next(started);
        if !pause.is_zero() {
            let message =
                format!("back-off {}s restarting failed container={name} pod={}", pause.as_secs(), context.pod.key());
            context
                .reporter
                .update_container(kind, name, |status| status::waiting(status, "CrashLoopBackOff", &message));
            let message = format!("Back-off restarting failed container {name} in pod {}", context.pod.key());
            context.event(kind, name, EventType::Warning, "BackOff", message);
            tokio::time::sleep(pause).await;
        }
        restart += 1;
    }
}

fn log_end(context: &PodContext, container: &str, outcome: &Outcome) {
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

/// The claim lasts as long as the pod, over all restarts of the container.
fn claim_handler(
    context: &PodContext,
    kind: ContainerKind,
    container: &Container,
) -> Option<(HandlerClaim, HandlerSettings)> {
    if kind == ContainerKind::Init {
        return None;
    }
    let variables = environment::variables(container, &context.pod, &context.services.node).ok()?;
    let settings = admission::handler_settings(container, &context.pod, &variables).ok()??;
    Some((context.services.handlers.claim(&settings.name), settings))
}

/// One life of the container. An error means that it was not started.
async fn run_once(
    context: &PodContext,
    directories: &Directories,
    kind: ContainerKind,
    container: &Container,
    restart: u32,
    claim: Option<&(HandlerClaim, HandlerSettings)>,
) -> Result<Outcome, String> {
    let services = &context.services;
    // A file may have been replaced by a newer one; an image of a registry is what the pod was started with.
    let image = match context.image(&container.name) {
        Some(image) if image.reference.is_some() => image,
        _ => image::load(services, &context.pod, kind, container).await.map_err(|error| error.to_string())?,
    };
    let limits = admission::limits(container).map_err(|error| error.to_string())?.share();
    let variables =
        environment::variables(container, &context.pod, &services.node).map_err(|error| error.to_string())?;
    let log_directory = services.data.container_logs(&context.pod, &container.name);
    let log = ContainerLog::create(&log_directory, restart, LogLimits::default())
        .map_err(|error| format!("cannot make the container's log in {}: {error}", log_directory.display()))?;
    let exchange_directory = claim.map(|(_, settings)| settings.exchange_directory.as_str());
    let (preopens, exchange) = volume::preopens(container, directories, exchange_directory);
    let guest = GuestSpec {
        args: arguments(container, &variables),
        env: variables,
        preopens,
        log: Some(log),
        stdin: container.stdin.unwrap_or(false).then(Stdin::default),
        ..GuestSpec::new(container.name.clone(), limits)
    };
    let outcome = match claim {
        Some((claim, settings)) => {
            run_handler(context, container, restart, &image, guest, claim, settings, exchange).await
        }
        None => run_command(context, kind, container, restart, &image, guest).await,
    }?;
    Ok(outcome)
}

/// `command` and `args`, without the program's name, which the module is.
fn arguments(container: &Container, variables: &[(String, String)]) -> Vec<String> {
    let command = container.command.iter().flatten().skip(1);
    command.chain(container.args.iter().flatten()).map(|text| environment::expand(text, variables)).collect()
}

async fn run_command(
    context: &PodContext,
    kind: ContainerKind,
    container: &Container,
    restart: u32,
    image: &LoadedImage,
    guest: GuestSpec,
) -> Result<Outcome, String> {
    let stdin = guest.stdin.clone();
    let guest = context.services.runtime.start(&image.program, guest).map_err(|error| error.to_string())?;
    report_running(context, kind, container, restart, image);
    let outcome = guest.outcome();
    tokio::pin!(outcome);
    tokio::select! {
        outcome = &mut outcome => return Ok(outcome),
        _ = context.termination.requested() => {}
    }
    report_killing(context, kind, container);
    // All that a guest can notice of its pod's end.
    if let Some(stdin) = stdin {
        stdin.close();
    }
    tokio::select! {
        outcome = &mut outcome => return Ok(outcome),
        () = context.termination.expired() => {}
    }
    guest.interrupt();
    Ok(outcome.await)
}

fn report_running(context: &PodContext, kind: ContainerKind, container: &Container, restart: u32, image: &LoadedImage) {
    let name = &container.name;
    context.event(kind, name, EventType::Normal, "Created", format!("Container created: {name}"));
    context.reporter.update_container(kind, name, |status| {
        status::running(status, restart, context.pod.uid(), &image.id);
    });
    context.event(kind, name, EventType::Normal, "Started", format!("Container started: {name}"));
}

fn report_killing(context: &PodContext, kind: ContainerKind, container: &Container) {
    let name = &container.name;
    context.event(kind, name, EventType::Normal, "Killing", format!("Stopping container {name}"));
}

#[allow(clippy::too_many_arguments, reason = "one call, of the parts that one life of a handler container is made of")]
async fn run_handler(
    context: &PodContext,
    container: &Container,
    restart: u32,
    image: &LoadedImage,
    guest: GuestSpec,
    claim: &HandlerClaim,
    settings: &HandlerSettings,
    exchange: Option<PathBuf>,
) -> Result<Outcome, String> {
    let services = &context.services;
    let pod_directory = services.data.pod(context.pod.uid());
    let exchange_volume = match exchange {
        Some(directory) => directory,
        None => {
            let directory = pod_directory.join("exchange").join(&container.name);
            crate::data_directory::make_directory(&directory)
                .map_err(|error| format!("{}: {error}", directory.display()))?;
            directory
        }
    };
    let GuestSpec { args, env, preopens, log, limits, .. } = guest;
    let Some(log) = log else { return Err("the container has no log".to_owned()) };
    let handler = HandlerContainer::start(
        services.runtime.clone(),
        &services.watcher,
        ContainerSpec {
            name: format!("{}/{}", context.pod.key(), container.name),
            settings: settings.clone(),
            program: image.program.clone(),
            args,
            env,
            preopens,
            limits,
            log,
            exchange_root: pod_directory.join("streams").join(&container.name),
            exchange_volume,
        },
    )
    .map_err(|error| error.to_string())?;
    let _stop = StopWhenDropped(handler.clone());
    // Before the first stream can come: its complaint must not be missed.
    let mut complaints = handler.complaints();
    let _serving = claim.serve(handler.clone()).map_err(|error| error.to_string())?;
    report_running(context, ContainerKind::App, container, restart, image);
    context.reporter.set_condition(DISCOVERY_HEALTHY, true, "", "");

    let run = handler.run();
    tokio::pin!(run);
    loop {
        tokio::select! {
            outcome = &mut run => return Ok(outcome),
            // There is nothing that its guests could bring to an end: a stream's last good list outlives them.
            _ = context.termination.requested() => {
                report_killing(context, ContainerKind::App, container);
                handler.stop();
                return Ok(run.await);
            }
            Ok(()) = complaints.changed() => {
                let text = complaints.borrow_and_update().values().cloned().collect::<std::collections::BTreeSet<_>>();
                let text = text.into_iter().collect::<Vec<_>>().join("; ");
                let reason = if text.is_empty() { "" } else { "BadAnswer" };
                context.reporter.set_condition(DISCOVERY_HEALTHY, text.is_empty(), reason, &text);
            }
        }
    }
}

/// Ends the guests of a handler container with the pod that is being deleted.
struct StopWhenDropped(Arc<HandlerContainer>);

impl Drop for StopWhenDropped {
    fn drop(&mut self) {
        self.0.stop();
    }
}
