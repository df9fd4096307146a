//! An instance that is asked step by step, without a stream: for a handler's author.

use super::bindings::akri::discovery::types;
use super::{Component, DiscoveryHandlerPre, as_wit, bindings, check_details, found, recording};
use crate::container::ContainerSpec;
use crate::details::DiscoveryRequest;
use crate::device::{Checked, Said};
use crate::host_path::HostPaths;
use akri_krustlet_host::allocations;
use akri_krustlet_runtime::world::{Replay, recording as recorded};
use akri_krustlet_runtime::{CallError, ComponentState, Runtime, World};
use akri_proto::v0::{DiscoverRequest, DiscoverResponse};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::Span;
use wasmtime::Store;

/// One instance of a discovery handler, and what it was asked.
pub struct Trial {
    world: World,
    component: Arc<Component>,
    host_paths: HostPaths,
    /// Missing after a call that was its end.
    instance: Option<(Store<ComponentState>, bindings::DiscoveryHandler)>,
}

impl fmt::Debug for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trial").field("component", &self.component).finish_non_exhaustive()
    }
}

/// What a call took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// From the call to its end.
    pub time: Duration,
    /// What the guest did, in the engine's fuel; a runtime that does not count has none.
    pub fuel: Option<u64>,
    /// What the guest has now, in bytes.
    pub memory: usize,
    /// How often the node's own allocator was asked; none where that is not counted.
    pub allocations: Option<u64>,
}

/// What has been used up until then.
struct Used {
    time: Instant,
    fuel: Option<u64>,
    allocations: Option<u64>,
}

impl Used {
    fn until_now(store: &Store<ComponentState>) -> Self {
        Self { time: Instant::now(), fuel: store.get_fuel().ok(), allocations: allocations::number() }
    }
}

/// What a step said.
#[derive(Clone, Debug)]
pub enum Stepped {
    /// What the node would send, and what it would say.
    Found {
        /// All devices that there are; none: as before.
        devices: Option<DiscoverResponse>,
        /// What the node has left out, and why.
        warning: Option<String>,
        /// What the pod's condition would tell.
        note: Option<String>,
        /// When the next step would come; none: when something comes that it follows.
        wake_after: Option<Duration>,
    },
    /// The node would not use the answer, for this reason.
    Unusable(String),
    /// It could not find out.
    Unavailable(String),
    /// It has a fault.
    Internal(String),
}

/// Why there is nothing more to ask.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TrialError {
    /// The details are wrong.
    #[error("the details are refused: {0}")]
    InvalidDetails(String),
    /// It did not take the request, and would be asked again later.
    #[error("the request was not taken: {0}")]
    Unavailable(String),
    /// It cannot be made.
    #[error("{0}")]
    Unusable(String),
    /// The guest trapped, exited or took too long.
    #[error("the guest {0}")]
    Ended(String),
}

impl Trial {
    /// Makes an instance and gives it a request; with a recording, in whose time the caller lives then, in place of the machine.
    pub async fn open(
        runtime: Arc<Runtime>,
        spec: ContainerSpec,
        request: DiscoverRequest,
        replay: Option<Arc<Replay>>,
    ) -> Result<(Self, Cost), TrialError> {
        let unusable = |error: &dyn fmt::Display| TrialError::Unusable(error.to_string());
        let request = DiscoveryRequest::read(request).map_err(|error| TrialError::InvalidDetails(error.to_string()))?;
        let request = Arc::new(request);
        if let Some(info) = spec.info.clone() {
            check_details(info, &request).await.map_err(TrialError::InvalidDetails)?;
        }
        let writable = spec.preopens.iter().filter(|preopen| !preopen.read_only).map(|preopen| preopen.host.clone());
        let host_paths = HostPaths {
            pod: spec.settings.allowed_host_paths.clone(),
            operator: spec.operator_host_paths.clone(),
            writable: writable.collect(),
        };
        let component = Component::start(runtime, Arc::new(spec)).map_err(|error| unusable(&error))?;
        let world = match replay {
            Some(replay) => World::Replayed(replay),
            None => component.world(&request).map_err(TrialError::Unusable)?,
        };
        let mut store = component.clone().store(&request, world.clone()).await.map_err(|error| unusable(&error))?;
        let handler: DiscoveryHandlerPre<ComponentState> = component.handler.clone();
        let before = Used::until_now(&store);
        let opened = component.call(None, Span::none(), async move {
            let result = async {
                let handler = handler.instantiate_async(&mut store).await?;
                let opened = handler.akri_discovery_handler().call_open(&mut store, &as_wit(&request)).await?;
                Ok((handler, opened))
            };
            let result = result.await;
            (store, result)
        });
        let (store, (handler, opened)) = opened.await.map_err(ended)?;
        if let (Some(recorder), Err(error)) = (world.recorder(), &opened) {
            recorder.said(Some(recording::of_error(error)));
        }
        match opened {
            Ok(()) => {}
            Err(types::Error::InvalidDetails(reason)) => return Err(TrialError::InvalidDetails(reason)),
            Err(types::Error::Unavailable(reason)) => return Err(TrialError::Unavailable(reason)),
            Err(types::Error::Internal(reason)) => {
                return Err(TrialError::Unavailable(format!("the handler has a fault: {reason}")));
            }
        }
        let cost = component.cost(&before, &store);
        Ok((Self { world, component, host_paths, instance: Some((store, handler)) }, cost))
    }

