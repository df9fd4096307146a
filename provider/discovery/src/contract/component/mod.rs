//! The component contract: WIT world `akri:discovery/discovery-handler`. A guest is opened with a request and then asked for a step
//! whenever it wanted to be; in between nothing of it runs.
//!
//! # Flow
//! 1. A Discover stream makes an instance. `open` and the first `step` begin on the thread that took the call, so that a guest that
//!    knows its devices at once answers at once; one that needs longer goes to the guest threads.
//! 2. Later steps run on the guest threads, after the time that the guest asked for, or when something has come that it follows.
//! 3. A step that takes longer than the deadline, traps or exits is the instance's end; the session makes another one.

mod describe;
mod recording;
mod schema;
pub mod trial;

use super::{Ended, Taken};
use crate::container::{ContainerError, ContainerSpec};
use crate::details::DiscoveryRequest;
use crate::device::{MOST_DEVICES, Said};
use akri_krustlet_host::{BackOff, TokenBucket, resting_memory, span, spans, until};
use akri_krustlet_metrics::counted;
use akri_krustlet_runtime::network::NetworkAccess;
use akri_krustlet_runtime::wasi::Progress;
use akri_krustlet_runtime::world::Recorder;
use akri_krustlet_runtime::{CallError, ComponentSpec, ComponentState, Granted, Outcome, Preopen, Runtime, World};
use akri_proto::v0::{Device, DeviceSpec, Mount};
use std::collections::VecDeque;
use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::Span;
use wasmtime::Store;

#[allow(missing_docs, reason = "generated")]
mod bindings {
    wasmtime::component::bindgen!({
        path: "../../proto/wit",
        world: "discovery-handler",
        with: { "akri:host/log@0.1.0": akri_krustlet_runtime::component::bindings::akri::host::log },
        exports: { default: async },
    });
}

pub use describe::{Descriptions, HandlerInfo};
pub use schema::DetailsSchema;

use bindings::DiscoveryHandlerPre;
use bindings::akri::discovery::types;

/// How long a guest may take on the thread of the call; one that does not yield is looked at after an epoch. Then it goes to the
/// guest threads.
const INLINE: Duration = Duration::from_millis(2);
/// The least and the longest pause between two steps.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(24 * 3600));
/// Steps that events may cause: at once, and each second.
const EVENT_STEPS: (f64, f64) = (20.0, 50.0);
/// Most parts of one list: devices, their properties, mounts and device specs.
const MOST_PARTS: usize = 16 * MOST_DEVICES;
/// Longest text that a guest says besides its devices, in bytes.
const MOST_TEXT: usize = 1024;
/// Pause before a guest that could not find out is asked again: doubles from the first to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The instances of one container.
pub(crate) struct Component {
    spec: Arc<ContainerSpec>,
    runtime: Arc<Runtime>,
    handler: DiscoveryHandlerPre<ComponentState>,
    /// What each instance is given.
    instance: ComponentSpec,
}

impl std::fmt::Debug for Component {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Component").field("name", &self.spec.name).finish_non_exhaustive()
    }
}

/// The interface that makes a component a discovery handler, and the version that the node has.
const EXPORT: (&str, &str) = ("akri:discovery/handler", "0.1.0");

fn not_a_handler(error: &wasmtime::Error) -> String {
    let (interface, version) = EXPORT;
    format!("it does not export {interface}@{version}, which makes a component a discovery handler: {error:#}")
}

impl Component {
    pub(crate) fn start(runtime: Arc<Runtime>, spec: Arc<ContainerSpec>) -> Result<Arc<Self>, ContainerError> {
        let refused = |what: String| ContainerError::Component(what);
        let instance = runtime.link(&spec.program).map_err(|error| refused(error.to_string()))?;
        let handler = DiscoveryHandlerPre::new(instance).map_err(|error| refused(not_a_handler(&error)))?;
        let mut preopens = spec.preopens.clone();
        if spec.exchange_is_mounted {
            // A directory like others, here.
            preopens.push(Preopen::new(&spec.exchange_volume, &*spec.settings.exchange_directory));
        }
        let granted = Granted::of(&spec.events, spec.network.joins_groups(), !preopens.is_empty());
        if !runtime.replays() {
            granted.check(&runtime.imports(&spec.program)).map_err(|error| refused(error.to_string()))?;
        }
        let instance = ComponentSpec {
            name: spec.name.clone(),
            args: spec.args.clone(),
            env: spec.env.clone(),
            log: Some(spec.log.clone()),
            preopens,
            events: spec.events.clone(),
            stdin: None,
            limits: spec.limits.clone(),
        };
        Ok(Arc::new(Self { spec, runtime, handler, instance }))
    }

