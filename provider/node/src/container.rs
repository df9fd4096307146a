//! Runs one container of a pod: starts it, watches it, starts it again as the pod's restart policy says.

use crate::admission;
use crate::back_off::BackOff;
use crate::cluster::events::EventType;
use crate::device;
use crate::environment::{self, Scope, Sources};
use crate::image::{self, ImageFailure, LoadedImage};
use crate::pod::{PodObject, RestartPolicy};
use crate::provider::Services;
use crate::status::{self, ContainerKind, DISCOVERY_HEALTHY, DISRUPTION_TARGET, StatusReporter};
use crate::termination::{StopReason, Termination};
use crate::termination_message::TerminationMessage;
use crate::volume::{self, Volumes};
use akri_krustlet_discovery::handlers::ForeignName;
use akri_krustlet_discovery::{ContainerSpec, HandlerClaim, HandlerContainer, HandlerSettings};
use akri_krustlet_host::TokenBucket;
use akri_krustlet_host::patience::patiently;
use akri_krustlet_images::Launch;
use akri_krustlet_runtime::log::{ContainerLog, LogLimits};
use akri_krustlet_runtime::stdin::Stdin;
use akri_krustlet_runtime::{GuestSpec, Outcome, SharedLimits};
use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// What the containers of one pod have in common.
#[derive(Debug)]
pub struct PodContext {
    /// The node's services.
    pub services: Arc<Services>,
    /// The pod as it was taken up: who it is.
    pub pod: PodObject,
    /// The pod as the API has it now; images, `activeDeadlineSeconds`, labels and annotations can be changed.
    pub latest: watch::Sender<PodObject>,
    /// Its status.
    pub reporter: StatusReporter,
    /// Its end, when it is asked for.
    pub termination: Termination,
    /// The images of its containers by the containers' names; they stay loaded as long as the pod is there.
    pub images: Mutex<HashMap<String, LoadedImage>>,
    /// Why the node puts an end to it, if it does.
    pub eviction: OnceLock<String>,
    /// The limits that the guests of its containers share now, by the containers' names.
    pub memory: Mutex<HashMap<String, Weak<SharedLimits>>>,
    /// An earlier run of the node had it.
    pub ran_before: bool,
}

impl PodContext {
    /// The pod as the API has it now.
    pub fn latest(&self) -> PodObject {
        self.latest.borrow().clone()
    }

    /// A change of the pod, which its containers take over when they start the next time; another image makes them.
    pub fn update(&self, pod: &PodObject) {
        let ephemeral = |pod: &PodObject| pod.spec().ephemeral_containers.as_ref().map_or(0, Vec::len);
        if ephemeral(pod) > ephemeral(&self.latest.borrow()) {
            let message = "an ephemeral container is not run: a WebAssembly guest has no processes to look at";
            self.services.events.pod(pod, EventType::Warning, "FailedValidation", message.to_owned());
        }
        self.latest.send_replace(pod.clone());
        self.reporter.observed(pod);
    }

    /// Resolves when the container is to have another image than this.
    pub async fn image_changed(&self, kind: ContainerKind, container: &Container) {
        let other =
            |pod: &PodObject| find(pod, kind, &container.name).is_some_and(|latest| latest.image != container.image);
        if self.latest.subscribe().wait_for(other).await.is_err() {
            std::future::pending().await
        }
    }

    /// Ends the pod, which has taken more than it may have.
    pub fn evict(&self, message: String) {
        if self.eviction.set(message.clone()).is_ok() {
            tracing::warn!(pod = self.pod.key(), "evicted: {message}");
            self.services.events.pod(&self.pod, EventType::Warning, "Evicted", message);
            self.termination.stop(Duration::ZERO, StopReason::Evicted);
        }
    }

    /// Ends the pod because the node is short of something; a Job may not count that as the pod's failure.
    pub fn evict_for_node(&self, message: String) {
        self.reporter.set_condition(DISRUPTION_TARGET, true, "TerminationByKubelet", &message);
        self.evict(message);
    }

    /// The image that was loaded for a container, if it is still the one that it names.
    fn image(&self, container: &Container) -> Option<LoadedImage> {
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.get(&container.name).filter(|image| Some(&image.name) == container.image.as_ref()).cloned()
    }

    /// Bytes of linear memory that its guests have now.
    pub fn memory_in_use(&self) -> u64 {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.values().filter_map(Weak::upgrade).map(|limits| limits.memory_in_use() as u64).sum()
    }

    /// Keeps an image for a container.
    pub fn keep_image(&self, container: &str, image: LoadedImage) {
        self.images.lock().unwrap_or_else(PoisonError::into_inner).insert(container.to_owned(), image);
    }

