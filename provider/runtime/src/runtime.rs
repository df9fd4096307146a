//! The [`Runtime`]: one engine, one store of compiled modules, one set of guest threads.

use crate::aot::{AotStore, AotStoreError};
use crate::compile::{CompileError, Compiler};
use crate::component::ComponentState;
use crate::component::link::{Item, LinkError, LinkedComponent};
use crate::cpu::GuestThreads;
use crate::module::{Digest, ModuleKind};
use crate::program::{LoadError, Program};
use crate::wasi::{self, GuestState};
use crate::world::RecordTo;
use akri_krustlet_events::EventSources;
use akri_krustlet_host::{span, spans};
use akri_krustlet_metrics::counted;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use wasmtime::component::{self, InstancePre};
use wasmtime::{Engine, Linker};

/// How to make a [`Runtime`].
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// Directory of the AOT store.
    pub modules: PathBuf,
    /// How to run the compile child. Default: this program with the argument `compile-module`.
    pub compiler: Compiler,
    /// Where what handlers see is written down, for their author; nowhere by default.
    pub record: Option<RecordTo>,
    /// Guests see no machine, but a recording. The thread that asks them has its time.
    pub replays: bool,
}

impl RuntimeConfig {
    /// The defaults, with the AOT store in `modules`.
    pub fn new(modules: impl Into<PathBuf>) -> Self {
        // This program, though its file may have been replaced by a newer one meanwhile.
        let compiler = Compiler::new("/proc/self/exe", ["compile-module"]);
        Self { modules: modules.into(), compiler, record: None, replays: false }
    }
}

