//! What a component imports and exports, and what of that its host gives it.
//!
//! WASI 0.2 and the log are given to every component; what else there is ([`Interface`]) only to those that it was granted to. A
//! component is linked once for each set of interfaces.

use super::ComponentState;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use wasmtime::Engine;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, InstancePre, Linker};

/// An interface that a component has only if it was granted to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Interface {}

impl Interface {
    /// All of them.
    pub const ALL: [Self; 0] = [];

    /// Its name in a component, without the version.
    pub fn name(self) -> &'static str {
        match self {}
    }
}

/// The interfaces that a component is given.
pub type Interfaces = BTreeSet<Interface>;

/// The package of the host's own interfaces, and the version that the node has.
const PACKAGE: (&str, &str) = ("akri:host/", "0.1.0");
/// What every component is given of it.
const UNGRANTED: [&str; 1] = ["akri:host/log"];

/// Something that a component imports or exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// An interface with its version, `wasi:cli/run@0.2.6`, or a plain name.
    pub name: String,
    /// Its functions, with the resources that have them: `[static]monitor.open`.
    pub functions: Vec<String>,
}

impl Item {
    /// The name without the version.
    pub fn interface(&self) -> &str {
        self.name.split_once('@').map_or(&self.name, |(interface, _)| interface)
    }

    fn version(&self) -> &str {
        self.name.split_once('@').map_or("", |(_, version)| version)
    }

    /// The interface that must be granted for it.
    pub fn granted_by(&self) -> Option<Interface> {
        Interface::ALL.into_iter().find(|interface| interface.name() == self.interface())
    }
}

/// Why a component cannot be linked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// An interface was not granted to it.
    #[error("it imports {} ({}), which it was not granted", import.name, import.functions.join(", "))]
    NotGranted {
        /// The interface.
        interface: Interface,
        /// As the component has it.
        import: Item,
    },
    /// The host has another version of an interface of its own.
    #[error("it imports {0}; the node has version {version} of that package: build it with the node's WIT", version = PACKAGE.1)]
    Version(String),
    /// The host has no such interface of its own.
    #[error("it imports {0}, which the node does not have; its own interfaces are {list}", list = OwnInterfaces)]
    Unknown(String),
    /// It imports something that nobody provides.
    #[error(
        "it imports something that the node does not provide to components (it provides WASI 0.2 and akri:host): {0}"
    )]
    Import(String),
}

/// The host's own interfaces, as a message names them.
struct OwnInterfaces;

impl fmt::Display for OwnInterfaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = UNGRANTED.into_iter().chain(Interface::ALL.into_iter().map(Interface::name));
        f.write_str(&own.filter(|name| name.starts_with(PACKAGE.0)).collect::<Vec<_>>().join(", "))
    }
}

/// The linkers of components, by what they give.
pub(crate) struct ComponentLinkers {
    engine: Engine,
    by_interfaces: Mutex<HashMap<Interfaces, Arc<Linker<ComponentState>>>>,
}

impl ComponentLinkers {
    /// With the one that every component may use.
    pub(crate) fn new(engine: &Engine) -> wasmtime::Result<Self> {
        let linkers = Self { engine: engine.clone(), by_interfaces: Mutex::default() };
        linkers.linker(&Interfaces::new())?;
        Ok(linkers)
    }

    fn linker(&self, interfaces: &Interfaces) -> wasmtime::Result<Arc<Linker<ComponentState>>> {
        let mut linkers = self.by_interfaces.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(linker) = linkers.get(interfaces) {
            return Ok(linker.clone());
        }
        let linker = Arc::new(super::linker(&self.engine, interfaces)?);
        linkers.insert(interfaces.clone(), linker.clone());
        Ok(linker)
    }

    /// Links a component with what it was granted.
    pub(crate) fn link(
        &self,
        component: &LinkedComponent,
        interfaces: &Interfaces,
    ) -> Result<InstancePre<ComponentState>, LinkError> {
        let mut linked = component.linked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(instance) = linked.get(interfaces) {
            return Ok(instance.clone());
        }
        for import in component.imports(&self.engine) {
            check(import, interfaces)?;
        }
        let failed = |error: wasmtime::Error| LinkError::Import(format!("{error:#}"));
        let linker = self.linker(interfaces).map_err(failed)?;
        let instance = linker.instantiate_pre(&component.component).map_err(failed)?;
        linked.insert(interfaces.clone(), instance.clone());
        Ok(instance)
    }
}

fn check(import: Item, interfaces: &Interfaces) -> Result<(), LinkError> {
    if let Some(interface) = import.granted_by()
        && !interfaces.contains(&interface)
    {
        return Err(LinkError::NotGranted { interface, import });
    }
    if !import.name.starts_with(PACKAGE.0) {
        return Ok(());
    }
    if import.granted_by().is_none() && !UNGRANTED.contains(&import.interface()) {
        return Err(LinkError::Unknown(import.name));
    }
    if import.version() != PACKAGE.1 {
        return Err(LinkError::Version(import.name));
    }
    Ok(())
}

/// A compiled component, and what it was linked with.
pub(crate) struct LinkedComponent {
    component: Component,
    linked: Mutex<HashMap<Interfaces, InstancePre<ComponentState>>>,
}

impl LinkedComponent {
    pub(crate) fn new(component: Component) -> Self {
        Self { component, linked: Mutex::default() }
    }

    pub(crate) fn imports(&self, engine: &Engine) -> Vec<Item> {
        let of = self.component.component_type();
        of.imports(engine).map(|(name, import)| item(engine, name, &import.ty)).collect()
    }

    pub(crate) fn exports(&self, engine: &Engine) -> Vec<Item> {
        let of = self.component.component_type();
        of.exports(engine).map(|(name, export)| item(engine, name, &export.ty)).collect()
    }
}

fn item(engine: &Engine, name: &str, of: &ComponentItem) -> Item {
    let mut functions = Vec::new();
    if let ComponentItem::ComponentInstance(instance) = of {
        let is_function = |item: &ComponentItem| matches!(item, ComponentItem::ComponentFunc(_));
        let named = instance.exports(engine).filter(|(_, item)| is_function(&item.ty));
        functions.extend(named.map(|(name, _)| name.to_owned()));
    }
    Item { name: name.to_owned(), functions }
}