    pub(crate) fn guest(self: &Arc<Self>) -> ComponentGuest {
        ComponentGuest { component: self.clone(), told: Arc::default(), task: Mutex::default() }
    }

    /// What an instance runs in. Its directories may be on something that hangs.
    async fn store(self: Arc<Self>, request: &DiscoveryRequest, world: World) -> Result<Store<ComponentState>, String> {
        let network = NetworkAccess::new(self.spec.network.clone(), &request.details);
        let may_hang = !self.instance.preopens.is_empty();
        let make = move || {
            let store = self.runtime.component_store(&self.instance, Some(network), world);
            store.map_err(|error| error.to_string())
        };
        match may_hang {
            true => tokio::task::spawn_blocking(make).await.unwrap_or_else(|error| Err(error.to_string())),
            false => make(),
        }
    }

    /// What an instance sees: the machine, and it is written down where its author wants that.
    fn world(&self, request: &DiscoveryRequest) -> Result<World, String> {
        let Some(to) = self.runtime.record() else { return Ok(World::Machine) };
        let (name, preopens) = (&self.spec.settings.name, &self.instance.preopens);
        let recorder = Recorder::begin(to, name, &request.details, &request.properties, &self.instance.env, preopens);
        let failed = |error| format!("the recording {} cannot be written: {error}", to.path.display());
        Ok(World::Recorded(Arc::new(recorder.map_err(failed)?)))
    }

    async fn call<T: Send + 'static>(
        &self,
        inline: Option<Duration>,
        call: Span,
        work: impl Future<Output = (Store<ComponentState>, wasmtime::Result<T>)> + Send + 'static,
    ) -> Result<(Store<ComponentState>, T), CallError> {
        let span = span!(parent: &call, "step", akri.handler = self.spec.settings.name);
        let deadline = self.spec.settings.step_deadline;
        let started = Instant::now();
        let call = self.runtime.call(&self.spec.limits, &self.spec.name, inline, deadline, work);
        let done = spans::told(span, call).await;
        counted().steps.observe([&self.spec.settings.name], started.elapsed());
        done
    }

    /// One instance, from its request to its end.
    async fn run(self: Arc<Self>, request: Arc<DiscoveryRequest>, told: Arc<Told>) -> Ended {
        if let Some(info) = self.spec.info.clone()
            && let Err(reason) = check_details(info, &request).await
        {
            told.say(Said::InvalidDetails(reason));
            return std::future::pending().await;
        }
        let world = match self.world(&request) {
            Ok(world) => world,
            Err(reason) => return Ended::Failed(reason),
        };
        let recorder = world.recorder().cloned();
        let mut store = match self.clone().store(&request, world).await {
            Ok(store) => store,
            Err(reason) => return Ended::Failed(reason),
        };
        let (handler, inbox) = (self.handler.clone(), store.data().inbox());
        // Files may be on something that hangs: not on the threads of calls.
        let inline = self.instance.preopens.is_empty().then_some(INLINE);
        let first = self.call(inline, request.take_call(), async move {
            let result = async {
                let handler = handler.instantiate_async(&mut store).await?;
                let guest = handler.akri_discovery_handler();
                let opened = match guest.call_open(&mut store, &as_wit(&request)).await? {
                    Ok(()) => Ok(guest.call_step(&mut store).await?),
                    Err(error) => Err(error),
                };
                Ok((handler, opened))
            };
            let result = result.await;
            (store, result)
        });
        let (mut store, (mut handler, opened)) = match first.await {
            Ok(done) => done,
            Err(error) => return ended(error),
        };
        if let (Some(recorder), Err(error)) = (&recorder, &opened) {
            recorder.said(Some(recording::of_error(error)));
        }
        let mut outcome = match opened {
            Ok(outcome) => outcome,
            Err(types::Error::InvalidDetails(reason)) => {
                told.say(Said::InvalidDetails(reason));
                // Until the Configuration is another one.
                return std::future::pending().await;
            }
            Err(types::Error::Unavailable(reason) | types::Error::Internal(reason)) => {
                return Ended::Failed(shortened(reason));
            }
        };
        let mut back_off = BackOff::new(BACK_OFF.0, BACK_OFF.1);
        let mut event_steps = TokenBucket::new(EVENT_STEPS.0, EVENT_STEPS.1);
        // A recording is of what the guest asked for.
        let pause_of = if recorder.is_some() { exact } else { jittered };
        loop {
            if let Some(recorder) = &recorder {
                recorder.said(recording::of_outcome(&outcome));
            }
            let (said, pause) = match outcome {
                Ok(types::Outcome { devices, wake_after_ms, note }) => {
                    back_off.reset();
                    (found(devices, note), wake_after_ms.map(pause_of))
                }
                Err(error) => (trouble(error), Some(back_off.pause())),
            };
            told.say(said);
            resting_memory::has_stepped();
            let pause = pause.map(|pause| Instant::now() + pause);
            let event = async {
                inbox.arrived().await;
                tokio::time::sleep_until(event_steps.when(1.0)).await;
            };
            tokio::select! {
                () = until(pause) => {}
                () = event => event_steps.spend(1.0),
            }
            if let Some(recorder) = &recorder {
                recorder.step();
            }
            let step = self.call(None, Span::none(), async move {
                let result = handler.akri_discovery_handler().call_step(&mut store).await;
                (store, result.map(|outcome| (handler, outcome)))
            });
            (store, (handler, outcome)) = match step.await {
                Ok(done) => done,
                Err(error) => return ended(error),
            };
        }
    }
}