    /// Asks for a step. Tells what the node would make of the answer, and the answer itself.
    pub async fn step(&mut self) -> Result<(Stepped, Option<recorded::Said>, Cost), TrialError> {
        let Some((mut store, handler)) = self.instance.take() else {
            return Err(TrialError::Ended("has ended before".to_owned()));
        };
        if let Some(recorder) = self.world.recorder() {
            recorder.step();
        }
        let before = Used::until_now(&store);
        let step = self.component.call(None, Span::none(), async move {
            let result = handler.akri_discovery_handler().call_step(&mut store).await;
            (store, result.map(|outcome| (handler, outcome)))
        });
        let (store, (handler, outcome)) = step.await.map_err(ended)?;
        let cost = self.component.cost(&before, &store);
        self.instance = Some((store, handler));
        let said = recording::of_outcome(&outcome);
        if let Some(recorder) = self.world.recorder() {
            recorder.said(said.clone());
        }
        let stepped = match outcome {
            Ok(types::Outcome { devices, wake_after_ms, note }) => self.found(devices, wake_after_ms, note),
            Err(types::Error::InvalidDetails(reason)) => return Err(TrialError::InvalidDetails(reason)),
            Err(types::Error::Unavailable(reason)) => Stepped::Unavailable(reason),
            Err(types::Error::Internal(reason)) => Stepped::Internal(reason),
        };
        Ok((stepped, said, cost))
    }

    /// With the checks that a node makes.
    fn found(&self, devices: Option<Vec<types::Device>>, wake_after_ms: Option<u32>, note: Option<String>) -> Stepped {
        let wake_after = wake_after_ms.map(|pause| Duration::from_millis(pause.into()));
        match found(devices, note) {
            Said::Found { devices: None, note } => Stepped::Found { devices: None, warning: None, note, wake_after },
            Said::Found { devices: Some(devices), note } => match Checked::of(devices, &self.host_paths) {
                Ok(Checked { list, warning }) => Stepped::Found { devices: Some(list), warning, note, wake_after },
                Err(error) => Stepped::Unusable(error.to_string()),
            },
            Said::InvalidDetails(reason) | Said::Trouble(reason) => Stepped::Unusable(reason),
        }
    }

    /// Resolves when something has come that the guest follows.
    pub async fn event(&self) {
        match &self.instance {
            Some((store, _)) => store.data().inbox().arrived().await,
            None => std::future::pending().await,
        }
    }
}

impl Component {
    fn cost(&self, before: &Used, store: &Store<ComponentState>) -> Cost {
        let after = Used::until_now(store);
        let difference = |from: Option<u64>, to: Option<u64>| from.zip(to).map(|(from, to)| to.saturating_sub(from));
        Cost {
            time: after.time - before.time,
            // It becomes less.
            fuel: difference(after.fuel, before.fuel),
            memory: self.spec.limits.memory_in_use(),
            allocations: difference(before.allocations, after.allocations),
        }
    }
}

fn ended(error: CallError) -> TrialError {
    TrialError::Ended(match error {
        CallError::Deadline(_) => format!("{error} and was ended"),
        CallError::Ended(outcome) => outcome.to_string(),
    })
}
