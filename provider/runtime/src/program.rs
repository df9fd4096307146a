//! A module that is ready to run: compiled, checked and linked once, shared by all of its guests.

use crate::compile::CompileError;
use crate::component::link::{Item, LinkedComponent};
use crate::limits::InitialSizes;
use crate::module::{Digest, ModuleKind};
use crate::needs::Metadata;
use crate::wasi::GuestState;
use std::path::Path;
use wasmtime::component::Component;
use wasmtime::{Engine, InstancePre, Linker, Module, UnknownImportError};

/// Why a module cannot be run on this node.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It could not be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The AOT store failed: disk full, directory gone.
    #[error("module store: {0}")]
    Store(#[source] std::io::Error),
    /// It needs something that the node does not give.
    #[error(
        "it imports {module}.{name}, which the node does not provide (it provides wasi_snapshot_preview1 without sockets); build it for wasm32-wasip1"
    )]
    MissingImport {
        /// The import's module.
        module: String,
        /// The import's name.
        name: String,
    },
    /// It is a library (a WASI reactor) or something else without a `_start` to run.
    #[error(
        "it exports no function `_start`: it is a library, the node runs commands; build it as a program (`fn main`) for wasm32-wasip1"
    )]
    NoStart,
    /// It does not export its memory, which preview 1 needs.
    #[error("it exports no memory named `memory`, which WASI needs")]
    NoMemory,
    /// It is a component.
    #[error("it is a component, a module is needed here: build it for wasm32-wasip1 instead of wasm32-wasip2")]
    Component,
    /// Its host has the import, with another type.
    #[error(
        "it imports a function with a type that WASI preview 1 does not give it: {0}; build it with a current toolchain for wasm32-wasip1"
    )]
    ImportType(String),
    /// The engine refused a file of its own store, twice.
    #[error("the compiled module cannot be loaded: {0}")]
    Unusable(String),
}

/// A compiled module with its imports resolved.
pub struct Program {
    digest: Digest,
    code: Code,
    metadata: Metadata,
}

enum Code {
    Module(InstancePre<GuestState>),
    Component(LinkedComponent),
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl Program {
    pub(crate) fn prepare(
        engine: &Engine,
        linker: &Linker<GuestState>,
        digest: Digest,
        (kind, module): (ModuleKind, &[u8]),
        compiled: &Path,
    ) -> Result<Self, LoadError> {
        let unusable = |error: wasmtime::Error| LoadError::Unusable(format!("{error:#}"));
        let code = match kind {
            ModuleKind::Module => {
                let module = load_module(engine, compiled).map_err(unusable)?;
                Code::Module(link(linker, &module)?)
            }
            ModuleKind::Component => {
                Code::Component(LinkedComponent::new(load_component(engine, compiled).map_err(unusable)?))
            }
        };
        Ok(Self { digest, code, metadata: Metadata::read(module) })
    }

    /// What its author says of it.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The digest of the module it was made from.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Whether it came from a module or a component.
    pub fn kind(&self) -> ModuleKind {
        match self.code {
            Code::Module(_) => ModuleKind::Module,
            Code::Component(_) => ModuleKind::Component,
        }
    }

    /// What its guests have from their start; of a component that imports modules it is not known.
    pub fn initial_sizes(&self) -> Option<InitialSizes> {
        match &self.code {
            Code::Module(module) => Some(InitialSizes::of(&module.module().resources_required())),
            Code::Component(component) => component.resources_required().as_ref().map(InitialSizes::of),
        }
    }

    pub(crate) fn component(&self) -> Option<&LinkedComponent> {
        match &self.code {
            Code::Component(component) => Some(component),
            Code::Module(_) => None,
        }
    }

    /// The modules that a module imports from, each once.
    pub(crate) fn module_imports(&self) -> Vec<Item> {
        let Code::Module(module) = &self.code else { return Vec::new() };
        let mut imports: Vec<Item> = Vec::new();
        for import in module.module().imports() {
            let function = import.name().to_owned();
            match imports.iter_mut().find(|item| item.name == import.module()) {
                Some(item) => item.functions.push(function),
                None => imports.push(Item { name: import.module().to_owned(), functions: vec![function] }),
            }
        }
        imports
    }

    pub(crate) fn command(&self) -> Result<&InstancePre<GuestState>, LoadError> {
        match &self.code {
            Code::Module(instance) => Ok(instance),
            Code::Component(_) => Err(LoadError::Component),
        }
    }
}

fn link(linker: &Linker<GuestState>, module: &Module) -> Result<InstancePre<GuestState>, LoadError> {
    use wasmtime::ExternType;
    match module.get_export("memory") {
        Some(ExternType::Memory(_)) => {}
        _ => return Err(LoadError::NoMemory),
    }
    match module.get_export("_start") {
        Some(ExternType::Func(start)) if start.params().len() == 0 && start.results().len() == 0 => {}
        _ => return Err(LoadError::NoStart),
    }
    linker.instantiate_pre(module).map_err(|error| match error.downcast_ref::<UnknownImportError>() {
        Some(import) => LoadError::MissingImport { module: import.module().to_owned(), name: import.name().to_owned() },
        None => LoadError::ImportType(format!("{error:#}")),
    })
}

#[allow(unsafe_code, reason = "executing the files of our own AOT store is what the store is for")]
fn load_module(engine: &Engine, compiled: &Path) -> wasmtime::Result<Module> {
    // SAFETY: the file was written by our compile child into a directory that only this user can change (AotStore
    // checks owner and mode), appeared by rename when it was complete, and is never modified in place.
    unsafe { Module::deserialize_file(engine, compiled) }
}

#[allow(unsafe_code, reason = "executing the files of our own AOT store is what the store is for")]
fn load_component(engine: &Engine, compiled: &Path) -> wasmtime::Result<Component> {
    // SAFETY: as in `load_module`.
    unsafe { Component::deserialize_file(engine, compiled) }
}
