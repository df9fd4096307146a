//! What a component says of itself, before it is anybody's handler.

use super::bindings::{self, DiscoveryHandlerPre};
use super::schema::DetailsSchema;
use super::{EXPORT, ended_as};
use crate::settings;
use akri_krustlet_runtime::{ComponentSpec, ComponentState, ContainerLimits, Digest, Program, Runtime};
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
    known: Mutex<HashMap<Digest, Weak<HandlerInfo>>>,
    /// Why, and until when.
    refused: Mutex<HashMap<Digest, (String, Instant)>>,
    turn: tokio::sync::Mutex<()>,
}

impl Descriptions {
    /// What a program says of itself: nothing, if it is no discovery handler by the component contract. An error says what is
    /// wrong with it.
    pub async fn of(&self, runtime: &Runtime, program: &Program) -> Result<Option<Arc<HandlerInfo>>, String> {
        if !is_handler(runtime, program)? {
            return Ok(None);
        }
        if let Some(known) = self.known(program)? {
            return Ok(Some(known));
        }
        let _turn = self.turn.lock().await;
        if let Some(known) = self.known(program)? {
            return Ok(Some(known));
        }
        let described = describe(runtime, program).await;
        if let Err(reason) = &described {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            if refused.len() >= MOST_REFUSED {
                refused.clear();
            }
            refused.insert(program.digest(), (reason.clone(), Instant::now() + REFUSAL_KEPT));
        }
        let info = Arc::new(described?);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, info| info.strong_count() > 0);
        known.insert(program.digest(), Arc::downgrade(&info));
        Ok(Some(info))
    }

    /// What was found out lately.
    fn known(&self, program: &Program) -> Result<Option<Arc<HandlerInfo>>, String> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match refused.get(&program.digest()) {
            Some((reason, until)) if *until > Instant::now() => return Err(reason.clone()),
            _ => drop(refused),
        }
        let known =
            self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&program.digest()).and_then(Weak::upgrade);
        Ok(known)
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
        limits: limits.clone(),
    };
    let mut store: wasmtime::Store<ComponentState> = runtime.component_store(&spec, None);
    let call = runtime.call(&limits, "describe", None, DEADLINE, async move {
        let result = async {
            let handler = handler.instantiate_async(&mut store).await?;
            handler.akri_discovery_handler().call_describe(&mut store).await
        };
        let result = result.await;
        (store, result)
    });
    let info = match call.await {
        Ok((_, info)) => info,
        Err(error) => {
            return Err(format!(
                "describe {}: it is called without any grant and has to answer from what the image holds",
                ended_as(error)
            ));
        }
    };
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