/// Why there is no runtime.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The engine does not start on this machine.
    #[error("the WebAssembly engine does not start: {0}")]
    Engine(String),
    /// The store of compiled modules cannot be used.
    #[error(transparent)]
    Store(#[from] AotStoreError),
    /// The guest threads cannot be started.
    #[error("cannot start the guest threads: {0}")]
    Threads(#[source] std::io::Error),
}

/// Why a module was not compiled.
#[derive(Clone, Debug)]
enum Refusal {
    /// It never will be.
    Invalid(String),
    /// It took too much, on a machine that may have been busy: not tried again before this time.
    Limit(String, Instant),
}

/// How long a module that took too much to compile is not tried again.
const LIMIT_KEPT: Duration = Duration::from_secs(600);
/// Refusals that are kept.
const MOST_REFUSED: usize = 1000;

/// Modules are compiled one at a time: it is the node's heaviest work.
struct Lane {
    compiler: Compiler,
    turn: tokio::sync::Mutex<()>,
}

impl Lane {
    fn new(compiler: Compiler) -> Self {
        Self { compiler, turn: tokio::sync::Mutex::default() }
    }

    fn seconds(&self) -> u64 {
        self.compiler.limits.cpu_seconds
    }
}

/// Compiles, keeps and runs modules. Made once per process.
pub struct Runtime {
    engine: Engine,
    /// What modules may import.
    linker: Linker<GuestState>,
    /// What components may import.
    component_linker: component::Linker<ComponentState>,
    store: AotStore,
    /// Where each module is compiled first.
    ordinary: Lane,
    /// Where those are compiled that took too long there, perhaps compile bombs: others do not wait for them.
    long: Lane,
    /// Modules that go there at once.
    takes_long: Mutex<HashSet<Digest>>,
    threads: GuestThreads,
    event_sources: Arc<EventSources>,
    programs: Mutex<HashMap<Digest, Weak<Program>>>,
    /// Modules that were not compiled, and why: a container that is started again and again has each compiled once.
    refused: Mutex<HashMap<Digest, Refusal>>,
    compiled: AtomicU64,
    record: Option<RecordTo>,
    replays: bool,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Runtime {
    /// Starts the engine and the guest threads and opens the store.
    pub fn new(config: RuntimeConfig) -> Result<Arc<Self>, RuntimeError> {
        let engine =
            crate::engine::of(config.compiler.counting).map_err(|error| RuntimeError::Engine(format!("{error:#}")))?;
        let failed = |error: wasmtime::Error| RuntimeError::Engine(format!("{error:#}"));
        let linker = wasi::linker(&engine).map_err(failed)?;
        let mut component_linker = crate::component::linker(&engine).map_err(failed)?;
        if config.replays {
            crate::world::add_to_linker(&mut component_linker).map_err(failed)?;
        }
        let store = AotStore::open(&config.modules, &engine)?;
        let threads = GuestThreads::start(&engine).map_err(RuntimeError::Threads)?;
        let mut ordinary = config.compiler.clone();
        ordinary.limits.cpu_seconds = ordinary.limits.cpu_seconds.min(ordinary.limits.ordinary_cpu_seconds);
        Ok(Arc::new(Self {
            engine,
            linker,
            component_linker,
            store,
            ordinary: Lane::new(ordinary),
            long: Lane::new(config.compiler),
            takes_long: Mutex::default(),
            threads,
            event_sources: EventSources::new(),
            programs: Mutex::default(),
            refused: Mutex::default(),
            compiled: AtomicU64::new(0),
            record: config.record,
            replays: config.replays,
        }))
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn threads(&self) -> &GuestThreads {
        &self.threads
    }

    /// Where what handlers see is written down.
    pub fn record(&self) -> Option<&RecordTo> {
        self.record.as_ref()
    }

    /// Whether guests see a recording in place of the machine.
    pub fn replays(&self) -> bool {
        self.replays
    }

    /// What happens on the machine, for guests that may follow it.
    pub fn event_sources(&self) -> &Arc<EventSources> {
        &self.event_sources
    }

    /// The largest module that [`Runtime::load`] takes, in bytes: read no more than this of a file.
    pub fn module_size_limit(&self) -> u64 {
        self.long.compiler.limits.module_size
    }

    /// How many modules this process has had compiled; a start that finds all in the store leaves it at 0.
    pub fn modules_compiled(&self) -> u64 {
        self.compiled.load(Ordering::Relaxed)
    }

    /// True if `module` will load without compiling.
    pub fn is_compiled(&self, module: &[u8]) -> bool {
        self.store.find(&Digest::of(module)).is_some()
    }

    /// Makes a program of a module's bytes: from memory if a guest of it runs, else from the store, else by compiling.
    pub async fn load(&self, module: &[u8]) -> Result<Arc<Program>, LoadError> {
        let kind = self.long.compiler.inspect(module)?;
        let digest = Digest::of(module);
        if let Some(program) = self.known(&digest) {
            return Ok(program);
        }
        if let Some(program) = self.load_stored(digest, (kind, module))? {
            return Ok(program);
        }
        self.check_refused(&digest)?;
        let mut compiled = self.compile_in(&self.ordinary, module, digest, kind).await?;
        if matches!(compiled, Err(CompileError::Limit(_))) && self.long.seconds() > self.ordinary.seconds() {
            compiled = self.compile_in(&self.long, module, digest, kind).await?;
        }
        if let Err(error) = &compiled {
            self.note_refused(digest, error);
        }
        // Whatever became of it is known from here on.
        self.takes_long().remove(&digest);
        Ok(compiled?)
    }

    /// Only what must be compiled waits here. Whoever waited for the compile of the same module has it then.
    async fn compile_in(
        &self,
        lane: &Lane,
        module: &[u8],
        digest: Digest,
        kind: ModuleKind,
    ) -> Result<Result<Arc<Program>, CompileError>, LoadError> {
        let _one_at_a_time = lane.turn.lock().await;
        if let Some(program) = self.known(&digest) {
            return Ok(Ok(program));
        }
        if let Some(program) = self.load_stored(digest, (kind, module))? {
            return Ok(Ok(program));
        }
        self.check_refused(&digest)?;
        let is_ordinary = lane.seconds() < self.long.seconds();
        if is_ordinary && self.takes_long().contains(&digest) {
            return Ok(Err(CompileError::Limit("more than most modules need".to_owned())));
        }
        let staged = self.store.stage().map_err(LoadError::Store)?;
        let started = Instant::now();
        let span = span!("module compile", module.digest = %digest, module.bytes = module.len());
        let compiled = spans::told(span, lane.compiler.compile(module, staged.path())).await;
        let result = match &compiled {
            Ok(_) => "compiled",
            Err(CompileError::Invalid(_)) => "invalid",
            Err(CompileError::Limit(_)) => "limit",
            Err(_) => "failed",
        };
        counted().compiles.observe([result], started.elapsed());
        if let Err(error) = compiled {
            if is_ordinary && matches!(error, CompileError::Limit(_)) {
                // The same module again, asked for meanwhile, does not take the others' time.
                self.takes_long().insert(digest);
            }
            return Ok(Err(error));
        }
        self.compiled.fetch_add(1, Ordering::Relaxed);
        let path = self.store.commit(staged, &digest).map_err(LoadError::Store)?;
        Ok(Ok(self.remember(Program::prepare(&self.engine, &self.linker, digest, (kind, module), &path)?)))
    }

    fn takes_long(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.takes_long.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_refused(&self, digest: &Digest) -> Result<(), CompileError> {
        match self.refused.lock().unwrap_or_else(PoisonError::into_inner).get(digest) {
            Some(Refusal::Invalid(reason)) => Err(CompileError::Invalid(reason.clone())),
            Some(Refusal::Limit(reason, until)) if *until > Instant::now() => Err(CompileError::Limit(reason.clone())),
            _ => Ok(()),
        }
    }

    fn note_refused(&self, digest: Digest, error: &CompileError) {
        let refusal = match error {
            CompileError::Invalid(reason) => Refusal::Invalid(reason.clone()),
            CompileError::Limit(reason) => Refusal::Limit(reason.clone(), Instant::now() + LIMIT_KEPT),
            _ => return,
        };
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() >= MOST_REFUSED {
            refused.clear();
        }
        refused.insert(digest, refusal);
    }

    /// Removes a compiled module, named by its digest (`sha256:...`), from the store. One that runs goes on running.
    pub fn discard(&self, digest: &str) {
        if let Some(digest) = Digest::parse(digest) {
            self.store.discard(&digest);
        }
    }

    fn load_stored(&self, digest: Digest, what: (ModuleKind, &[u8])) -> Result<Option<Arc<Program>>, LoadError> {
        let Some(path) = self.store.find(&digest) else { return Ok(None) };
        match Program::prepare(&self.engine, &self.linker, digest, what, &path) {
            Err(LoadError::Unusable(reason)) => {
                tracing::warn!(%digest, reason, "stored module is unusable, compiling it again");
                self.store.discard(&digest);
                Ok(None)
            }
            result => result.map(|program| Some(self.remember(program))),
        }
    }

    /// Links a component with what the node has.
    pub fn link(&self, program: &Program) -> Result<InstancePre<ComponentState>, LinkError> {
        as_component(program)?.link(&self.component_linker)
    }

    /// What a program imports.
    pub fn imports(&self, program: &Program) -> Vec<Item> {
        match program.component() {
            Some(component) => component.imports(&self.engine),
            None => program.module_imports(),
        }
    }

    /// What a component exports; nothing of a module.
    pub fn exports(&self, program: &Program) -> Vec<Item> {
        program.component().map_or_else(Vec::new, |component| component.exports(&self.engine))
    }

    fn known(&self, digest: &Digest) -> Option<Arc<Program>> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).get(digest).and_then(Weak::upgrade)
    }

    fn remember(&self, program: Program) -> Arc<Program> {
        let program = Arc::new(program);
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        programs.retain(|_, program| program.strong_count() > 0);
        programs.insert(program.digest(), Arc::downgrade(&program));
        program
    }
}

fn as_component(program: &Program) -> Result<&LinkedComponent, LinkError> {
    program.component().ok_or_else(|| LinkError::Import("it is a module, not a component".to_owned()))
}