/// What a step found, unless it is more than anybody takes.
fn found(devices: Option<Vec<types::Device>>, note: Option<String>) -> Said {
    let parts = devices.as_deref().map_or(0, parts);
    if parts > MOST_PARTS {
        return Said::Trouble(format!(
            "the answer has {parts} devices, properties, mounts and device specs together; {MOST_PARTS} at most are taken"
        ));
    }
    Said::Found { devices: devices.map(|devices| devices.into_iter().map(device).collect()), note }
}

/// Why a step found nothing out.
fn trouble(error: types::Error) -> Said {
    match error {
        types::Error::InvalidDetails(reason) => Said::InvalidDetails(reason),
        types::Error::Unavailable(reason) => Said::Trouble(reason),
        types::Error::Internal(reason) => Said::Trouble(format!("the handler has a fault: {reason}")),
    }
}

/// A guest's own words, as long as they may be.
fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MOST_TEXT));
    text.shrink_to_fit();
    text
}

fn exact(milliseconds: u32) -> Duration {
    Duration::from_millis(milliseconds.into()).clamp(PAUSES.0, PAUSES.1)
}

/// A little more or less, so that a thousand guests do not wake at once.
fn jittered(milliseconds: u32) -> Duration {
    let pause = Duration::from_millis(u64::from(milliseconds));
    let random = std::hash::RandomState::new().hash_one(0) % 1000;
    let part = 0.95 + 0.1 * f64::from(u16::try_from(random).unwrap_or(0)) / 1000.0;
    pause.clamp(PAUSES.0, PAUSES.1).mul_f64(part).max(PAUSES.0)
}

fn ended(error: CallError) -> Ended {
    match error {
        CallError::Deadline(_) => Ended::Failed(format!(
            "a step of the guest of a stream {error}; it was ended (annotation akri-krustlet/step-deadline)"
        )),
        CallError::Ended(outcome) => Ended::Guest(outcome),
    }
}

/// The request as the guest sees it.
fn as_wit(request: &DiscoveryRequest) -> types::Request {
    types::Request {
        details: request.details.clone(),
        raw_details: request.raw_details.clone(),
        properties: request
            .properties
            .iter()
            .map(|(name, value)| types::Property { name: name.clone(), value: value.clone() })
            .collect(),
    }
}

/// Long checks, for all handlers: one after the other.
static CHECKS: Semaphore = Semaphore::const_new(1);

/// Checks the details by what the handler's author says of them.
async fn check_details(info: Arc<HandlerInfo>, request: &Arc<DiscoveryRequest>) -> Result<(), String> {
    let Some(schema) = &info.schema else { return Ok(()) };
    if schema.is_quick(&request.details) {
        return schema.check(&request.details);
    }
    let (info, request) = (info.clone(), request.clone());
    let failed = |error: &dyn std::fmt::Display| format!("discovery details cannot be checked: {error}");
    let _turn = CHECKS.acquire().await.map_err(|error| failed(&error))?;
    let check = move || info.schema.as_ref().map_or(Ok(()), |schema| schema.check(&request.details));
    tokio::task::spawn_blocking(check).await.unwrap_or_else(|error| Err(failed(&error)))
}

/// How much there is of a list, whatever is in it.
fn parts(devices: &[types::Device]) -> usize {
    devices.iter().map(|device| 1 + device.properties.len() + device.mounts.len() + device.device_specs.len()).sum()
}

