//! What a component imports and exports, and what of that its host gives it: WASI 0.2 and the host's own interfaces (`akri:host`).

use super::{ComponentState, EventGrant};
use std::sync::OnceLock;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime::{Engine, ResourcesRequired};

/// The package of the host's own interfaces, and the version that the node has.
const PACKAGE: (&str, &str) = ("akri:host/", "0.1.0");
/// What the node has of it.
const OWN: [&str; 5] =
    ["akri:host/log", "akri:host/uevents", "akri:host/multicast", "akri:host/watch", "akri:host/links"];

/// Something that a component imports or exports, or a module imports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// An interface with its version, `wasi:cli/run@0.2.6`, a module, or a plain name.
    pub name: String,
    /// Its functions, with the resources that have them: `[static]monitor.open`.
    pub functions: Vec<String>,
}

impl Item {
    /// The name without the version.
    pub fn interface(&self) -> &str {
        self.name.split_once('@').map_or(&self.name, |(interface, _)| interface)
    }

    /// What a pod has to say so that a program may use this: nothing for most imports.
    pub fn grant_lines(&self) -> &'static [&'static str] {
        match self.interface() {
            "akri:host/uevents" => &["annotation akri-krustlet/uevents: SUBSYSTEMS (as `usb, video4linux`, or `*`)"],
            "akri:host/links" => &["annotation akri-krustlet/links: LINKS (as `eth0, cam*`, or `*`)"],
            "akri:host/multicast" => &[
                "spec.hostNetwork: true",
                "annotation akri-krustlet/network, or variable AKRI_KRUSTLET_NETWORK: a rule `join GROUP:PORT` or `join GROUP:PORT on LINK` (docs/grants.md)",
            ],
            "akri:host/watch" => &["a volume that the container mounts (spec.volumes, volumeMounts)"],
            "wasi:http/outgoing-handler" => &[
                "spec.hostNetwork: true",
                "annotation akri-krustlet/network, or variable AKRI_KRUSTLET_NETWORK: a rule `http URL` or `http details` (docs/grants.md)",
            ],
            interface if interface.starts_with("wasi:sockets/") => &[
                "spec.hostNetwork: true",
                "annotation akri-krustlet/network, or variable AKRI_KRUSTLET_NETWORK: RULES (docs/grants.md)",
            ],
            _ => &[],
        }
    }

    fn version(&self) -> &str {
        self.name.split_once('@').map_or("", |(_, version)| version)
    }
}

/// Why a component cannot be linked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The host has another version of an interface of its own.
    #[error("it imports {0}; the node has version {version} of that package: build it with the node's WIT", version = PACKAGE.1)]
    Version(String),
    /// The host has no such interface of its own.
    #[error("it imports {0}, which the node does not have; its own interfaces are {list}", list = OWN.join(", "))]
    Unknown(String),
    /// Its pod does not grant an interface of the host's own.
    #[error("it imports {interface} ({functions}), which its pod does not grant; add to the pod: {lines}")]
    NotGranted {
        /// The interface, with its version.
        interface: String,
        /// What it uses of it.
        functions: String,
        /// What the pod has to say.
        lines: String,
    },
    /// It imports something that nobody provides.
    #[error(
        "it imports something that the node does not provide to components (it provides WASI 0.2 and akri:host): {0}"
    )]
    Import(String),
}

/// Which of the host's own interfaces a pod grants its containers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Granted {
    /// `akri:host/uevents`.
    pub uevents: bool,
    /// `akri:host/links`.
    pub links: bool,
    /// `akri:host/multicast`.
    pub multicast: bool,
    /// `akri:host/watch`.
    pub watch: bool,
}

impl Granted {
    /// By what of the machine's events is granted, whether a rule gives groups, and whether there are directories.
    pub fn of(events: &EventGrant, joins_groups: bool, has_directories: bool) -> Self {
        Self {
            uevents: events.uevents.is_some(),
            links: events.links.is_some(),
            multicast: joins_groups,
            watch: has_directories,
        }
    }

    /// Everything that a program imports and that its pod has to grant is granted.
    pub fn check(self, imports: &[Item]) -> Result<(), LinkError> {
        let is_missing = |import: &&Item| match import.interface() {
            "akri:host/uevents" => !self.uevents,
            "akri:host/links" => !self.links,
            "akri:host/multicast" => !self.multicast,
            "akri:host/watch" => !self.watch,
            _ => false,
        };
        match imports.iter().find(is_missing) {
            None => Ok(()),
            Some(import) => Err(LinkError::NotGranted {
                interface: import.name.clone(),
                functions: import.functions.iter().map(|name| plain(name)).collect::<Vec<_>>().join(", "),
                lines: import.grant_lines().join("; "),
            }),
        }
    }
}

/// A function of a resource without what kind it is: `monitor.open` of `[static]monitor.open`.
fn plain(function: &str) -> &str {
    function.split_once(']').map_or(function, |(_, name)| name)
}

/// A compiled component, and what it was linked to.
pub(crate) struct LinkedComponent {
    component: Component,
    linked: OnceLock<InstancePre<ComponentState>>,
}

impl LinkedComponent {
    pub(crate) fn new(component: Component) -> Self {
        Self { component, linked: OnceLock::new() }
    }

    /// Once; from then on it is there.
    pub(crate) fn link(&self, linker: &Linker<ComponentState>) -> Result<InstancePre<ComponentState>, LinkError> {
        if let Some(linked) = self.linked.get() {
            return Ok(linked.clone());
        }
        self.imports(linker.engine()).into_iter().try_for_each(check)?;
        let linked = linker.instantiate_pre(&self.component);
        let linked = linked.map_err(|error| LinkError::Import(format!("{error:#}")))?;
        Ok(self.linked.get_or_init(|| linked).clone())
    }

    pub(crate) fn resources_required(&self) -> Option<ResourcesRequired> {
        self.component.resources_required()
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

fn check(import: Item) -> Result<(), LinkError> {
    if !import.name.starts_with(PACKAGE.0) {
        return Ok(());
    }
    if !OWN.contains(&import.interface()) {
        return Err(LinkError::Unknown(import.name));
    }
    if import.version() != PACKAGE.1 {
        return Err(LinkError::Version(import.name));
    }
    Ok(())
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