    /// Tells of something that happened to one of its containers.
    pub fn event(&self, kind: ContainerKind, container: &str, of: EventType, reason: &'static str, message: String) {
        self.services.events.container(&self.pod, (kind, container), of, reason, message);
    }
}

fn find<'a>(pod: &'a PodObject, kind: ContainerKind, name: &str) -> Option<&'a Container> {
    let containers = match kind {
        ContainerKind::Init => pod.init_containers(),
        ContainerKind::App => &pod.spec().containers,
    };
    containers.iter().find(|container| container.name == name)
}

/// After an error about a variable's source, it is read again.
const CONFIG_RETRY: Duration = Duration::from_secs(15);

/// Runs a container until it has ended for good; true if it succeeded then.
///
/// A container that ran in an earlier life of the node goes on from there: its restarts are counted on, and one that had
/// ended for good is not run again. One whose image is changed is run again, whatever the policy says.
pub async fn supervise(
    context: &PodContext,
    volumes: &Volumes,
    kind: ContainerKind,
    container: &Container,
    policy: RestartPolicy,
) -> bool {
    let name = &container.name;
    let mut container = container.clone();
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
    let mut claim = claim_handler(context, kind, &container, Scope::OfPod).ok().flatten();
    let mut back_off = BackOff::default();
    loop {
        let image = obtain_image(context, kind, &mut container).await;
        let sources = obtain_sources(context, kind, &container).await;
        if claim.is_none() {
            claim = obtain_claim(context, kind, &container, &sources).await;
        }
        let started = Instant::now();
        let running = context.termination.enter();
        let life = Life { restart, sources: &sources, claim: claim.as_ref() };
        let run = run_once(context, volumes, kind, &container, &image, life);
        let succeeded = match run.await {
            Ok(outcome) => {
                let message = last_words(context, &container, restart, &outcome).await;
                context.reporter.update_container(kind, name, |status| status::terminated(status, &outcome, message));
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
        let latest = context.latest();
        if let Some(changed) = find(&latest, kind, name).filter(|latest| latest.image != container.image)
            && context.termination.current().is_none()
        {
            container = changed.clone();
            restart += 1;
            back_off = BackOff::default();
            continue;
        }
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
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // Whoever corrects the image does not wait for the old one's pause.
                () = context.image_changed(kind, &container) => back_off = BackOff::default(),
            }
            if let Some(latest) = find(&context.latest(), kind, name) {
                container.clone_from(latest);
            }
        }
        restart += 1;
    }
}

/// The image for the container's next life. One that cannot be had is tried again until it can, or until the container names
/// another one.
async fn obtain_image(context: &PodContext, kind: ContainerKind, container: &mut Container) -> LoadedImage {
    let mut back_off = BackOff::default();
    loop {
        // A file may have been replaced by a newer one; an image of a registry stays, unless it is always to be pulled.
        let always = container.image_pull_policy.as_deref() == Some("Always");
        if let Some(image) = context.image(container).filter(|image| image.reference.is_some() && !always) {
            let message = image::already_present(&image.name);
            context.event(kind, &container.name, EventType::Normal, "Pulled", message);
            return image;
        }
        let pod = context.latest();
        if let Some(latest) = find(&pod, kind, &container.name) {
            container.clone_from(latest);
        }
        let started = Instant::now();
        match image::load(&context.services, &pod, kind, container).await {
            Ok(image) => {
                context.keep_image(&container.name, image.clone());
                return image;
            }
            Err(error) => {
                let pause = back_off.next(started).max(crate::back_off::FIRST);
                let failure = ImageFailure::of(context, kind, container, &error);
                if failure.wait(context, pause).await {
                    back_off = BackOff::default();
                }
            }
        }
    }
}

/// Where the file with a container's termination message is.
fn termination_message(context: &PodContext, container: &Container) -> Option<TerminationMessage> {
    let directory = context.services.data.pod(context.pod.uid()).join("termination").join(&container.name);
    let containers = context.pod.init_containers().len() + context.pod.spec().containers.len();
    TerminationMessage::of(container, containers, directory)
}

/// What a container that ended has to say about it.
async fn last_words(context: &PodContext, container: &Container, restart: u32, outcome: &Outcome) -> Option<String> {
    let message = termination_message(context, container)?;
    let log = context.services.data.container_logs(&context.pod, &container.name);
    let failed = *outcome != Outcome::Exited(0);
    tokio::task::spawn_blocking(move || message.read(&log, restart, failed)).await.ok()?
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
    scope: Scope<'_>,
) -> Result<Option<HandlerClaim>, ForeignName> {
    if kind == ContainerKind::Init {
        return Ok(None);
    }
    let Some(settings) = handler_settings(context, container, scope) else { return Ok(None) };
    context.services.handlers.claim(&settings.name, context.pod.namespace()).map(Some)
}

