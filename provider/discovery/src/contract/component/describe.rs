//! What a component says of itself, before it is anybody's handler.

use super::EXPORT;
use super::bindings::{self, DiscoveryHandlerPre};
use super::schema::DetailsSchema;
use crate::settings;
use akri_krustlet_runtime::{
    ComponentSpec, ComponentState, ContainerLimits, Digest, EventGrant, Program, Runtime, World,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// What an image says of the handler in it: the defaults of its containers.
#[derive(Debug)]
pub struct HandlerInfo {
    /// Default of the container's `DISCOVERY_HANDLER_NAME`.
    pub name: String,
    /// Default of `DISCOVERY_HANDLER_SHARED`.
    pub shared: bool,
    /// What the details of a Configuration have to be, if the author wrote it.
    pub schema: Option<DetailsSchema>,
}

/// How long a component may take to say what it is.
const DEADLINE: Duration = Duration::from_secs(10);
/// Memory for it, whatever its container has later, in bytes: enough for an interpreter.
const MEMORY: usize = 128 << 20;

/// How long a component that could not say what it is is not asked again.
const REFUSAL_KEPT: Duration = Duration::from_secs(300);
/// Refusals that are kept.
const MOST_REFUSED: usize = 256;

/// One at a time, and each image once.
#[derive(Debug, Default)]
pub struct Descriptions {
    known: Mutex<HashMap<Digest, Known>>,
    turn: tokio::sync::Mutex<()>,
}

/// What became of asking an image.
#[derive(Debug)]
enum Known {
    /// It said what it is; kept as long as something runs it.
    Described(Weak<HandlerInfo>),
    /// It could not, for this reason; not asked again before this time.
    Refused(String, Instant),
}

impl Known {
    fn is_current(&self) -> bool {
        match self {
            Self::Described(info) => info.strong_count() > 0,
            Self::Refused(_, until) => *until > Instant::now(),
        }
    }
}

impl Descriptions {
    /// What a program says of itself: nothing, if it is no discovery handler by the component contract. An error says what is
    /// wrong with it.
    pub async fn of(&self, runtime: &Runtime, program: &Program) -> Result<Option<Arc<HandlerInfo>>, String> {
        if let Some(known) = self.known(program)? {
            return Ok(Some(known));
        }
        if !is_handler(runtime, program)? {
            return Ok(None);
        }
        let _turn = self.turn.lock().await;
        if let Some(known) = self.known(program)? {
            return Ok(Some(known));
        }
        let described = describe(runtime, program).await.map(Arc::new);
        let new = match &described {
            Ok(info) => Known::Described(Arc::downgrade(info)),
            Err(reason) => Known::Refused(reason.clone(), Instant::now() + REFUSAL_KEPT),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, known| known.is_current());
        let is_refusal = |known: &Known| matches!(known, Known::Refused(..));
        if known.values().filter(|known| is_refusal(known)).count() >= MOST_REFUSED {
            known.retain(|_, known| !is_refusal(known));
        }
        known.insert(program.digest(), new);
        drop(known);
        described.map(Some)
    }

    /// What was found out lately.
    fn known(&self, program: &Program) -> Result<Option<Arc<HandlerInfo>>, String> {
        match self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&program.digest()) {
            Some(Known::Described(info)) => Ok(info.upgrade()),
            Some(known @ Known::Refused(reason, _)) if known.is_current() => Err(reason.clone()),
            _ => Ok(None),
        }
    }
}

/// Whether a component exports the handler interface; an error if it has another version of it.
fn is_handler(runtime: &Runtime, program: &Program) -> Result<bool, String> {
    let exports = runtime.exports(program);
    let (interface, version) = EXPORT;
    let Some(export) = exports.iter().find(|export| export.interface() == interface) else { return Ok(false) };
    if export.name == format!("{interface}@{version}") {
        return Ok(true);
    }
    Err(format!("it exports {}, the node knows {interface}@{version}: build it with the node's WIT", export.name))
}

/// Asks a new instance, which has been granted nothing.
async fn describe(runtime: &Runtime, program: &Program) -> Result<HandlerInfo, String> {
    let instance = runtime.link(program).map_err(|error| error.to_string())?;
    let handler = DiscoveryHandlerPre::new(instance).map_err(|error| super::not_a_handler(&error))?;
    let limits = ContainerLimits { memory: MEMORY, cpu_millis: Some(500), ..ContainerLimits::default() }.share();
    let spec = ComponentSpec {
        name: "describe".to_owned(),
        args: Vec::new(),
        env: Vec::new(),
        log: None,
        preopens: Vec::new(),
        events: EventGrant::default(),
        stdin: None,
        limits: limits.clone(),
    };
    let mut store: wasmtime::Store<ComponentState> =
        runtime.component_store(&spec, None, World::Machine).map_err(|error| error.to_string())?;
    let call = runtime.call(&limits, "describe", None, DEADLINE, async move {
        let result = async {
            let handler = handler.instantiate_async(&mut store).await?;
            handler.akri_discovery_handler().call_describe(&mut store).await
        };
        let result = result.await;
        (store, result)
    });
    let (_, info) = call.await.map_err(|error| {
        format!("describe {error}: it is called without any grant and has to answer from what the image holds")
    })?;
    // Patterns are compiled, which may take long.
    let read = tokio::task::spawn_blocking(move || HandlerInfo::of(info)).await;
    read.unwrap_or_else(|error| Err(format!("describe: {error}")))
}

impl HandlerInfo {
    fn of(info: bindings::exports::akri::discovery::handler::Info) -> Result<Self, String> {
        let told = |what: &dyn std::fmt::Display| format!("describe: {what}");
        settings::check_name(&info.name).map_err(|error| told(&error))?;
        let schema = info.details_schema.map(|schema| DetailsSchema::read(&schema)).transpose();
        let schema = schema.map_err(|error| told(&error))?;
        Ok(Self { name: info.name, shared: info.shared, schema })
    }
}
