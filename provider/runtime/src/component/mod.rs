//! Components: guests that are called, again and again; commands among them run to their end in one call (`start.rs`).
//!
//! An instance costs memory only between two calls: no thread, no timer, no stack of its own. What a component may use is what
//! its linker has: WASI 0.2 with the directories and the network that it was granted ([`crate::network`]), and the host's own
//! interfaces (`akri:host`). The bounds are those of every guest ([`crate::limits`]).

mod call;
mod events;
mod files;
pub mod link;

use crate::limits::{GuestLimiter, RANDOM_BYTES, SharedLimits};
use crate::log::{ContainerLog, Stream};
use crate::network::{NetworkAccess, http, sockets};
use crate::preopen::{Preopen, PreopenError};
use crate::stdin::Stdin;
use crate::world::World;
use akri_krustlet_events::{EventSources, Inbox};
use std::sync::Arc;
use wasmtime::component::{HasSelf, Linker, ResourceTable};
use wasmtime::{Engine, Store, UpdateDeadline};
use wasmtime_wasi::{TrappableError, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::WasiHttpCtxView;

pub use call::CallError;
pub use events::EventGrant;

/// The host's own interfaces, as Rust sees them; described in `proto/wit`.
#[allow(missing_docs, reason = "generated")]
pub mod bindings {
    wasmtime::component::bindgen!({
        path: "../../proto/wit/deps/akri-host",
        inline: "package akri:runtime; world host {
            import akri:host/log@0.1.0;
            import akri:host/uevents@0.1.0;
            import akri:host/multicast@0.1.0;
            import akri:host/watch@0.1.0;
            import akri:host/links@0.1.0;
        }",
        imports: { default: async | trappable },
        with: {
            "akri:host/uevents.monitor": super::events::Monitor,
            "akri:host/multicast.listener": super::events::Listener,
            "akri:host/watch.watch": super::events::Watch,
        },
    });
}

use bindings::akri::host::log::{self, Level};
use bindings::akri::host::{links, multicast, uevents, watch};
use events::Events;

/// The version of WASI whose functions are stood before; components of older ones are given it, too.
pub(crate) const WASI: &str = "0.2.12";
/// Resources (streams, pollables, sockets) that one component may have at once.
const RESOURCES: usize = 256;
/// Bytes that a component may hand to the host in one call, as arguments and results together.
const CALL_BYTES: usize = 8 << 20;
/// Longest message that a component may log, in bytes; the rest is cut off.
const MOST_MESSAGE: usize = 64 << 10;
/// Environment of a component: the least level of messages that are logged.
const LEVEL: &str = "RUST_LOG";

/// What an instance of a component is given.
#[derive(Clone, Debug)]
pub struct ComponentSpec {
    /// Names it in messages.
    pub name: String,
    /// Arguments after the name.
    pub args: Vec<String>,
    /// Environment; nothing is inherited.
    pub env: Vec<(String, String)>,
    /// Where its log, standard output and error go; nowhere by default.
    pub log: Option<Arc<ContainerLog>>,
    /// Directories; none by default.
    pub preopens: Vec<Preopen>,
    /// What of the machine's events it may follow; nothing by default.
    pub events: EventGrant,
    /// Standard input that is open until it is closed; empty by default.
    pub stdin: Option<Stdin>,
    /// The container's limits.
    pub limits: Arc<SharedLimits>,
}

/// The data of a component's store.
pub struct ComponentState {
    wasi: WasiCtx,
    table: ResourceTable,
    pub(crate) limiter: GuestLimiter,
    log: Option<Arc<ContainerLog>>,
    level: Level,
    network: Option<Arc<NetworkAccess>>,
    events: Events,
    requests: http::Requests,
    world: World,
}

impl ComponentState {
    /// Where what it follows arrives.
    pub fn inbox(&self) -> Arc<Inbox> {
        self.events.inbox.clone()
    }

    pub(crate) fn network(&self) -> Option<&Arc<NetworkAccess>> {
        self.network.as_ref()
    }

    /// What it sees.
    pub fn world(&self) -> &World {
        &self.world
    }

    pub(crate) fn table(&mut self) -> &mut ResourceTable {
        &mut self.table
    }

    pub(crate) fn requests(&mut self) -> WasiHttpCtxView<'_> {
        self.requests.view(&mut self.table)
    }
}

impl std::fmt::Debug for ComponentState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ComponentState").field("limiter", &self.limiter).finish_non_exhaustive()
    }
}