/// The claim of a container on its handler's name, if it is one. While the name is another namespace's, the container waits.
async fn obtain_claim(
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

fn handler_settings(context: &PodContext, container: &Container, scope: Scope<'_>) -> Option<HandlerSettings> {
    let pod = context.latest();
    let variables = environment::variables(container, &pod, &context.services.node, scope).ok()?;
    admission::handler_settings(container, &pod, &variables).ok()?
}

/// The ConfigMaps and Secrets that the container's variables are taken from. As long as one that it needs is missing, the
/// container waits and says so.
async fn obtain_sources(context: &PodContext, kind: ContainerKind, container: &Container) -> Sources {
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

/// The container's variables, and those of its image that it does not set itself.
fn with_images(launch: &Launch, variables: Vec<(String, String)>) -> Vec<(String, String)> {
    let of_image = launch.env.iter().filter(|(name, _)| variables.iter().all(|(own, _)| own != name));
    of_image.cloned().chain(variables.iter().cloned()).collect()
}

/// What one life of a container has that the next one may have otherwise.
#[derive(Clone, Copy)]
struct Life<'a> {
    restart: u32,
    sources: &'a Sources,
    claim: Option<&'a HandlerClaim>,
}

/// Changes of a handler's condition that are told at once, and how many are told each second after that.
const CONDITIONS: (f64, f64) = (10.0, 0.2);

/// One life of the container. An error means that it was not started.
async fn run_once(
    context: &PodContext,
    volumes: &Volumes,
    kind: ContainerKind,
    container: &Container,
    image: &LoadedImage,
    Life { restart, sources, claim }: Life<'_>,
) -> Result<Outcome, String> {
    let services = &context.services;
    let scope = Scope::All(sources);
    let handler = claim.and_then(|claim| Some((claim, handler_settings(context, container, scope)?)));
    let devices = device::access(context, kind, &container.name).await?;
    let limits = admission::limits(container).map_err(|error| error.to_string())?.share();
    let shared = Arc::downgrade(&limits);
    context.memory.lock().unwrap_or_else(PoisonError::into_inner).insert(container.name.clone(), shared);
    let mut variables = environment::variables(container, &context.latest(), &services.node, scope)
        .map_err(|error| error.to_string())?;
    // What the pod's author says counts.
    let own: Vec<_> = variables.iter().map(|(name, _)| name.clone()).collect();
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
    let exchange_directory = handler.as_ref().map(|(_, settings)| settings.exchange_directory.as_str());
    let files = services.data.pod(context.pod.uid()).join("files").join(&container.name);
    let volume::ContainerVolumes { mut preopens, exchange } = {
        let (container, mounted, variables) = (container.clone(), volumes.mounted(), variables.clone());
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
    let guest = GuestSpec {
        args: arguments(container, &image.launch, &variables),
        env: with_images(&image.launch, variables),
        preopens,
        log: Some(log),
        stdin: container.stdin.unwrap_or(false).then(Stdin::default),
        ..GuestSpec::new(container.name.clone(), limits)
    };
    match handler {
        Some((claim, settings)) => {
            let writable = volumes.mounted().values().map(|volume| volume.path.clone()).collect();
            run_handler(context, container, restart, image, guest, claim, settings, exchange, writable).await
        }
        None => run_command(context, kind, container, restart, image, guest).await,
    }
}

/// The guest's arguments, without the program's name, which the module is: those of the pod's `command` and `args`, and of what
/// the pod does not say, the image's. As everywhere, a `command` replaces both of the image's, `args` its Cmd.
fn arguments(container: &Container, launch: &Launch, variables: &[(String, String)]) -> Vec<String> {
    let expanded = |texts: &Option<Vec<String>>| -> Vec<String> {
        texts.iter().flatten().map(|text| environment::expand(text, variables)).collect()
    };
    let (command, args) = (expanded(&container.command), expanded(&container.args));
    let mut all = match (command.is_empty(), args.is_empty()) {
        (false, _) => [command, args].concat(),
        (true, args_missing) => {
            let entrypoint = launch.program.iter().chain(&launch.entrypoint_args).cloned().collect();
            [entrypoint, if args_missing { launch.cmd.clone() } else { args }].concat()
        }
    };
    // Without an entrypoint, an image's Cmd begins with the module; what a pod says in its place need not.
    let names_program = !command_or_entrypoint_is_missing(container, launch)
        || all.first().is_some_and(|first| launch.cmd.first() == Some(first));
    if names_program && !all.is_empty() {
        all.remove(0);
    }
    all
}

fn command_or_entrypoint_is_missing(container: &Container, launch: &Launch) -> bool {
    container.command.as_ref().is_none_or(Vec::is_empty) && launch.program.is_none()
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
    let listening = stdin.as_ref().map(|_| context.services.shutdown.enter());
    let deadline = tokio::select! {
        biased;
        outcome = &mut outcome => return Ok(outcome),
        deadline = end_wanted(context, kind, container) => deadline,
        () = context.services.shutdown.requested(), if stdin.is_some() => {
            stdin.iter().for_each(Stdin::close);
            (&mut outcome).await;
            drop(listening);
            // That it ended is the node's doing, and not told: its next start runs it again.
            std::future::pending().await
        }
    };
    // All that a guest can notice of its pod's end.
    if let Some(stdin) = stdin {
        stdin.close();
    }
    tokio::select! {
        outcome = &mut outcome => return Ok(outcome),
        () = tokio::time::sleep_until(deadline) => {}
        () = context.termination.expired() => {}
    }
    guest.interrupt();
    Ok(outcome.await)
}

fn report_running(context: &PodContext, kind: ContainerKind, container: &Container, restart: u32, image: &LoadedImage) {
    let name = &container.name;
    context.event(kind, name, EventType::Normal, "Created", format!("Container created: {name}"));
    context.reporter.update_container(kind, name, |status| {
        status::running(status, container, restart, context.pod.uid(), image);
    });
    context.event(kind, name, EventType::Normal, "Started", format!("Container started: {name}"));
}

/// Resolves when the container is to end, with its pod or for another image, and tells so; the time that it has for that.
async fn end_wanted(context: &PodContext, kind: ContainerKind, container: &Container) -> Instant {
    let name = &container.name;
    let (message, deadline) = tokio::select! {
        stop = context.termination.requested() => (format!("Stopping container {name}"), stop.deadline),
        () = context.image_changed(kind, container) => {
            let deadline = Instant::now() + context.latest().grace_period();
            (format!("Container {name} definition changed, will be restarted"), deadline)
        }
    };
    context.event(kind, name, EventType::Normal, "Killing", message);
    deadline
}

#[allow(clippy::too_many_arguments, reason = "one call, of the parts that one life of a handler container is made of")]
async fn run_handler(
    context: &PodContext,
    container: &Container,
    restart: u32,
    image: &LoadedImage,
    guest: GuestSpec,
    claim: &HandlerClaim,
    settings: HandlerSettings,
    exchange: Option<PathBuf>,
    writable: Vec<PathBuf>,
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
    let spec = ContainerSpec {
        name: format!("{}/{}", context.pod.key(), container.name),
        settings,
        program: image.program.clone(),
        args,
        env,
        preopens,
        limits,
        log,
        operator_host_paths: services.handlers.host_paths().clone(),
        writable,
        exchange_root: pod_directory.join("streams").join(&container.name),
        exchange_volume,
    };
    let (runtime, watcher) = (services.runtime.clone(), services.watcher.clone());
    // It reads the exchange volume, which may be a user's.
    let started = patiently(context.pod.uid(), move || HandlerContainer::start(runtime, &watcher, spec)).await;
    let handler =
        started.map_err(|hangs| format!("the exchange volume: {hangs}"))?.map_err(|error| error.to_string())?;
    let _stop = StopWhenDropped(handler.clone());
    // Before the first stream can come: its complaint must not be missed.
    let mut complaints = handler.complaints();
    let _serving = claim.serve(handler.clone()).map_err(|error| error.to_string())?;
    report_running(context, ContainerKind::App, container, restart, image);
    context.reporter.set_condition(DISCOVERY_HEALTHY, true, "", "");

    let mut conditions = TokenBucket::new(CONDITIONS.0, CONDITIONS.1);
    let run = handler.run();
    tokio::pin!(run);
    loop {
        let changed = async {
            tokio::time::sleep_until(conditions.when(1.0)).await;
            complaints.changed().await
        };
        tokio::select! {
            outcome = &mut run => return Ok(outcome),
            // There is nothing that its guests could bring to an end: a stream's last good list outlives them.
            _ = end_wanted(context, ContainerKind::App, container) => {
                handler.stop();
                return Ok(run.await);
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

/// Ends the guests of a handler container with the pod that is being deleted.
struct StopWhenDropped(Arc<HandlerContainer>);

impl Drop for StopWhenDropped {
    fn drop(&mut self) {
        self.0.stop();
    }
}