fn device(device: types::Device) -> Device {
    let mount = |types::Mount { container_path, host_path, read_only }| Mount { container_path, host_path, read_only };
    let spec = |types::DeviceSpec { container_path, host_path, permissions }| DeviceSpec {
        container_path,
        host_path,
        permissions: letters(permissions),
    };
    Device {
        id: device.id,
        properties: device.properties.into_iter().collect(),
        mounts: device.mounts.into_iter().map(mount).collect(),
        device_specs: device.device_specs.into_iter().map(spec).collect(),
    }
}

/// What may be done with a device's node, as the kubelet's device plugin API writes it.
fn letters(permissions: types::Permissions) -> String {
    let letters = [(types::Permissions::READ, 'r'), (types::Permissions::WRITE, 'w'), (types::Permissions::MKNOD, 'm')];
    letters.iter().filter(|(one, _)| permissions.contains(*one)).map(|(_, letter)| letter).collect()
}

/// What an instance said and its session has not taken yet.
#[derive(Debug, Default)]
struct Told {
    said: Mutex<VecDeque<Said>>,
    progress: watch::Sender<Progress>,
    ended: watch::Sender<Option<Ended>>,
}

impl Told {
    /// Never more than two are kept: a list, in whose place a newer one comes, and what was said after it.
    fn say(&self, mut new: Said) {
        if let Said::InvalidDetails(text) | Said::Trouble(text) | Said::Found { note: Some(text), .. } = &mut new {
            *text = shortened(std::mem::take(text));
        }
        let is_list = |said: &Said| matches!(said, Said::Found { devices: Some(_), .. });
        let mut said = self.said();
        if is_list(&new) {
            said.clear();
        } else {
            said.retain(is_list);
        }
        said.push_back(new);
        drop(said);
        self.progress.send_modify(|progress| progress.answers += 1);
    }

    fn said(&self) -> MutexGuard<'_, VecDeque<Said>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The instance of one stream. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct ComponentGuest {
    component: Arc<Component>,
    told: Arc<Told>,
    task: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl ComponentGuest {
    /// Opens the request. Returns when the guest has answered, or needs longer.
    pub(crate) async fn request(&self, request: &Arc<DiscoveryRequest>) {
        let (run, told) = (self.component.clone().run(request.clone(), self.told.clone()), self.told.clone());
        let mut run = Box::pin(async move {
            let ended = run.await;
            told.ended.send_replace(Some(ended));
        });
        let mut progress = self.progress();
        let answered = progress.wait_for(|progress| progress.answers > 0);
        tokio::select! {
            biased;
            () = &mut run => return,
            _ = answered => {}
            () = tokio::time::sleep(INLINE) => {}
        }
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(AbortOnDropHandle::new(tokio::spawn(run)));
    }

    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.told.progress.subscribe()
    }

    pub(crate) fn take_answer(&self) -> Taken {
        let mut said = self.told.said();
        let next = said.pop_front();
        if !said.is_empty() {
            drop(said);
            // There is more to take.
            self.told.progress.send_modify(|progress| progress.answers += 1);
        }
        let bytes = next.as_ref().map_or(0, Said::bytes);
        Taken { said: Ok(next), bytes }
    }

    pub(crate) async fn ended(&self) -> Ended {
        match self.told.ended.subscribe().wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or(Ended::Guest(Outcome::Interrupted)),
            Err(_) => Ended::Guest(Outcome::Interrupted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(ids: &[&str]) -> Said {
        let devices = ids.iter().map(|id| Device { id: (*id).to_owned(), ..Device::default() });
        Said::Found { devices: Some(devices.collect()), note: None }
    }

    #[test]
    fn a_list_is_not_lost_behind_what_is_said_after_it_and_nothing_piles_up() {
        let told = Told::default();
        let taken = || told.said().drain(..).collect::<Vec<_>>();
        let quiet = Said::Found { devices: None, note: None };
        for number in 0..100 {
            told.say(list(&[&number.to_string()]));
            told.say(Said::Trouble("it is away".to_owned()));
            told.say(quiet.clone());
        }
        assert_eq!(taken(), [list(&["99"]), quiet.clone()]);
        told.say(quiet.clone());
        told.say(list(&["a"]));
        assert_eq!(taken(), [list(&["a"])]);
    }

    #[test]
    fn pauses_are_bounded_and_differ() {
        let pauses: Vec<_> = (0..100).map(|_| jittered(10_000)).collect();
        assert!(
            pauses.iter().all(|pause| (Duration::from_millis(9500)..=Duration::from_millis(10_500)).contains(pause))
        );
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
        assert!((0..100).all(|_| jittered(0) >= PAUSES.0));
        assert!(jittered(u32::MAX) <= 2 * PAUSES.1);
    }
}