impl WasiView for ComponentState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl log::Host for ComponentState {
    async fn log(&mut self, level: Level, mut message: String) -> wasmtime::Result<()> {
        if let Some(log) = self.log.as_ref().filter(|_| level as u8 >= self.level as u8) {
            message.truncate(message.floor_char_boundary(MOST_MESSAGE));
            let level = match level {
                Level::Trace => "TRACE",
                Level::Debug => "DEBUG",
                Level::Info => "INFO",
                Level::Warn => "WARN",
                Level::Error => "ERROR",
            };
            log.say(&format!("{level} {message}\n")).await;
        }
        Ok(())
    }
}

/// What a function of WASI returns: a trap is the guest's end, an error code is its affair.
pub(crate) fn returned<T, E>(result: Result<T, TrappableError<E>>) -> wasmtime::Result<(Result<T, E>,)>
where
    E: std::error::Error + Send + Sync + 'static,
{
    match result {
        Ok(value) => Ok((Ok(value),)),
        Err(error) => Ok((Err(error.downcast()?),)),
    }
}

/// What a component may import.
pub(crate) fn linker(engine: &Engine) -> wasmtime::Result<Linker<ComponentState>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    sockets::add_to_linker(&mut linker)?;
    http::add_to_linker(&mut linker)?;
    files::add_to_linker(&mut linker)?;
    log::add_to_linker::<_, HasSelf<_>>(&mut linker, |state: &mut ComponentState| state)?;
    uevents::add_to_linker::<_, HasSelf<_>>(&mut linker, |state: &mut ComponentState| state)?;
    multicast::add_to_linker::<_, HasSelf<_>>(&mut linker, |state: &mut ComponentState| state)?;
    watch::add_to_linker::<_, HasSelf<_>>(&mut linker, |state: &mut ComponentState| state)?;
    links::add_to_linker::<_, HasSelf<_>>(&mut linker, |state: &mut ComponentState| state)?;
    Ok(linker)
}

/// Builds the store of every component: the one place where what it may use is decided.
pub(crate) fn store(
    engine: &Engine,
    sources: &Arc<EventSources>,
    spec: &ComponentSpec,
    network: Option<Arc<NetworkAccess>>,
    world: World,
) -> Result<Store<ComponentState>, PreopenError> {
    let mut wasi = WasiCtxBuilder::new();
    wasi.arg(&spec.name).args(&spec.args).envs(&spec.env).max_random_size(RANDOM_BYTES);
    sockets::restrict(&mut wasi, network.as_ref());
    world.give(&mut wasi);
    if let Some(stdin) = &spec.stdin {
        wasi.stdin(stdin.clone());
    }
    if let Some(log) = &spec.log {
        wasi.stdout(log.stream(Stream::Stdout));
        wasi.stderr(log.stream(Stream::Stderr));
    }
    for preopen in &spec.preopens {
        preopen.give(&mut wasi)?;
    }
    let mut table = ResourceTable::new();
    table.set_max_capacity(RESOURCES);
    let state = ComponentState {
        wasi: wasi.build(),
        table,
        limiter: GuestLimiter::of_component(spec.limits.clone()),
        log: spec.log.clone(),
        level: level(&spec.env),
        network: network.clone(),
        requests: http::Requests::new(network.clone(), world.clone()),
        events: Events {
            sources: sources.clone(),
            inbox: Inbox::new(),
            grant: spec.events.clone(),
            network,
            preopens: spec.preopens.clone(),
        },
        world,
    };
    let mut store = Store::new(engine, state);
    store.limiter(|state| &mut state.limiter);
    store.set_hostcall_fuel(CALL_BYTES);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|_| Ok(UpdateDeadline::Yield(1)));
    // Only an engine that counts has fuel, and then there is no end of it.
    let _ = store.set_fuel(u64::MAX);
    Ok(store)
}

/// The level that the environment names; the last variable of the name counts, as in a container's environment.
fn level(env: &[(String, String)]) -> Level {
    let value = env.iter().rev().find(|(name, _)| name == LEVEL).map(|(_, value)| value.to_ascii_lowercase());
    match value.as_deref() {
        Some("trace") => Level::Trace,
        Some("debug") => Level::Debug,
        Some("warn") => Level::Warn,
        Some("error") => Level::Error,
        _ => Level::Info,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_of_messages_is_the_environments() {
        let env =
            |values: &[&str]| values.iter().map(|value| (LEVEL.to_owned(), (*value).to_owned())).collect::<Vec<_>>();
        assert_eq!(level(&env(&[])), Level::Info);
        assert_eq!(level(&env(&["debug", "ERROR"])), Level::Error);
        assert_eq!(level(&env(&["my_crate=debug"])), Level::Info);
    }
}
